"""A trained model with other arguments: its weights stay, and what is new is made to fit them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from ..utils.validation import check_known
from .conditioning import Conditioning
from .image import ImageAutoregressive
from .positions import AxialPositions
from .sequence_model import SequenceModel
from .settings import GenerationSettings

Model = TypeVar("Model", SequenceModel, ImageAutoregressive)

# arguments that leave the weights their meaning
CHANGEABLE = {
    *("num_classes", "dim_cond", "image_size", "max_seq_len", "num_noise_draws"),
    *("cond_drop_prob", "context_drop_prob", "train_max_noise", "input_noise"),
    *("min_mask_ratio", "mask_ratio_std", "anneal_to_raster", "predict_end"),
}


def finetuned(
    model: Model,
    /,
    *,
    old_labels: Sequence[int | None] | None = None,
    freeze: Sequence[str] = (),
    **arguments: Any,
) -> Model:
    """A model to train, of the weights of a trained one and with other arguments.

    All weights and buffers are the trained model's, but for these:

    - **Classes.** A class keeps its embedding, and the null condition is the same; a new class
      starts from the mean of the old ones. Of a model that had none, all are new.
    - **Positions** of images of another size are interpolated along each axis, so that a place in
      the image keeps its meaning. Those of sequences count from the first token: the first ones are
      kept, and further ones are new.
    - What `dim_cond`, `predict_end` or a `context_drop_prob` above 0 asks for is new, where there
      was none.

    Args:
        model: the trained model, which stays as it is.
        old_labels: of each class of the new model its label in the trained one, None for a new
            class. By default each class keeps its label, and new ones follow.
        freeze: parts that are not trained, as of `freeze_parts`.
        arguments: those of the constructor that change: `num_classes`, `image_size` or
            `max_seq_len`, `dim_cond`, and shares and ratios of the training. Arguments of the
            sequence model of images stand in `model`, as in the constructor.

    Raises:
        ValueError: an argument is of the weights, and cannot change: another head, order, width or
            patch size; or labels or parts are not there.
        TypeError: the constructor has no such argument.
    """
    if old_labels is not None:
        arguments = dict(num_classes=len(old_labels)) | arguments
    new = type(model)(**_changed(model.config, arguments))
    counts = (_sequences(one).conditioning.num_classes for one in (model, new))
    labels = _checked_labels(old_labels, *counts)
    new.generation = _settings(model.generation, _sequences(new))
    new.load_state_dict(_adapted(model, new, labels))
    freeze_parts(new, freeze)
    if "conditioning" in freeze and None in labels:
        raise ValueError("freeze must not name 'conditioning' where there are new classes to learn")
    return new.to(next(model.parameters()).device)


def freeze_parts(model: Module, parts: Sequence[str]) -> None:
    """Takes parts of a model out of its training.

    Args:
        parts: names of submodules and parameters of the sequence model, such as "backbone", "head",
            "proj_in" or "conditioning".

    Raises:
        ValueError: there is no such part, or nothing is left to train.
    """
    model = _sequences(model)
    known = dict(model.named_children()) | dict(model.named_parameters(recurse=False))
    for name in parts:
        if name not in known:
            raise ValueError(f"freeze must name parts among {', '.join(known)}; got {name!r}")
        known[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze leaves nothing to train: {', '.join(parts)}")


def _sequences(model: Module) -> SequenceModel:
    return model.model if isinstance(model, ImageAutoregressive) else model


def _changed(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model with some that change."""
    check_known("finetuned", changes, before)
    arguments = dict(before)
    for name, value in changes.items():
        if isinstance(before[name], dict) and isinstance(value, dict):
            value = _changed(before[name], value)
        elif name not in CHANGEABLE and not _same(value, before[name]):
            raise ValueError(
                f"{name} must stay {before[name]!r}, for which the weights were trained; "
                f"got {value!r}"
            )
        arguments[name] = value
    return arguments


def _same(a: Any, b: Any) -> bool:
    """Whether arguments are the same as JSON values, which know no tuples."""
    return json.dumps(a, default=repr) == json.dumps(b, default=repr)


def _checked_labels(
    old_labels: Sequence[int | None] | None, before: int | None, now: int | None
) -> list[int | None]:
    """Of each class its label in the trained model, None for a new one."""
    before, now = before or 0, now or 0
    if old_labels is None:
        if 0 < now < before:
            raise ValueError(
                f"num_classes = {now} leaves out classes of the {before}: old_labels says which "
                "ones stay"
            )
        return [label if label < before else None for label in range(now)]
    if len(old_labels) != now:
        raise ValueError(f"old_labels must be one per class, {now}, got {len(old_labels)}")
    for label in old_labels:
        if label is not None and not (type(label) is int and 0 <= label < before):
            raise ValueError(
                f"old_labels must be None or labels of the {before} classes that the model was "
                f"trained with, got {label!r}"
            )
    return list(old_labels)


def _settings(settings: GenerationSettings, model: SequenceModel) -> GenerationSettings:
    """Generation settings without guidance that a model cannot have."""
    plain = {}
    if not model.conditioning.is_conditional:
        plain |= dict(guidance_scale=1.0, guidance_schedule="constant", guidance_interval=None)
    if model.context_drop_prob == 0:
        plain |= dict(context_guidance=1.0)
    return dataclasses.replace(settings, **plain)


@torch.no_grad()
def _adapted(model: Module, new: Module, old_labels: list[int | None]) -> dict[str, Tensor]:
    """The weights and buffers of a new model, from those of a trained one."""
    tables, label_embeds, optional = set(), set(), []
    for name, module in (*model.named_modules(), *new.named_modules()):
        if isinstance(module, AxialPositions):
            tables |= {f"{name}.tables.{i}" for i in range(len(module.tables))}
        if isinstance(module, Conditioning):
            label_embeds.add(f"{name}.label_embeds")
            optional.append(f"{name}.")
        if name.rpartition(".")[2] in ("no_context", "end_head"):
            optional.append(f"{name}.")
    before, now = model.state_dict(), new.state_dict()
    for name in before.keys() ^ now.keys():
        if not name.startswith(tuple(optional)):
            raise ValueError(f"the weights {name} are of one of the two models alone")
    for name in before.keys() & now.keys():
        old = before[name]
        if name in label_embeds:  # (classes + 1, tokens, dim); the last is the null condition
            mean = old[:-1].mean(dim=0)
            rows = (mean if label is None else old[label] for label in old_labels)
            old = torch.stack((*rows, old[-1]))
        elif name in tables and old.shape != now[name].shape:
            resize = interpolated if isinstance(model, ImageAutoregressive) else _continued
            old = resize(old, now[name])
        if old.shape != now[name].shape:
            raise ValueError(
                f"the weights {name} cannot be taken: they are of shape {tuple(old.shape)}, and "
                f"{tuple(now[name].shape)} is needed"
            )
        now[name] = old
    return now


def interpolated(table: Tensor, like: Tensor) -> Tensor:
    """A table of positions (n dim) at the middles of as many places as another one has."""
    options = dict(size=len(like), mode="linear", align_corners=False)
    return F.interpolate(table.float().t().unsqueeze(0), **options)[0].t()


def _continued(table: Tensor, new: Tensor) -> Tensor:
    """The first entries of a table of positions, and those of a new one for what lies beyond."""
    return torch.cat((table[: len(new)], new[len(table) :].to(table)))
