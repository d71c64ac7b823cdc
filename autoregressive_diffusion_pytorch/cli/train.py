"""`ardiff train`."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from ..heads import HEADS
from ..runs.config import ORDERS
from ..utils.text import printable
from .configuration import (
    ANY_ORDER,
    DIGITS,
    FOLDER,
    HIGHEST_RATE,
    ONLY,
    SEQUENCES,
    SIZES,
    SPEECH,
    configuration,
    defaults_of,
    fit_to_data,
    options_of_cache,
)
from .finetuning import TrainedModel
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
    minutes_option,
    one_line_errors,
    option,
    precision_option,
    serve_option,
    workers_option,
)
from .run import new_run
from .sources import absolute, dataset_of, kind_of
from .training import check_apart, check_free, start_run


def _by_source(name: str) -> str:
    speech = f", {SPEECH[name]} for speech" if name in SPEECH else ""
    return f"[default: {DIGITS[name]} for digits{speech}, {FOLDER[name]} for a folder]"


def _by_size(name: str) -> str:
    return f"[default: {', '.join(f'{size[name]:g} {key}' for key, size in SIZES.items())}]"


SEQUENCE_OPTIONS = add_options(
    option("--frame", COUNT, "Of audio: samples per token."),
    option(
        "--codec",
        None,
        "Of audio, instead: take latents of an AutoencoderOobleck of diffusers, by its folder or "
        "Hugging Face name.",
    ),
    option(
        "--max-length",
        COUNT,
        "Tokens of a sequence; longer ones are cut at random. [default: the longest]",
    ),
    option(
        "--ends/--no-ends",
        click.BOOL,
        "Learn where sequences end. [default: if their lengths differ, and none is cut]",
        "predict_end",
        default=None,
    ),
    option(
        "--dropout",
        click.FloatRange(0, 1, max_open=True),
        "In the transformer, for few sequences. "
        f"[default: {SPEECH['dropout']} for speech, {SEQUENCES['dropout']:g} for a folder]",
    ),
    option(
        "--input-noise",
        click.FloatRange(0, 1, max_open=True),
        "Largest std of noise in the tokens that the transformer reads in training, which are of "
        "unit scale: steadies what goes on from its own tokens. "
        f"[default: {SPEECH['input_noise']} for speech, 0 for a folder]",
    ),
)
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
        "Condition on labels: one class per folder in SOURCE, the digits 0 to 9, or the speakers.",
        "labels_from_folders",
        default=False,
    ),
)
MODEL_OPTIONS = add_options(
    option(
        "--size",
        click.Choice(list(SIZES)),
        "Of the model: sets the next six options; for speech they are smaller by default. "
        f"[default: {DIGITS['size']} for digits, {FOLDER['size']} for a folder]",
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
    minutes_option,
    option("--batch-size", COUNT, f"Images per process and batch. {_by_source('batch_size')}"),
    option("--accumulate", COUNT, "Batches per step.", default=1),
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
    precision_option,
    flag("--gradient-checkpointing", "Less memory, a quarter more time."),
    flag("--compile", "Compile the model with torch.compile first."),
    workers_option,
)
FINETUNING_OPTIONS = add_options(
    option(
        "--from",
        None,
        "Go on from a trained model: its folder, a checkpoint, a run, or a name on the Hugging "
        "Face Hub. Size, head and order are its own.",
        "from_model",
        metavar="MODEL",
    ),
    option(
        "--freeze",
        None,
        "Part of that model that is not trained, such as backbone or head; may be given again.",
        multiple=True,
        metavar="PART",
    ),
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
    serve_option,
    option("--seed", SEED, "Seed of the weights, the order of images and the noise.", default=0),
)


@click.command(short_help="Train on a folder of images or sequences, or on built-in data.")
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
@FINETUNING_OPTIONS
@IMAGE_OPTIONS
@SEQUENCE_OPTIONS
@MODEL_OPTIONS
@LENGTH_OPTIONS
@OPTIMIZER_OPTIONS
@DATA_OPTIONS
@MACHINE_OPTIONS
@OUTPUT_OPTIONS
def train(
    source: str, run_folder: Path | None, from_model: str | None, freeze: tuple[str, ...], **options
) -> None:
    """Train on SOURCE: a folder of images (searched through and through) or of sequences (.npy,
    .safetensors, .csv or .wav files); the word "digits" for 1,797 handwritten digits; or "speech"
    for 270 spoken vowels, as sequences; or a cache of `ardiff encode`, whose latents are learned.

    The run's folder holds its configuration, its checkpoints, and grids of samples drawn on the
    way; of sequences statistics and plots of samples.
    """
    if options["num_epochs"] is not None and options["num_train_steps"] is not None:
        raise click.UsageError("--steps and --epochs exclude each other")
    with one_line_errors((OSError,)):
        kind = kind_of(source)
    _check_kind(kind)
    trained = None
    if from_model is not None:
        trained = TrainedModel(from_model, kind)
        options |= trained.own_options(options)
    elif freeze:
        raise click.UsageError("--freeze is of a training --from a model")
    if options["predict_end"] and options["order"] != "raster":
        raise click.UsageError("--ends needs --order raster")
    if kind == "latents":
        with one_line_errors():
            options |= options_of_cache(source, options["labels_from_folders"])
    options |= defaults_of(source, kind, options)
    if source == "digits" and (options["image_size"], options["channels"]) != (8, 1):
        how = "leave out --image-size and --channels"
        if trained is not None:
            how = f"the model of --from draws {trained.told()}"
        raise click.UsageError(f"the digits are grey images of 8 x 8 pixels: {how}")
    source = absolute(source)
    config = configuration(source, kind, options)
    run_folder = run_folder or new_run(printable(Path(source).name))
    check_free(run_folder)
    check_apart(run_folder, source)
    dataset, classes = dataset_of(config)
    fit_to_data(config, dataset, classes)
    if trained is None:
        start_run(config, dataset, run_folder)
    else:
        trained.start_run(config, dataset, run_folder, freeze)


def _check_kind(kind: str) -> None:
    """Whether the options that were typed are of the source's kind."""
    context = click.get_current_context()
    for parameter in context.command.params:
        typed = context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
        own = next((other for other in ONLY if parameter.name in ONLY[other]), kind)
        own = kind if (kind, parameter.name) == ("latents", "patch_size") else own
        if typed and own != kind:
            raise click.UsageError(f"{parameter.opts[0]} is of {own}, SOURCE holds {kind}")
