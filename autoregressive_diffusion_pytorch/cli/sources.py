"""What a run is trained on: folders, caches of latents, and what is built in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import one_line_errors

if TYPE_CHECKING:
    from torch.utils.data import Dataset

BUILT_IN = {"digits": "images", "speech": "sequences"}  # to train on, and their kinds
SPEECH_PARTS = {"speech": "train", "speech-test": "test"}


def is_built_in(source: str) -> bool:
    return source in BUILT_IN or source in SPEECH_PARTS


def absolute(source: str) -> str:
    """A source by its whole path: the run may be resumed from elsewhere."""
    return source if is_built_in(source) else str(Path(source).resolve())


def kind_of(source: str) -> str:
    """What a source holds, "images", "latents" or "sequences"; one with any image holds images."""
    from ..data.folder_listing import list_folder
    from ..data.latents import is_cache
    from ..data.sequence_files import ENDINGS

    if source in BUILT_IN:
        return BUILT_IN[source]
    if is_cache(source):
        return "latents"
    if not Path(source).is_dir() or list_folder(source, only_first=True).images:
        return "images"
    return "sequences" if list_folder(source, ENDINGS, only_first=True).images else "images"


def dataset_of(
    config: dict[str, Any], source: str | None = None
) -> tuple[Dataset, list[str] | None]:
    """The data of a run, or of another source, and the names of their classes if it has any."""
    from torch.utils.data import TensorDataset

    from ..data.digits import digits
    from ..data.image_folder import ImageDataset
    from ..data.latents import LatentDataset

    options, source = config["dataset"], source or config["source"]
    has_labels = options["labels_from_folders"]
    if config["kind"] == "sequences":
        return _sequences_of(source, options)
    with one_line_errors():
        if config["kind"] == "latents":
            dataset = LatentDataset(source)
            return dataset, dataset.classes
        if source == "digits":
            images, labels = digits()
            return (
                (TensorDataset(images, labels), list("0123456789"))
                if has_labels
                else (images, None)
            )
        size, channels = config["model"]["image_size"], config["model"]["channels"]
        dataset = ImageDataset(source, size, channels=channels, **options)
        return dataset, dataset.classes if has_labels else None


def images_of_cache(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run on latents, as of one on the images that they were made of."""
    from ..data.latents import read_cache

    with one_line_errors():
        return config | dict(kind="images", source=read_cache(config["source"])["source"])


def _sequences_of(source: str, options: dict[str, Any]) -> tuple[Dataset, list[str] | None]:
    from ..data.sequence_folder import SequenceFolder
    from ..data.speech import SPEAKERS, speech

    with one_line_errors():
        if source not in SPEECH_PARTS:
            dataset = SequenceFolder(source, **options)
            return dataset, dataset.classes
        utterances, speakers = speech(SPEECH_PARTS[source])
        if not options["labels_from_folders"]:
            return utterances, None
        return list(zip(utterances, speakers.tolist(), strict=True)), list(SPEAKERS)


def check_source(config: dict[str, Any]) -> None:
    """Whether the data of a run are where they were."""
    source = config["source"]
    if not is_built_in(source) and not Path(source).is_dir():
        raise click.ClickException(
            f"folder {source} of the run's {config['kind']} does not exist: "
            "`ardiff resume RUN --source FOLDER` says where they are now"
        )
