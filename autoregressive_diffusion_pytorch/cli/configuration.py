"""The configuration of a new run: defaults by size and source, and where the options stand."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .run import sequence_model_class_of

if TYPE_CHECKING:
    from torch.utils.data import Dataset

# sizes of the model, each with its learning rate
SIZES = {
    "tiny": dict(dim=128, depth=4, heads=4, mlp_width=128, mlp_depth=3, learning_rate=2e-3),
    "small": dict(dim=256, depth=6, heads=4, mlp_width=384, mlp_depth=3, learning_rate=1e-3),
    "base": dict(dim=512, depth=12, heads=8, mlp_width=768, mlp_depth=3, learning_rate=5e-4),
    "large": dict(dim=1024, depth=24, heads=16, mlp_width=1024, mlp_depth=6, learning_rate=3e-4),
}
# defaults for what is built in, and for a folder of images or sequences
SHARED = dict(num_noise_draws=2)
DIGITS = SHARED | dict(
    size="tiny", image_size=8, patch_size=2, channels=1, batch_size=32, num_train_steps=2000
)
FOLDER = SHARED | dict(
    size="small", image_size=64, patch_size=8, channels=3, batch_size=16, num_train_steps=50000
)
# of a cache of `ardiff encode`, which knows the size of the images
LATENTS = FOLDER | dict(patch_size=1)
# so few sequences that "tiny" learns them by heart
SPEECH = dict(
    **dict(dim=64, depth=2, heads=4, mlp_width=64, mlp_depth=2, learning_rate=2e-3),
    num_noise_draws=4,
    batch_size=32,
    num_train_steps=1500,
    dropout=0.3,
    input_noise=0.1,
)
SEQUENCES = SHARED | dict(
    size="small", batch_size=16, num_train_steps=50000, dropout=0.0, input_noise=0.0
)
# and for other orders than raster, whose gradients are noisier (4 draws: Li et al. 2024)
ANY_ORDER = dict(num_noise_draws=4)
HIGHEST_RATE = 1e-3
# where the options stand in the configuration
RUN = ("head", "order", "seed", "workers", "precision", "accumulate", "compile", "hold_out")
IMAGES = ("image_size", "patch_size", "channels")
MODEL = ("dim", "depth", "heads", "mlp_depth", "mlp_width")
DATASET = (
    *("labels_from_folders", "augment_horizontal_flip", "cache_in_memory", "skip_damaged"),
    "max_pixels",
)
SEQUENCE_DATASET = ("labels_from_folders", "frame", "codec", "max_length")
# options of one kind of data alone
ONLY = dict(
    images={*IMAGES, *DATASET} - {"labels_from_folders"},
    sequences={"frame", "codec", "max_length", "predict_end", "dropout", "input_noise"},
)
NUM_RECENT = 3  # tokens that a model of sequences reads by a linear map
MARGIN = 1.25  # how much longer than the longest known sequence a sample may be
TRAINER = (
    *("num_train_steps", "num_epochs", "max_minutes", "batch_size"),
    *("learning_rate", "lr_schedule", "max_grad_norm", "nonfinite", "gradient_checkpointing"),
    *("save_results_every", "checkpoint_every", "keep_last", "log_with"),
)


def defaults_of(source: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options that are not given, by the source and the size of the model."""
    built_in = dict(digits=DIGITS, speech=SPEECH)
    by_kind = dict(images=FOLDER, latents=LATENTS, sequences=SEQUENCES)
    preset = built_in.get(source, by_kind[kind])
    if options["num_epochs"] is not None:
        preset = preset | dict(num_train_steps=None)
    size = options["size"] or preset.get("size")
    defaults = preset | SIZES.get(size, {})
    if options["order"] != "raster":
        defaults |= ANY_ORDER | dict(learning_rate=min(defaults["learning_rate"], HIGHEST_RATE))
    return {name: value for name, value in defaults.items() if options.get(name) is None}


def options_of_cache(source: str, has_labels: bool) -> dict[str, Any]:
    """The options that a cache of latents has decided.

    Args:
        has_labels: whether labels are asked for.

    Raises:
        ValueError: it holds none; or it is damaged.
    """
    from ..data.latents import read_cache

    cache = read_cache(source)
    if has_labels and cache["classes"] is None:
        raise ValueError(f"{source} holds no labels: `ardiff encode --labels` keeps them")
    return cache["dataset"] | {name: cache[name] for name in ("image_size", "channels")}


def configuration(source: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run, by its sections; what the data decide is still missing."""
    from ..heads.head import head_class

    def section(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: options[name] for name in names}

    config = dict(kind=kind, source=source, **section(RUN), classes=None, teacher=None)
    config |= {"from": None, "freeze": []}
    cls = sequence_model_class_of(config)
    arguments = head_class(options["head"]).argument_names()
    head_kwargs = section(("num_noise_draws",)) if "num_noise_draws" in arguments else {}
    own = {} if cls.preset else dict(head=options["head"])
    if options["order"] == "random":
        own |= dict(order="random")
    model = section(MODEL) | own | {cls.head_argument(): head_kwargs}
    config["trainer"] = dict(
        **section(TRAINER), adam_kwargs=dict(weight_decay=options["weight_decay"]), num_samples=64
    )
    if kind != "sequences":
        from ..models.image import CONTEXT_DROP_PROB

        model |= dict(context_drop_prob=CONTEXT_DROP_PROB)
        config["model"] = dict(**section(IMAGES), num_classes=None, model=model)
        config["dataset"] = section(DATASET)
        return config
    dropout = options["dropout"]
    regularized = dict(decoder_kwargs=dict(attn_dropout=dropout, ff_dropout=dropout))
    config["model"] = model | (regularized if dropout else {})
    config["model"] |= dict(num_classes=None, input_noise=options["input_noise"])
    if options["order"] == "raster":
        config["model"] |= dict(predict_end=options["predict_end"], num_recent=NUM_RECENT)
    config["dataset"] = section(SEQUENCE_DATASET)
    return config


def fit_to_data(config: dict[str, Any], dataset: Dataset, classes: list[str] | None) -> None:
    """Completes a configuration by what the dataset says."""
    from ..data.sequence_files import SequenceFormat
    from ..data.sequences import SequenceItems

    model = config["model"]
    config["classes"], model["num_classes"] = classes, classes and len(classes)
    if config["kind"] == "latents":
        model["autoencoder"] = dataset.facts["autoencoder"]
    if config["kind"] != "sequences":
        return
    # how sequences are kept in files, for samples
    kept = getattr(dataset, "format", SequenceFormat(".npy"))
    config["format"] = asdict(kept)
    items = SequenceItems(dataset)
    lengths = items.lengths()
    longest = max(lengths)
    if "predict_end" in model:
        if model["predict_end"] is None:
            is_whole = lengths == getattr(dataset, "whole_lengths", lengths)
            model["predict_end"] = len(set(lengths)) > 1 and is_whole
        if model["predict_end"]:
            longest = config["dataset"]["max_length"] or math.ceil(MARGIN * longest)
    model |= dict(dim_input=items[0]["seq"].shape[1], max_seq_len=longest)
