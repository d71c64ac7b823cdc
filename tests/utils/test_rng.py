import random

import numpy as np
import pytest
import torch

from autoregressive_diffusion_pytorch.utils.rng import (
    preserved_rng,
    rng_state,
    seed_cpu,
    seed_process,
    set_rng_state,
)

CPU = torch.device("cpu")


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_the_numbers_after_a_state_come_again(tmp_path):
    np.random.randn()  # numpy keeps the second number of a pair
    torch.save(rng_state(CPU), tmp_path / "state")
    expected = draw()
    assert draw() != expected
    set_rng_state(torch.load(tmp_path / "state", weights_only=True), CPU)
    assert draw() == expected


def test_what_is_drawn_inside_changes_nothing_after_it():
    state = rng_state(CPU)
    expected = draw()
    set_rng_state(state, CPU)
    with preserved_rng(CPU):
        inside = draw()
    assert inside == expected
    assert draw() == expected


def test_one_seed_for_all():
    seed_cpu(2**61 + 5)
    expected = draw()
    seed_cpu(2**61 + 6)
    assert all(first != second for first, second in zip(draw(), expected, strict=True))
    seed_cpu(2**61 + 5)
    assert draw() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    device = torch.device("cuda")
    state = rng_state(device)
    expected = torch.rand(3, device=device)
    set_rng_state(state, device)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_processes_are_seeded_independently():
    seed_process(3, rank=0)
    first = draw()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    assert draw() == first
    seen = set()
    for key in ((0,), (1,), (2,), (0, 1)):
        for rank in range(3):
            seed_process(*key, rank=rank)
            seen.add(str(draw()))
    assert len(seen) == 12  # no process has the numbers of another seed's
