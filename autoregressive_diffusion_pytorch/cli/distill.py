"""`ardiff distill`."""

from __future__ import annotations

from pathlib import Path

import click

from ..heads import HEADS
from .options import (
    COUNT,
    OUTPUT,
    POSITIVE,
    RUN,
    SEED,
    HeadType,
    checkpoint_option,
    minutes_option,
    one_line_errors,
    option,
    serve_option,
)
from .run import (
    TEACHER,
    autoencoder_of,
    check_kind,
    checkpoint_of,
    model_class,
    new_run,
    read_config,
    say_checkpoint,
)
from .sources import absolute, check_source, dataset_of
from .training import check_apart, check_free, start_run


@click.command(short_help="Give a trained model a head that draws faster.")
@click.argument("teacher_folder", metavar="RUN", type=RUN)
@option(
    "--head",
    HeadType(),
    "The new head.",
    metavar="|".join((*HEADS, "MODULE:CLASS")),
    default="flow_map",
)
@option(
    "--run",
    OUTPUT,
    "Folder of the new run. [default: a new one in runs/, named after RUN and the head]",
    "run_folder",
)
@checkpoint_option
@option("--source", None, "Where the images are now, if they were moved.")
@option("--steps", COUNT, "Training steps. [default: a quarter of RUN's]", "num_train_steps")
@minutes_option
@serve_option
@option("--learning-rate", POSITIVE, "Highest one. [default: RUN's]")
@option("--batch-size", COUNT, "Images per process and batch. [default: RUN's]")
@option("--noise-draws", COUNT, "Noise draws per token and step.", "num_noise_draws", default=8)
@option("--seed", SEED, "Seed of the head, the order of images and the noise.", default=0)
def distill(
    teacher_folder: Path,
    head: str,
    run_folder: Path | None,
    checkpoint: int | None,
    source: str | None,
    num_noise_draws: int,
    seed: int,
    **trainer_options,
) -> None:
    """Train a new head on the transformer of RUN, which stays as it is: with flow_map, one that
    draws a token in one evaluation where RUN's takes several.

    A flow_map learns from RUN's diffusion or flow head, any other head from the images. The result
    is a run like any other; its learning rate falls to zero.
    """
    import dataclasses

    from ..heads.head import head_class
    from ..models.distillation import distilled
    from ..models.settings import GenerationSettings
    from ..utils.manifests import step_of
    from ..utils.rng import seed_process

    config = read_config(teacher_folder)
    check_kind(config, "distill", "images", "latents")
    folder = checkpoint_of(teacher_folder, checkpoint)
    if source is not None:
        config["source"] = absolute(source)
    check_source(config)
    run_folder = run_folder or new_run(f"{teacher_folder.resolve().name}-{head.rpartition(':')[2]}")
    check_free(run_folder)
    check_apart(run_folder, config["source"])
    known = head_class(head).argument_names()
    head_kwargs = dict(num_noise_draws=num_noise_draws) if "num_noise_draws" in known else {}
    seed_process(seed, rank=0)  # for the weights
    say_checkpoint(folder)
    with one_line_errors((ValueError, TypeError, OSError)):
        teacher = model_class(config).from_pretrained(folder, **autoencoder_of(config))
        student = distilled(teacher, head, head_kwargs)
        tuned = GenerationSettings.load(teacher_folder)
    # steps and solver are of the head; what else was tuned is of the transformer too
    settings = dataclasses.replace(tuned, num_steps=None, solver=None)

    changes = {name: value for name, value in trainer_options.items() if value is not None}
    changes.setdefault("num_train_steps", max(step_of(folder) // 4, 1))
    own = dict(num_epochs=None, max_minutes=None, lr_schedule="cosine")
    trainer = config["trainer"] | own | changes
    config |= dict(
        head=head, model=student.config, teacher=config["head"], seed=seed, trainer=trainer
    )
    dataset, _ = dataset_of(config)

    def write(folder: Path) -> None:
        teacher.save_pretrained(folder / TEACHER)
        if settings.given():
            settings.save(folder)

    start_run(config, dataset, run_folder, model=student, write=write)
