"""What `evaluate` and `tune` share: images to compare with, features, and files of results."""

from __future__ import annotations

from itertools import count as count_up
from pathlib import Path
from typing import Any

import click

from .run import checkpoint_of, output_file, split
from .sources import check_source, dataset_of, images_of_cache, is_built_in


def checkpoint_and_output(
    run_folder: Path, step: int | None, output: Path | None, name: str, ending: str
) -> tuple[Path, Path]:
    """The folder of a checkpoint, and the file for a result on it, which can be written."""
    from ..utils.manifests import step_of

    folder = checkpoint_of(run_folder, step)
    stem = f"{name}.{step_of(folder)}"
    names = (f"evaluation/{stem}{'' if i == 1 else f'-{i}'}{ending}" for i in count_up(1))
    # beside earlier ones
    default = next(name for name in names if not (run_folder / name).exists())
    return folder, output_file(run_folder, output, default, ending)


def data_of(config: dict[str, Any], source: str | None, count: int | None):
    """What to measure on, by default what was held out; labelled as the run labels it."""
    from torch.utils.data import Subset

    source_of_run = source is None
    if config["kind"] == "latents":
        source = None if source == config["source"] else source
        config = images_of_cache(config) if source is None else config | dict(kind="images")
    source = config["source"] if source is None else source
    if source == config["source"]:
        check_source(config)
    dataset, classes = dataset_of(config, source)
    if hasattr(dataset, "without_augmentation"):
        dataset = dataset.without_augmentation()
    unknown = [name for name in classes or [] if name not in config["classes"]]
    if unknown:
        raise click.ClickException(
            f"{source} has classes that the run does not know: {', '.join(unknown)}"
        )
    if classes is not None and not is_built_in(source):
        dataset.class_to_idx = {name: i for i, name in enumerate(config["classes"])}
    if source_of_run:
        _, dataset = split(dataset, config)
        if dataset is None:
            raise click.ClickException(
                f"the run held out no {config['kind']}: name a folder of some that it was not "
                "trained on"
            )
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // count for i in range(count)])


def feature_network(features: str, model, device):
    """The network of the option --features, None for none."""
    import torch

    from ..evaluation.metrics import Inception, load_feature_network

    if features == "none":
        return None
    if features != "inception":
        network = load_feature_network(features).to(device)
        height, width = model.image_size
        for count in (2, 3):
            try:
                network(torch.zeros(count, 3, height, width, device=device))
            except (RuntimeError, ValueError) as error:
                raise click.ClickException(
                    f"{features} does not take ({count} 3 {height} {width}) images: {error}"
                ) from error
        return network
    try:
        return Inception().to(device)
    except OSError as error:
        raise click.ClickException(
            f"the weights of Inception cannot be downloaded: {error}\n"
            "--features takes another network, or none"
        ) from error
