"""What `ardiff train --from` takes from a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .options import one_line_errors
from .run import INITIAL
from .training import start_run

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..models.image import ImageAutoregressive

OF_SEQUENCES = ("dim", "depth", "heads", "mlp_depth", "mlp_width")


class TrainedModel:
    """A trained model to start from: its folder, a checkpoint, a run, or a name on the Hub."""

    def __init__(self, name: str):
        from ..models.image import ImageAutoregressive
        from ..models.presets import load_pretrained

        folder = Path(name)
        self.name = str(folder.resolve()) if folder.exists() else name
        with one_line_errors():
            model = load_pretrained(name)
        if not isinstance(model, ImageAutoregressive):
            raise click.ClickException(
                f"{name} is a model of sequences, a {type(model).__name__}: expected one of images"
            )
        self.model = as_commands_make_it(model)
        self.classes = _classes_of(folder)

    def told(self) -> str:
        """What the model draws, in words."""
        height, width = self.model.image_size
        return f"{height} x {width} pixels in {self.model.channels} channels"

    def own_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options that follow from the model, in place of what was not given.

        Raises:
            click.UsageError: what was given contradicts it.
        """
        from ..heads.head import head_name

        config = self.model.config
        own = {name: config["model"][name] for name in OF_SEQUENCES}
        own["mlp_width"] = own["mlp_width"] or own["dim"]
        own |= dict(head=head_name(type(self.model.head)), order=self.model.model.order)
        own |= dict(channels=self.model.channels, patch_size=_one_side(self.model.patch_size))
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
        defaults = dict(image_size=_one_side(self.model.image_size))
        draws = getattr(self.model.head, "num_noise_draws", None)
        defaults |= {} if draws is None else dict(num_noise_draws=draws)
        return own | {name: value for name, value in defaults.items() if given[name] is None}

    def nearest(self, sizes: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """That of the sizes of new models whose width is nearest, for its learning rate."""
        dim = self.model.config["model"]["dim"]
        return min(sizes, key=lambda size: abs(size["dim"] - dim))

    def start_run(
        self, config: dict[str, Any], dataset: Dataset, run_folder: Path, freeze: tuple[str, ...]
    ) -> None:
        """Trains a run that starts with the model, adapted to the images."""
        from ..models.finetuning import finetuned
        from ..utils.rng import seed_process

        asked = config["model"]
        changes = dict(num_classes=asked["num_classes"])
        if asked["image_size"] != _one_side(self.model.image_size):
            changes |= dict(image_size=asked["image_size"])
        argument = self.model.model.head_argument()
        if asked["model"][argument]:
            changes |= dict(model={argument: asked["model"][argument]})
        seed_process(config["seed"], rank=0)  # for new weights
        with one_line_errors((ValueError, TypeError)):
            old_labels = self._old_labels(config["classes"])
            model = finetuned(self.model, old_labels=old_labels, freeze=freeze, **changes)
        config |= {"model": model.config, "from": self.name, "freeze": list(freeze)}

        def write(folder: Path) -> None:
            model.save_pretrained(folder / INITIAL)
            if model.generation.given():
                model.generation.save(folder)

        start_run(config, dataset, run_folder, model=model, write=write)

    def _old_labels(self, classes: list[str] | None) -> list[int | None] | None:
        """Of each class its label in the trained model, None for a new one; None for all as is."""
        count = self.model.num_classes
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


def as_commands_make_it(model: ImageAutoregressive) -> ImageAutoregressive:
    """A model of the class that `ardiff` has for its head and order: Python knows others."""
    from ..heads.head import head_name
    from ..models.presets import image_model_class

    head = head_name(type(model.head))
    cls = image_model_class(head, model.model.order)
    if type(model) is cls:
        return model
    arguments = model.config
    own = arguments["model"]
    own[cls.model_class.head_argument()] = own.pop(model.model.head_argument())
    same = cls(**arguments | dict(model={name: own[name] for name in own if name != "head"}))
    same.load_state_dict(model.state_dict())
    same.generation = model.generation
    return same


def _one_side(size: tuple[int, int]) -> int | tuple[int, int]:
    """One number for a square, as in options."""
    return size[0] if size[0] == size[1] else size


def _classes_of(folder: Path) -> list[str] | None:
    """The names of a model's classes, from the configuration of its run, None if unknown."""
    for run in (folder, *folder.resolve().parents[:2]):
        if (run / "checkpoints").is_dir() and (run / "config.json").is_file():
            try:
                return json.loads((run / "config.json").read_text()).get("classes")
            except (OSError, ValueError, AttributeError):
                return None
    return None
