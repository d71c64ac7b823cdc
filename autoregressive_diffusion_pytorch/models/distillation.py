"""A trained model with another head: its transformer stays, and a new head learns from the old."""

from __future__ import annotations

from typing import Any, TypeVar

from ..heads.head import Head
from .image import ImageAutoregressive
from .presets import image_model_class, sequence_model_class
from .sequence_model import SequenceModel

Model = TypeVar("Model", SequenceModel, ImageAutoregressive)

HEAD_ARGUMENTS = {"head", "model_output_clean"}  # of sequence models, beside those by its name


def distilled(
    teacher: Model, head: str | type[Head], head_kwargs: dict[str, Any] | None = None
) -> Model:
    """A model to train, of the transformer of a trained one and a new head.

    The head learns the same conditions' tokens, from those of the data, or as `Head.imitate` says
    from the teacher's head. All other weights are the teacher's, and are not trained.

    Args:
        teacher: the trained model, which stays as it is.
        head, head_kwargs: as of `SequenceModel`.
    """
    arguments, sequences = teacher.config, teacher
    if isinstance(teacher, ImageAutoregressive):
        sequences = teacher.model
        cls = image_model_class(head, sequences.order)
        own = _with_head(arguments["model"], sequences, cls.model_class, head, head_kwargs)
        arguments |= dict(model=own)
    else:
        cls = sequence_model_class(head, sequences.order)
        arguments = _with_head(arguments, sequences, cls, head, head_kwargs)
    student = cls(**arguments)
    student.generation = teacher.generation
    weights = teacher.state_dict()
    is_of_head = {name: name.removeprefix("model.").startswith("head.") for name in weights}
    shared = {name: weight for name, weight in weights.items() if not is_of_head[name]}
    student.load_state_dict(student.state_dict() | shared)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in shared)
    student.head.imitate(sequences.head)
    return student


def _with_head(
    arguments: dict[str, Any],
    teacher: SequenceModel,
    cls: type[SequenceModel],
    head: str | type[Head],
    head_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """A sequence model's arguments, with those of another head."""
    dropped = HEAD_ARGUMENTS | {teacher.head_argument()}
    kept = {name: value for name, value in arguments.items() if name not in dropped}
    named = {} if cls.preset else dict(head=head)
    return kept | named | {cls.head_argument(): dict(head_kwargs or {})}
