"""Images in another range than [0, 1]: what is a usual mistake is refused, others are warned of."""

import copy
import pickle

import pytest
import torch
from helpers import needs_compiler

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow


@pytest.fixture
def small_model():
    sizes = dict(dim=16, depth=1, heads=1, dim_head=8, mlp_depth=1, mlp_width=16)
    return ImageAutoregressiveFlow(image_size=8, patch_size=4, channels=1, model=sizes)


def uses(model):
    def complete(images):
        return model.complete(images, 4)

    return dict(forward=model, measure=model.measure, complete=complete, log_prob=model.log_prob)


MISTAKES = [
    (lambda x: x * 255, "got 0 to 255: divide 8-bit values by 255"),
    (lambda x: x * 255 - 128, "got -128 to 127: divide"),
    (lambda x: x * 65535, "got 0 to 65535: divide"),
    (lambda x: x * 2 - 1, r"got -1 to 1: leave out Normalize\(0.5, 0.5\)"),
    (lambda x: (x * 2 - 1).half(), r"got -1 to 1: leave out Normalize"),
    (lambda x: x.masked_fill(x == 0, float("nan")), "got nan to nan: some are no finite numbers"),
    (lambda x: x.masked_fill(x == 0, float("inf")), "got .* to inf: some are no finite numbers"),
]


@pytest.mark.parametrize("use", ["forward", "measure", "complete", "log_prob"])
@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_a_usual_mistake_in_the_range_is_refused_and_named(small_model, use, mistake, message):
    images = torch.rand(2, 1, 8, 8)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=message):
        uses(small_model)[use](mistake(images))
    if use in ("forward", "measure"):  # a later batch is checked still
        with pytest.raises(ValueError, match=message):
            uses(small_model)[use](mistake(images))


@pytest.mark.parametrize("use", ["forward", "measure", "complete"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda x: torch.randn_like(x) * 2, "must have values in .*: Normalize with the mean"),
        (lambda x: (x - 0.45) / 0.23, "must have values in .*: Normalize with the mean and std"),
        (lambda x: x * 1.4 - 0.2, "got -0.2 to 1.2: Normalize with the mean and std"),
        (lambda x: x / 255, "got 0 to 0.003.*: were they divided by 255 twice"),
    ],
)
def test_other_ranges_are_warned_of(small_model, use, values, message):
    images = torch.rand(20, 1, 8, 8)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.warns(UserWarning, match=message):
        uses(small_model)[use](values(images))
    if use == "forward":
        small_model(values(images))  # once


@pytest.mark.parametrize("use", ["forward", "measure", "complete"])
def test_images_in_the_range_are_taken_in_silence(small_model, use):
    images = torch.rand(2, 1, 8, 8)
    for given in (images, torch.zeros_like(images), images.round(), images * 1.002 - 0.001):
        uses(copy.deepcopy(small_model))[use](given)
        uses(copy.deepcopy(small_model).bfloat16())["forward"](given.bfloat16())


def test_the_range_is_read_once_per_model(small_model, monkeypatch):
    checked = []
    monkeypatch.setattr(
        type(small_model.tokenizer), "check_range", lambda self, images: checked.append(len(images))
    )
    keys = list(small_model.state_dict())
    for images in torch.rand(3, 2, 1, 8, 8):
        small_model(images)
    copy.deepcopy(small_model)(images)
    pickle.loads(pickle.dumps(small_model))(images)
    assert checked == [2]
    assert list(small_model.state_dict()) == keys


@needs_compiler
def test_a_compiled_step_does_not_read_the_range(small_model):
    small_model.measure(torch.rand(9, 1, 8, 8))
    small_model._has_seen_images = False
    compiled = torch.compile(small_model, backend="eager", fullgraph=True)
    compiled(torch.rand(2, 1, 8, 8)).backward()


def test_only_the_rows_that_are_kept_are_checked(small_model):
    images = torch.rand(2, 1, 8, 8)
    images[:, :, 4:] = float("nan")
    assert small_model.complete(images, 4).isfinite().all()
    assert small_model.complete(images, 0).isfinite().all()
