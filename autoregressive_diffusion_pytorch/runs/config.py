"""The configuration of a run, checked as it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ORDERS = ("raster", "random", "masked")


def read_config(run_folder: Path) -> dict[str, Any]:
    """The configuration of a run, with what earlier versions did not write.

    Whether its head can be imported is not asked here: to look at a run needs no torch.

    Raises:
        ValueError: if the folder holds none, or one that the commands cannot read.
    """
    file = run_folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{run_folder} holds no config.json: it is not the folder of a run{_nearby(run_folder)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    _check_config(file, config)
    # of runs of earlier versions, which had no such options
    defaults = dict(classes=None, accumulate=1, compile=False, hold_out=0.0, num_images=None)
    defaults |= dict(used_precision=config["precision"], teacher=None, order="raster")
    defaults |= {"kind": "images", "from": None, "freeze": []}
    model = config["model"]
    if "model" in model:
        model |= dict(model=dict(context_drop_prob=0.0) | model["model"])
    dataset = dict(labels_from_folders=False) | config["dataset"]
    config = defaults | config | dict(dataset=dataset, model=model)
    for name, kind in OPTIONAL_KEYS.items():
        if not isinstance(config[name], kind):
            raise ValueError(f"{file}: {name!r} must not be {config[name]!r}")
    if config["order"] not in ORDERS:
        raise ValueError(f"{file}: 'order' must not be {config['order']!r}")
    return config


OPTIONAL_KEYS = dict(
    classes=list | None,
    accumulate=int,
    compile=bool,
    hold_out=int | float,
    num_images=int | None,
    teacher=str | None,
    order=str,
    kind=str,
    freeze=list,
) | {"from": str | None}
# what the configuration of any version holds, by section
KEYS = {
    (): dict(source=str, head=str, seed=int, workers=int, precision=str)
    | dict.fromkeys(("model", "dataset", "trainer"), dict),
    ("trainer",): dict(batch_size=int, learning_rate=float | int, lr_schedule=str),
}
# and that of a kind
MODEL_KEYS = dict(
    images=dict(image_size=(int, list), patch_size=(int, list), channels=int, model=dict),
    sequences=dict(dim_input=int, max_seq_len=(int, list)),
)
MODEL_KEYS["latents"] = MODEL_KEYS["images"] | dict(autoencoder=str)


def _check_config(file: Path, config: Any) -> None:
    """Whether a configuration holds what the commands read."""
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold keys and values, got {config!r}")
    kind = config.get("kind", "images")
    if kind not in list(MODEL_KEYS):
        raise ValueError(f"{file}: 'kind' must not be {kind!r}")
    for section, keys in (*KEYS.items(), (("model",), MODEL_KEYS[kind])):
        values = config
        for key in section:
            values = values[key]
        for key, kind in keys.items():
            name = ".".join((*section, key))
            if key not in values:
                message = f"{file} lacks the key {name!r}{_nearby(file.parent)}"
                raise ValueError(message)
            if not isinstance(values[key], kind):
                raise ValueError(f"{file}: {name!r} must not be {values[key]!r}")


def _nearby(folder: Path) -> str:
    """A hint for who names a checkpoint, or the folder of checkpoints, instead of the run."""
    for parent in (folder.parent, folder.parent.parent):
        if (parent / "config.json").is_file() and (parent / "checkpoints").is_dir():
            return f"; that is {parent}"
    return ""
