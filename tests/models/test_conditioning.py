import math
from math import nan

import numpy as np
import pytest
import torch
from helpers import STANDARD_ERRORS

from autoregressive_diffusion_pytorch.models.conditioning import Conditioning


def both(**kwargs):
    return Conditioning(8, **(dict(num_classes=3, dim_cond=5, num_cond_tokens=2) | kwargs))


def given(batch_size=4, length=6):
    return dict(labels=torch.arange(batch_size) % 3, cond=torch.randn(batch_size, length, 5))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def test_labels_become_several_embeddings_each():
    conditioning = Conditioning(8, num_classes=3, num_cond_tokens=2)
    condition = conditioning(labels=torch.tensor([2, 0, 2]))
    assert condition.keys() == {"prefix"}
    assert condition["prefix"].shape == (3, 2, 8)
    assert torch.equal(condition["prefix"][0], condition["prefix"][2])
    assert not torch.equal(condition["prefix"][0, 0], condition["prefix"][1, 0])
    assert not torch.equal(condition["prefix"][0, 0], condition["prefix"][0, 1])


def test_a_vector_is_a_sequence_of_one():
    conditioning = Conditioning(8, dim_cond=5)
    cond = torch.randn(4, 5)
    condition = conditioning(cond=cond)
    assert condition["prefix"].shape == (4, 1, 8)
    same(condition, conditioning(cond=cond[:, None]))


def test_vectors_come_before_the_label_or_by_cross_attention():
    conditions = given()
    before = both()(**conditions)
    assert {name: tuple(part.shape) for name, part in before.items()} == dict(prefix=(4, 8, 8))
    beside = both(cross_attend=True)(**conditions)
    assert {name: tuple(part.shape) for name, part in beside.items()} == dict(
        prefix=(4, 2, 8), memory=(4, 6, 8)
    )


@pytest.mark.parametrize("cross_attend", [False, True])
def test_masked_vectors_change_nothing(cross_attend):
    conditioning = both(cross_attend=cross_attend)
    conditions = given()
    mask = torch.rand(4, 6) < 0.5
    mask[:, 2] = True
    condition = conditioning(**conditions, cond_mask=mask)
    changed = torch.where(mask[..., None], conditions["cond"], nan)
    same(condition, conditioning(labels=conditions["labels"], cond=changed, cond_mask=mask))
    # what is left to read is the embedded vectors in their order, and nothing else
    name = "memory" if cross_attend else "prefix"
    for i in range(4):
        read = condition[name][i, :6][condition[f"{name}_mask"][i, :6]]
        torch.testing.assert_close(read, conditioning.proj_cond(conditions["cond"][i, mask[i]]))


def test_padding_comes_first_so_that_distances_to_the_tokens_stay():
    conditioning = both()
    conditions = given(1, 3)
    padded = torch.cat((conditions["cond"], torch.randn(1, 2, 5)), dim=1)
    mask = torch.tensor([[True, True, True, False, False]])
    condition = conditioning(labels=conditions["labels"], cond=padded, cond_mask=mask)
    assert condition["prefix_mask"].tolist() == [[False, False, True, True, True, True, True]]
    torch.testing.assert_close(condition["prefix"][:, 2:], conditioning(**conditions)["prefix"])


@pytest.mark.parametrize("cross_attend", [False, True])
def test_left_out_is_the_same_whatever_was_given(cross_attend):
    conditioning = both(cross_attend=cross_attend)
    dropped = torch.tensor([False, True, True, False])
    first, second = (conditioning(**given(), dropped=dropped) for _ in range(2))
    for name in first:
        assert torch.equal(first[name][1], first[name][2])
        assert torch.equal(first[name][1], second[name][1])
    # one embedding for no vector, and that of no label: as where nothing was given at all
    nothing = conditioning(dropped=torch.ones(1, dtype=torch.bool))
    name = "memory" if cross_attend else "prefix"
    read = first[name][1][first[f"{name}_mask"][1]]
    assert torch.equal(read, nothing[name][0])
    assert torch.equal(nothing[name][0, 0], conditioning.no_cond)
    assert torch.equal(nothing["prefix"][0, -2:], conditioning.label_embeds[-1])
    # a sequence without any vector is as none
    empty = conditioning(**given(1), cond_mask=torch.zeros(1, 6, dtype=torch.bool))
    assert torch.equal(empty[name][0][empty[f"{name}_mask"][0]][0], conditioning.no_cond)


def test_those_kept_are_untouched_by_those_left_out():
    conditioning = both()
    conditions = given()
    kept = conditioning(**conditions, dropped=torch.tensor([False, True, True, False]))
    torch.testing.assert_close(kept["prefix"][[0, 3]], conditioning(**conditions)["prefix"][[0, 3]])
    assert kept["prefix_mask"][[0, 3]].all()


@pytest.mark.parametrize("cond_drop_prob", [0.1, 0.5])
def test_the_share_left_out_while_training(cond_drop_prob):
    conditioning = both(cond_drop_prob=cond_drop_prob)
    count = 20_000
    share = conditioning.draw_dropped(count).float().mean().item()
    allowed = STANDARD_ERRORS * math.sqrt(cond_drop_prob * (1 - cond_drop_prob) / count)
    assert share == pytest.approx(cond_drop_prob, abs=allowed)
    assert conditioning.eval().draw_dropped(count) is None
    assert both(cond_drop_prob=0.0).draw_dropped(count) is None
    assert Conditioning(8).draw_dropped(count) is None


def test_without_classes_and_vectors_there_is_nothing():
    conditioning = Conditioning(8)
    assert not conditioning.is_conditional
    assert list(conditioning.parameters()) == []
    assert conditioning.check(None, None, None) == {}
    assert conditioning() == {}


@pytest.mark.parametrize(
    "labels",
    [1, [1, 2], torch.tensor(1), np.array([1, 2], dtype=np.uint16), torch.tensor([1, 2]).char()],
)
def test_labels_of_several_kinds(labels):
    # more classes than 8 bits can count
    checked = Conditioning(8, num_classes=300).check(labels, None, None)["labels"]
    assert checked.dtype == torch.long
    assert checked.tolist() in ([1], [1, 2])


def test_vectors_of_several_kinds():
    conditioning = Conditioning(8, dim_cond=2)
    for cond in ([[0.5, 1.0]], np.array([[0.5, 1.0]]), torch.tensor([[0.5, 1.0]]).double()):
        checked = conditioning.check(None, cond, None)["cond"]
        assert checked.dtype == torch.float32
        assert checked.tolist() == [[0.5, 1.0]]
    assert conditioning.check(None, [[[0.5, 1.0]]], [[True]])["cond_mask"].tolist() == [[True]]


@pytest.mark.parametrize(
    ("kwargs", "conditions", "error", "message"),
    [
        (
            {},
            dict(labels=torch.tensor([0])),
            ValueError,
            "labels are given to a model without classes",
        ),
        (
            {},
            dict(cond=torch.zeros(1, 5)),
            ValueError,
            "cond is given to a model that takes no vectors",
        ),
        (
            dict(num_classes=3),
            {},
            ValueError,
            "labels are missing: the model was made with num_classes = 3",
        ),
        (dict(num_classes=3), dict(labels=[0, 3]), ValueError, "labels must be from 0 to 2, got 3"),
        (dict(num_classes=3), dict(labels=[-1]), ValueError, "labels must be from 0 to 2, got -1"),
        (
            dict(num_classes=3),
            dict(labels=[[0]]),
            ValueError,
            r"labels must be of shape \(b,\) with b >= 1, got \(1, 1\)",
        ),
        (
            dict(num_classes=3),
            dict(labels=[0.5]),
            TypeError,
            "labels must be whole numbers, got torch.float32",
        ),
        (
            dict(num_classes=3),
            dict(labels=[True]),
            TypeError,
            "labels must be whole numbers, got torch.bool",
        ),
        (
            dict(num_classes=3),
            dict(labels="rose"),
            TypeError,
            "labels must be a tensor, or numbers that make one, got 'rose'",
        ),
        (
            dict(dim_cond=5),
            dict(cond=[[1.0], [1.0, 2.0]]),
            TypeError,
            "cond must be a tensor, or numbers that make one",
        ),
        (dict(dim_cond=5), {}, ValueError, "cond is missing: the model was made with dim_cond = 5"),
        (
            dict(dim_cond=5),
            dict(cond=torch.zeros(2, 4)),
            ValueError,
            r"cond must be of shape \(b 5\) or \(b m 5\), got \(2, 4\)",
        ),
        (dict(dim_cond=5), dict(cond=torch.zeros(2, 0, 5)), ValueError, r"got \(2, 0, 5\)"),
        (dict(dim_cond=5), dict(cond=torch.zeros(5)), ValueError, r"got \(5,\)"),
        (
            dict(dim_cond=5),
            dict(cond=torch.zeros(2, 5).long()),
            TypeError,
            "cond must hold real numbers, got torch.int64",
        ),
        (
            dict(dim_cond=5),
            dict(cond=torch.zeros(2, 3, 5), cond_mask=torch.ones(2, 4).bool()),
            ValueError,
            r"cond_mask must be of shape \(b m\) for a cond of shape \(b m 5\), "
            r"got \(2, 4\) for \(2, 3, 5\)",
        ),
        (
            dict(dim_cond=5),
            dict(cond=torch.zeros(2, 5), cond_mask=torch.ones(2).bool()),
            ValueError,
            "cond_mask must be of shape",
        ),
        (
            dict(dim_cond=5),
            dict(cond=torch.zeros(2, 3, 5), cond_mask=torch.ones(2, 3)),
            TypeError,
            "cond_mask must hold booleans, True for vectors to read, got torch.float32",
        ),
    ],
)
def test_bad_conditions(kwargs, conditions, error, message):
    with pytest.raises(error, match=message):
        Conditioning(8, **kwargs).check(
            *(conditions.get(name) for name in ("labels", "cond", "cond_mask"))
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (dict(dim_cond=2.5), "dim_cond must be a whole number of at least 1, got 2.5"),
        (dict(num_cond_tokens=0), "num_cond_tokens must be"),
        (dict(cond_drop_prob=1.0), "cond_drop_prob must be at least 0 and below 1, got 1.0"),
        (dict(cond_drop_prob=-0.1), "cond_drop_prob must be"),
        (dict(num_classes=3, cross_attend=True), "cross_attend = True needs dim_cond"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Conditioning(8, **kwargs)
