"""The commands: `ardiff train`, `resume`, `sample`, `complete`, `evaluate`, `tune` and `export`.

A run is one folder: `config.json`, `checkpoints/`, `samples/`, `logs/`, `evaluation/` and, once tuned, `generation.json`.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import click

from autoregressive_diffusion_pytorch.cli_drawing import complete, sample
from autoregressive_diffusion_pytorch.cli_evaluation import evaluate, tune
from autoregressive_diffusion_pytorch.run_folder import (
    SEED,
    checkpoint_of,
    dataset_of,
    listed,
    load_model,
    model_class,
    new_run,
    read_config,
    split,
    write_config,
)

# the model, and the learning rate that suits it
SIZES = {
    "tiny": dict(dim=128, depth=4, heads=4, mlp_width=128, mlp_depth=3, learning_rate=2e-3),
    "small": dict(dim=256, depth=6, heads=4, mlp_width=384, mlp_depth=3, learning_rate=1e-3),
    "base": dict(dim=512, depth=12, heads=8, mlp_width=768, mlp_depth=3, learning_rate=5e-4),
    "large": dict(dim=1024, depth=24, heads=16, mlp_width=1024, mlp_depth=6, learning_rate=3e-4),
}
# what to train where the command line says nothing else
DIGITS = dict(size="tiny", image_size=8, patch_size=2, channels=1, noise_draws=2, batch_size=32, steps=2000)
FOLDER = dict(size="small", image_size=64, patch_size=8, channels=3, noise_draws=2, batch_size=16, steps=50000)


def _by_source(name: str) -> str:
    return f"[default: {DIGITS[name]} for digits, {FOLDER[name]} for a folder]"


def _by_size(name: str) -> str:
    return f"[default: {', '.join(f'{size[name]:g} {key}' for key, size in SIZES.items())}]"


@click.group()
@click.version_option(package_name="autoregressive-diffusion-pytorch")
def main() -> None:
    """Train models that draw images token by token, and draw images with them."""
    # x-transformers compiles a few functions with torch.jit: nothing that a person at the command line could change
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


main.add_command(sample)
main.add_command(complete)
main.add_command(evaluate)
main.add_command(tune)


@main.command(short_help="Train on a folder of images, or on the built-in digits.")
@click.argument("source", default="digits")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), help="Folder of the run. [default: a new one in runs/]")
@click.option("--head", type=click.Choice(["diffusion", "flow"]), default="flow", show_default=True, help="Kind of the head.")
@click.option("--image-size", type=click.IntRange(1), help=f"Height and width of the images. {_by_source('image_size')}")
@click.option("--patch-size", type=click.IntRange(1), help=f"Height and width of a token. {_by_source('patch_size')}")
@click.option("--channels", type=click.IntRange(1, 4), help=f"1 grey, 3 RGB, 2 and 4 with opacity. {_by_source('channels')}")
@click.option(
    "--labels/--no-labels",
    default=False,
    show_default=True,
    help="Learn what to draw: one class for each folder in SOURCE, or the digits 0 to 9.",
)
@click.option("--size", type=click.Choice(list(SIZES)), help=f"Of the model, and with it all of the next six. {_by_source('size')}")
@click.option("--dim", type=click.IntRange(1), help=f"Width of the transformer. {_by_size('dim')}")
@click.option("--depth", type=click.IntRange(1), help=f"Layers of the transformer. {_by_size('depth')}")
@click.option("--heads", type=click.IntRange(1), help=f"Attention heads of the transformer. {_by_size('heads')}")
@click.option("--mlp-width", type=click.IntRange(1), help=f"Width of the head's network. {_by_size('mlp_width')}")
@click.option("--mlp-depth", type=click.IntRange(1), help=f"Blocks of the head's network. {_by_size('mlp_depth')}")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help=f"Highest one. {_by_size('learning_rate')}")
@click.option("--noise-draws", type=click.IntRange(1), help=f"Noise draws for each token and step. {_by_source('noise_draws')}")
@click.option("--steps", type=click.IntRange(1), help=f"Training steps. {_by_source('steps')}")
@click.option(
    "--epochs", type=click.FloatRange(0, min_open=True), help="Train until each image was seen so often, instead of --steps."
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="End after this time, even if steps are left.")
@click.option("--batch-size", type=click.IntRange(1), help=f"Images that each process reads at once. {_by_source('batch_size')}")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches a step.")
@click.option(
    "--lr-schedule",
    type=click.Choice(["constant", "cosine"]),
    default="constant",
    show_default=True,
    help="Cosine falls to zero at the last step.",
)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.02, show_default=True, help="Of the matrices.")
@click.option(
    "--max-grad-norm", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Clip gradients to this norm."
)
@click.option(
    "--nonfinite",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do at a step whose loss or gradient is not finite.",
)
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the images to keep for the validation loss.",
)
@click.option("--flip/--no-flip", default=False, show_default=True, help="Mirror the images of a folder at random.")
@click.option("--skip-damaged", is_flag=True, help="Leave out image files that cannot be read, instead of stopping at one.")
@click.option("--cache", is_flag=True, help="Keep images in memory once they are read.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "no", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Mixed precision; auto is bf16 where the device has instructions for it.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a quarter more time.")
@click.option("--compile", is_flag=True, help="Compile the model with torch.compile first.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images in advance.")
@click.option("--sample-every", type=click.IntRange(1), default=500, show_default=True, help="Steps between grids of samples.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="Steps between checkpoints.")
@click.option("--keep-last", type=click.IntRange(1), default=3, show_default=True, help="Newest checkpoints to keep, and the best.")
@click.option(
    "--log-with", default="tensorboard", show_default=True, help="Where to log: a tracker that accelerate knows, such as wandb."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the weights, the order of images and the noise.")
def train(source: str, run_folder: Path | None, **options) -> None:
    """Train on SOURCE: a folder of images (searched through and through), or the word "digits" for 1,797 handwritten digits.

    The run's folder holds its configuration, its checkpoints, and grids of samples drawn on the way.
    """
    from autoregressive_diffusion_pytorch.image import CONTEXT_DROP_PROB

    preset = DIGITS if source == "digits" else FOLDER
    if options["epochs"] is not None:
        if options["steps"] is not None:
            raise click.UsageError("--steps and --epochs exclude each other")
        preset = preset | dict(steps=None)
    for defaults in (preset, SIZES[options["size"] or preset["size"]]):
        options |= {name: value for name, value in defaults.items() if options[name] is None}
    if source == "digits" and (options["image_size"], options["channels"]) != (8, 1):
        raise click.UsageError("the digits are grey images of 8 x 8 pixels: leave out --image-size and --channels")
    if source != "digits":
        source = str(Path(source).resolve())  # the run may be resumed from elsewhere
    config = dict(
        source=source,
        head=options["head"],
        seed=options["seed"],
        workers=options["workers"],
        precision=options["precision"],
        accumulate=options["accumulate"],
        compile=options["compile"],
        hold_out=options["hold_out"],
        model=dict(
            image_size=options["image_size"],
            patch_size=options["patch_size"],
            channels=options["channels"],
            num_classes=None,
            model=dict(
                dim=options["dim"],
                depth=options["depth"],
                heads=options["heads"],
                mlp_depth=options["mlp_depth"],
                mlp_width=options["mlp_width"],
                context_drop_prob=CONTEXT_DROP_PROB,
                **{f"{options['head']}_kwargs": dict(num_noise_draws=options["noise_draws"])},
            ),
        ),
        dataset=dict(
            labels_from_folders=options["labels"],
            augment_horizontal_flip=options["flip"],
            cache_in_memory=options["cache"],
            skip_damaged=options["skip_damaged"],
        ),
        classes=None,
        trainer=dict(
            num_train_steps=options["steps"],
            num_epochs=options["epochs"],
            max_minutes=options["minutes"],
            batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            lr_schedule=options["lr_schedule"],
            adam_kwargs=dict(weight_decay=options["weight_decay"]),
            max_grad_norm=options["max_grad_norm"],
            nonfinite=options["nonfinite"],
            gradient_checkpointing=options["gradient_checkpointing"],
            save_results_every=options["sample_every"],
            checkpoint_every=options["checkpoint_every"],
            keep_last=options["keep_last"],
            num_samples=64,
            log_with=options["log_with"],
        ),
    )
    run_folder = run_folder or new_run(Path(source).name)
    if (run_folder / "config.json").exists():
        raise click.ClickException(f"{run_folder} already holds a run: `ardiff resume {run_folder}` goes on with it")
    if source != "digits" and run_folder.resolve().is_relative_to(source):
        raise click.ClickException(
            f"{run_folder} lies in {source}, its samples would be trained on: name another folder with --run"
        )
    dataset, config["classes"] = dataset_of(config)
    config["model"]["num_classes"] = config["classes"] and len(config["classes"])
    trainer = _build(config, dataset, run_folder)
    config |= dict(used_precision=trainer.accelerator.mixed_precision, num_images=len(dataset))
    trainer.accelerator.wait_for_everyone()  # until all have seen that the run's folder is free
    if trainer.is_main:
        run_folder.mkdir(parents=True, exist_ok=True)
        write_config(config, run_folder)
    _train(trainer, run_folder)


@main.command(short_help="Go on with a training run.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Train up to this step. [default: as when the run was started]")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="End after this time, even if steps are left.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="From now on. [default: as before]")
@click.option("--nonfinite", type=click.Choice(["stop", "skip"]), help="From now on. [default: as before]")
def resume(run_folder: Path, steps: int | None, minutes: float | None, learning_rate: float | None, nonfinite: str | None) -> None:
    """Go on with RUN from its newest whole checkpoint, as if it had never stopped."""
    config = read_config(run_folder)
    config["trainer"]["max_minutes"] = minutes
    config["trainer"] |= {
        name: value for name, value in dict(learning_rate=learning_rate, nonfinite=nonfinite).items() if value is not None
    }
    if steps is not None:
        config["trainer"] |= dict(num_train_steps=steps, num_epochs=None)
    dataset, classes = dataset_of(config)
    if classes != config["classes"]:
        raise click.ClickException(
            f"{config['source']} has other classes than when the run was started: {listed(classes)} instead of "
            f"{listed(config['classes'])}"
        )
    trainer = _build(config, dataset, run_folder, resume=True)
    if trainer.step >= trainer.num_train_steps:
        raise click.ClickException(f"{run_folder} is at step {trainer.step} of {trainer.num_train_steps}: --steps asks for more")
    if trainer.is_main:
        write_config(config, run_folder)
    _train(trainer, run_folder)


@main.command(short_help="Write a trained model into a folder that can be shared.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.IntRange(1), help="Step of the checkpoint. [default: lowest validation loss, else newest]")
def export(run_folder: Path, folder: Path, checkpoint: int | None) -> None:
    """Write the model of RUN into DIR: its arguments and weights, and a model card with a grid of samples.

    `from_pretrained(DIR)` of the model's class loads it; `hf upload NAME DIR` shares it.
    """
    from autoregressive_diffusion_pytorch.checkpoints import best_checkpoint, step_of

    config = read_config(run_folder)
    source = checkpoint_of(run_folder, checkpoint, best_checkpoint)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise click.ClickException(f"{folder} is not empty: name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    card = dict(title=f"{run_folder.resolve().name}: {config['head']}", training=_training_facts(config, source))
    grids = {int(path.name.split(".")[1]): path for path in (run_folder / "samples").glob("results.*.png")}
    drawn = [step for step in grids if step <= step_of(source)]
    if drawn:
        card["grid"] = grids[max(drawn)]
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        model, _ = load_model(config, source)
        model.save_pretrained(Path(partial) / "model", model_card_kwargs=card)
        if folder.exists():
            folder.rmdir()
        (Path(partial) / "model").replace(folder)
    click.echo(folder)


def _training_facts(config: dict, checkpoint: Path) -> dict[str, str]:
    """What a model card tells of a training."""
    from autoregressive_diffusion_pytorch.checkpoints import step_of, validation_loss

    trainer, loss = config["trainer"], validation_loss(checkpoint)
    facts = {
        "images": Path(config["source"]).name,
        "steps": f"{step_of(checkpoint):,}",
        "images a step": f"{trainer['batch_size'] * config['accumulate']} in each process",
        "learning rate": f"{trainer['learning_rate']:g}, {trainer['lr_schedule']}",
        "precision": config["used_precision"],
        "seed": config["seed"],
    }
    if config["classes"]:
        facts["labels"] = listed(config["classes"])
    if loss is not None:
        facts["validation loss"] = f"{loss:.4f}, on {config['hold_out']:.1%} of the images"
    return facts


def _build(config: dict, dataset, run_folder: Path, resume: bool = False):
    """The trainer of a run. What is wrong with the arguments is told in one line."""
    from accelerate.utils import set_seed

    from autoregressive_diffusion_pytorch.image_trainer import ImageTrainer
    from autoregressive_diffusion_pytorch.modes import best_precision

    precision = config["precision"]
    if precision == "auto":  # accelerate's own configuration first
        precision = None if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no" else best_precision()
    dataset, held_out = split(dataset, config)
    set_seed(config["seed"])  # for the weights
    try:
        return ImageTrainer(
            model_class(config)(**config["model"]),
            dataset=dataset,
            validation_dataset=held_out,
            checkpoints_folder=run_folder / "checkpoints",
            results_folder=run_folder / "samples",
            logs_folder=run_folder / "logs",
            seed=config["seed"],
            accelerate_kwargs=dict(
                mixed_precision=precision,
                gradient_accumulation_steps=config["accumulate"],
                dynamo_backend="inductor" if config["compile"] else None,
            ),
            dataloader_kwargs=dict(num_workers=config["workers"]),
            resume=resume,
            **config["trainer"],
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _train(trainer, run_folder: Path) -> None:
    from autoregressive_diffusion_pytorch.image_dataset import DamagedImageError
    from autoregressive_diffusion_pytorch.image_trainer import TrainingStopped
    from autoregressive_diffusion_pytorch.training_data import DeadWorkerError

    def tell(message, **kwargs) -> None:
        if trainer.is_main:
            click.echo(message, **kwargs)

    tell(f"{len(trainer.dataset):,} images; the run is in {run_folder}", err=True)
    try:
        trainer()
    except DamagedImageError as error:
        fault = str(error).strip().splitlines()[-1]  # a worker sends where it came from before it
        raise click.ClickException(f"{fault}\n--skip-damaged leaves such files out") from error
    except FloatingPointError as error:
        raise click.ClickException(f"{error}\ngo on from the last checkpoint with: ardiff resume {run_folder}") from error
    except (OSError, DeadWorkerError) as error:
        raise click.ClickException(str(error)) from error
    except TrainingStopped:
        tell(f"go on with: ardiff resume {run_folder}", err=True)
        raise
    tell(trainer.results_folder / f"results.{trainer.step}.png")
    tell(f"more of them: ardiff sample {run_folder}; settings that draw better ones: ardiff tune {run_folder}", err=True)
