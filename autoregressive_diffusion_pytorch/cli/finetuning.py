"""What `ardiff train --from` takes from a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .configuration import MODEL, SIZES
from .options import one_line_errors
from .run import INITIAL
from .training import start_run

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..models.image import ImageAutoregressive
    from ..models.sequence_model import SequenceModel


class TrainedModel:
    """A trained model to start from: its folder, a checkpoint, a run, or a name on the Hub.

    Args:
        name: of the model.
        kind: what it is to be trained on, "images", "latents" or "sequences".
    """

    def __init__(self, name: str, kind: str):
        from ..models.image import ImageAutoregressive
        from ..models.presets import load_pretrained

        folder = Path(name)
        self.name = str(folder.resolve()) if folder.exists() else name
        with one_line_errors():
            model = load_pretrained(name)
            self.classes = _classes_of(folder)
        self.is_of_images = isinstance(model, ImageAutoregressive)
        own_kind = "images" if self.is_of_images else "sequences"
        if model.config.get("autoencoder"):
            own_kind = "latents"
        if kind != own_kind:
            raise click.ClickException(f"{name} is a model of {own_kind}, SOURCE holds {kind}")
        self.model = as_commands_make_it(model)
        self.sequences = self.model.model if self.is_of_images else self.model

    def told(self) -> str:
        """What a model of images draws, in words."""
        height, width = self.model.image_size
        return f"{height} x {width} pixels in {self.model.channels} channels"

    def own_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options that follow from the model, in place of what was not given.

        Raises:
            click.UsageError: what was given contradicts it.
        """
        from ..heads.head import head_name

        config = self.sequences.config
        own = {name: config[name] for name in MODEL}
        own["mlp_width"] = own["mlp_width"] or own["dim"]
        own |= dict(head=head_name(type(self.sequences.head)), order=self.sequences.order)
        if self.is_of_images:
            own |= dict(channels=self.model.channels, patch_size=_one_side(self.model.patch_size))
        else:
            own |= dict(dropout=(config["decoder_kwargs"] or {}).get("ff_dropout", 0.0))
        context = click.get_current_context()
        if given["size"] is not None:
            raise click.UsageError("--size is of a new model: that of --from has its own")
        for name, value in own.items():
            is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if is_given and given[name] != value:
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(
                    f"{flag} {given[name]} contradicts the model of --from, which has {value}"
                )
        # the learning rate is that of a new model of about the width
        own["size"] = min(SIZES, key=lambda name: abs(SIZES[name]["dim"] - own["dim"]))
        defaults = dict(num_noise_draws=getattr(self.sequences.head, "num_noise_draws", None))
        if self.is_of_images:
            defaults |= dict(image_size=_one_side(self.model.image_size))
        return own | {name: value for name, value in defaults.items() if given[name] is None}

    def start_run(
        self, config: dict[str, Any], dataset: Dataset, run_folder: Path, freeze: tuple[str, ...]
    ) -> None:
        """Trains a run that starts with the model, adapted to the data."""
        from ..models.finetuning import finetuned
        from ..utils.rng import seed_process

        seed_process(config["seed"], rank=0)  # for new weights
        with one_line_errors((ValueError, TypeError)):
            old_labels = self._old_labels(config["classes"])
            changes = self._changes(config["model"])
            model = finetuned(self.model, old_labels=old_labels, freeze=freeze, **changes)
        config |= {"model": model.config, "from": self.name, "freeze": list(freeze)}

        def write(folder: Path) -> None:
            model.save_pretrained(folder / INITIAL)
            if model.generation.given():
                model.generation.save(folder)

        start_run(config, dataset, run_folder, model=model, write=write)

    def _changes(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The arguments that change, of those of a new model for the data."""
        changes = dict(num_classes=asked["num_classes"])
        argument = self.sequences.head_argument()
        if self.is_of_images:
            if asked["image_size"] != _one_side(self.model.image_size):
                changes |= dict(image_size=asked["image_size"])
            own, other = self.model.config.get("autoencoder"), asked.get("autoencoder")
            if own != other:
                raise ValueError(
                    f"SOURCE holds latents of {other}, the model of --from is for those of {own}"
                )
            return changes | dict(model={argument: asked["model"][argument]})
        if asked["dim_input"] != self.model.dim_input:
            raise ValueError(
                f"SOURCE holds tokens of {asked['dim_input']} numbers, the model of --from is for "
                f"{self.model.dim_input}"
            )
        if asked["max_seq_len"] > self.model.max_seq_len:
            changes |= dict(max_seq_len=asked["max_seq_len"])
        if "predict_end" in asked:
            changes |= dict(predict_end=asked["predict_end"])
        return changes | {argument: asked[argument]}

    def _old_labels(self, classes: list[str] | None) -> list[int | None] | None:
        """Of each class its label in the trained model, None for a new one; None for all as is."""
        count = self.sequences.conditioning.num_classes
        if classes is None or count is None:
            return None
        names = self.classes or []
        if len(names) != count:
            click.echo(
                f"the {count} classes of {self.name} have no names: they are taken in their order",
                err=True,
            )
            return [label if label < count else None for label in range(len(classes))]
        places = {name: label for label, name in enumerate(names)}
        return [places.get(name) for name in classes]


def as_commands_make_it(
    model: ImageAutoregressive | SequenceModel,
) -> ImageAutoregressive | SequenceModel:
    """A model of the class that `ardiff` has for its head and order: Python knows others."""
    from ..heads.head import head_name
    from ..models.image import ImageAutoregressive
    from ..models.presets import image_model_class

    is_of_images = isinstance(model, ImageAutoregressive)
    sequences = model.model if is_of_images else model
    image_class = image_model_class(head_name(type(sequences.head)), sequences.order)
    cls = image_class if is_of_images else image_class.model_class
    if type(model) is cls:
        return model
    arguments = model.config
    own = dict(arguments["model"]) if is_of_images else arguments
    own[image_class.model_class.head_argument()] = own.pop(sequences.head_argument())
    own.pop("head")
    same = cls(**arguments | dict(model=own)) if is_of_images else cls(**own)
    same.load_state_dict(model.state_dict())
    same.generation = model.generation
    return same


def _one_side(size: tuple[int, int]) -> int | tuple[int, int]:
    """One number for a square, as in options."""
    return size[0] if size[0] == size[1] else size


def _classes_of(folder: Path) -> list[str] | None:
    """The names of a model's classes, as exported or from its run, None if unknown."""
    from ..models.hub import class_names

    if (names := class_names(folder)) is not None:
        return names
    for run in (folder, *folder.resolve().parents[:2]):
        if (run / "checkpoints").is_dir() and (run / "config.json").is_file():
            try:
                return json.loads((run / "config.json").read_text()).get("classes")
            except (OSError, ValueError, AttributeError):
                return None
    return None
