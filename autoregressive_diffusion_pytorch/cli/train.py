"""`ardiff train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..heads import HEADS
from ..utils.text import printable
from .options import (
    COUNT,
    FACTOR,
    OUTPUT,
    POSITIVE,
    SEED,
    HeadType,
    add_options,
    flag,
    max_pixels_option,
    one_line_errors,
    option,
)
from .run import ORDERS, dataset_of, has_latents, model_class, new_run
from .training import check_apart, check_free, start_run

# sizes of the model, each with its learning rate
SIZES = {
    "tiny": dict(dim=128, depth=4, heads=4, mlp_width=128, mlp_depth=3, learning_rate=2e-3),
    "small": dict(dim=256, depth=6, heads=4, mlp_width=384, mlp_depth=3, learning_rate=1e-3),
    "base": dict(dim=512, depth=12, heads=8, mlp_width=768, mlp_depth=3, learning_rate=5e-4),
    "large": dict(dim=1024, depth=24, heads=16, mlp_width=1024, mlp_depth=6, learning_rate=3e-4),
}
# defaults for the digits and for a folder
SHARED = dict(num_noise_draws=2)
DIGITS = SHARED | dict(
    size="tiny", image_size=8, patch_size=2, channels=1, batch_size=32, num_train_steps=2000
)
FOLDER = SHARED | dict(
    size="small", image_size=64, patch_size=8, channels=3, batch_size=16, num_train_steps=50000
)
# for a cache of `ardiff encode`, which knows what is None
LATENTS = FOLDER | dict(patch_size=1, image_size=None, channels=None)
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
TRAINER = (
    *("num_train_steps", "num_epochs", "max_minutes", "batch_size"),
    *("learning_rate", "lr_schedule", "max_grad_norm", "nonfinite", "gradient_checkpointing"),
    *("save_results_every", "checkpoint_every", "keep_last", "log_with"),
)


def _by_source(name: str) -> str:
    return f"[default: {DIGITS[name]} for digits, {FOLDER[name]} for a folder]"


def _by_size(name: str) -> str:
    return f"[default: {', '.join(f'{size[name]:g} {key}' for key, size in SIZES.items())}]"


IMAGE_OPTIONS = add_options(
    option("--image-size", COUNT, f"Height and width of the images. {_by_source('image_size')}"),
    option("--patch-size", COUNT, f"Height and width of a token. {_by_source('patch_size')}"),
    option(
        "--channels",
        click.IntRange(1, 4),
        f"1 grey, 3 RGB, 2 and 4 with opacity. {_by_source('channels')}",
    ),
    option(
        "--labels/--no-labels",
        None,
        "Condition on labels: one class per folder in SOURCE, or the digits 0 to 9.",
        "labels_from_folders",
        default=False,
    ),
)
MODEL_OPTIONS = add_options(
    option(
        "--size",
        click.Choice(list(SIZES)),
        f"Of the model: sets the next six options. {_by_source('size')}",
    ),
    option("--dim", COUNT, f"Width of the transformer. {_by_size('dim')}"),
    option("--depth", COUNT, f"Layers of the transformer. {_by_size('depth')}"),
    option("--heads", COUNT, f"Attention heads of the transformer. {_by_size('heads')}"),
    option("--mlp-width", COUNT, f"Width of the head's network. {_by_size('mlp_width')}"),
    option("--mlp-depth", COUNT, f"Blocks of the head's network. {_by_size('mlp_depth')}"),
    option(
        "--learning-rate",
        POSITIVE,
        f"Highest one; in other orders than raster at most {HIGHEST_RATE:g}, unless given. "
        f"{_by_size('learning_rate')}",
    ),
    option(
        "--noise-draws",
        COUNT,
        f"Noise draws per token and step; {ANY_ORDER['num_noise_draws']} in other orders than "
        f"raster. {_by_source('num_noise_draws')}",
        "num_noise_draws",
    ),
)
LENGTH_OPTIONS = add_options(
    option("--steps", COUNT, f"Training steps. {_by_source('num_train_steps')}", "num_train_steps"),
    option(
        "--epochs",
        POSITIVE,
        "Train until each image was seen so often, instead of --steps.",
        "num_epochs",
    ),
    option("--minutes", POSITIVE, "End after this time, even if steps are left.", "max_minutes"),
    option("--batch-size", COUNT, f"Images per process and batch. {_by_source('batch_size')}"),
    option("--accumulate", COUNT, "Batches per step.", default=1),
)
# options that a cache has decided
OF_CACHE = (
    *("image_size", "channels", "augment_horizontal_flip", "skip_damaged", "max_pixels"),
    "cache_in_memory",
)
OPTIMIZER_OPTIONS = add_options(
    option(
        "--lr-schedule",
        click.Choice(["constant", "cosine"]),
        "Cosine falls to zero at the last step.",
        default="constant",
    ),
    option("--weight-decay", FACTOR, "Of the matrices.", default=0.02),
    option("--max-grad-norm", POSITIVE, "Clip gradients to this norm.", default=1.0),
    option(
        "--nonfinite",
        click.Choice(["stop", "skip"]),
        "At a step whose loss or gradient is not finite.",
        default="stop",
    ),
)
DATA_OPTIONS = add_options(
    option(
        "--hold-out",
        click.FloatRange(0, 1, max_open=True),
        "Share of the images to keep for the validation loss.",
        default=0.0,
    ),
    option(
        "--flip/--no-flip",
        None,
        "Mirror the images of a folder at random; those held out stay as they are.",
        "augment_horizontal_flip",
        default=False,
    ),
    flag(
        "--skip-damaged",
        "Leave out image files that cannot be read: by default the run stops at one.",
    ),
    max_pixels_option,
    flag("--cache", "Keep images in memory once they are read.", "cache_in_memory"),
)
MACHINE_OPTIONS = add_options(
    option(
        "--precision",
        click.Choice(["auto", "no", "bf16", "fp16"]),
        "Mixed precision; auto is bf16 where the device has instructions for it.",
        default="auto",
    ),
    flag("--gradient-checkpointing", "Less memory, a quarter more time."),
    flag("--compile", "Compile the model with torch.compile first."),
    option("--workers", click.IntRange(0), "Processes that read images in advance.", default=0),
)
OUTPUT_OPTIONS = add_options(
    option(
        "--sample-every",
        COUNT,
        "Steps between grids of samples.",
        "save_results_every",
        default=500,
    ),
    option("--checkpoint-every", COUNT, "Steps between checkpoints.", default=1000),
    option("--keep-last", COUNT, "Newest checkpoints to keep, and the best.", default=3),
    option(
        "--log-with",
        None,
        "Where to log: a tracker that accelerate knows, such as wandb.",
        default="tensorboard",
    ),
    option("--seed", SEED, "Seed of the weights, the order of images and the noise.", default=0),
)


@click.command(short_help="Train on a folder of images, or on the built-in digits.")
@click.argument("source", default="digits")
@option("--run", OUTPUT, "Folder of the run. [default: a new one in runs/]", "run_folder")
@option(
    "--head",
    HeadType(),
    "The head, by name or a class of your own, whose module is imported.",
    metavar="|".join((*HEADS, "MODULE:CLASS")),
    default="flow",
)
@option(
    "--order",
    click.Choice(ORDERS),
    "Of the tokens: raster draws them one by one, random in any order, masked several at a time.",
    default="raster",
)
@IMAGE_OPTIONS
@MODEL_OPTIONS
@LENGTH_OPTIONS
@OPTIMIZER_OPTIONS
@DATA_OPTIONS
@MACHINE_OPTIONS
@OUTPUT_OPTIONS
def train(source: str, run_folder: Path | None, **options) -> None:
    """Train on SOURCE: a folder of images (searched through and through), the word "digits" for
    1,797 handwritten digits, or a cache of `ardiff encode`.

    The run's folder holds its configuration, its checkpoints, and grids of samples drawn on the
    way.
    """
    preset, cache = DIGITS if source == "digits" else FOLDER, None
    if has_latents(source):
        preset, cache = LATENTS, _cache(source, options)
    if options["num_epochs"] is not None:
        if options["num_train_steps"] is not None:
            raise click.UsageError("--steps and --epochs exclude each other")
        preset = preset | dict(num_train_steps=None)
    size = SIZES[options["size"] or preset["size"]]
    if options["order"] != "raster":
        preset = preset | ANY_ORDER
        size = size | dict(learning_rate=min(size["learning_rate"], HIGHEST_RATE))
    for defaults in (preset, size):
        options |= {name: defaults[name] for name in defaults if options[name] is None}
    if source == "digits" and (options["image_size"], options["channels"]) != (8, 1):
        raise click.UsageError(
            "the digits are grey images of 8 x 8 pixels: leave out --image-size and --channels"
        )
    if source != "digits":
        source = str(Path(source).resolve())  # the run may be resumed from elsewhere
    config = _config(source, options, cache)
    run_folder = run_folder or new_run(printable(Path(source).name))
    check_free(run_folder)
    check_apart(run_folder, source)
    dataset, config["classes"] = dataset_of(config)
    config["model"]["num_classes"] = config["classes"] and len(config["classes"])
    start_run(config, dataset, run_folder)


def _cache(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a cache of latents says of itself, whose options none may contradict."""
    from ..data.latents import read_cache

    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in OF_CACHE
        and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"{source} was encoded already: leave out {', '.join(given)}")
    with one_line_errors():
        cache = read_cache(source)
    if options["labels_from_folders"] and cache["classes"] is None:
        raise click.UsageError(f"{source} holds no labels: `ardiff encode --labels` keeps them")
    options |= cache["dataset"] | {name: cache[name] for name in ("image_size", "channels")}
    return cache


def _config(
    source: str, options: dict[str, Any], cache: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration of a run, by its sections."""
    from ..heads.head import head_class
    from ..models.image import CONTEXT_DROP_PROB

    def section(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: options[name] for name in names}

    config = dict(source=source, kind="images", **section(RUN), classes=None, teacher=None)
    model = model_class(config).model_class
    arguments = head_class(options["head"]).argument_names()
    head_kwargs = section(("num_noise_draws",)) if "num_noise_draws" in arguments else {}
    own = {} if model.preset else dict(head=options["head"])
    if options["order"] == "random":
        own |= dict(order="random")
    sequences = section(MODEL) | dict(context_drop_prob=CONTEXT_DROP_PROB) | own
    config["model"] = dict(
        **section(IMAGES), num_classes=None, model=sequences | {model.head_argument(): head_kwargs}
    )
    if cache is not None:
        config["kind"] = "latents"
        config["model"]["autoencoder"] = cache["autoencoder"]
    config["dataset"] = section(DATASET)
    config["trainer"] = dict(
        **section(TRAINER), adam_kwargs=dict(weight_decay=options["weight_decay"]), num_samples=64
    )
    return config
