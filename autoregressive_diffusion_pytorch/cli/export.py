"""`ardiff export`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from ..utils.files import check_folder
from .options import FACTOR, OUTPUT, checkpoint_option, one_line_errors, option, run_argument
from .run import checkpoint_of, load_model, read_config

PROGRAMS = ("onnx", "torch")


@click.command(short_help="Write a trained model into a folder that can be shared.")
@run_argument
@click.argument("folder", metavar="DIR", type=OUTPUT)
@checkpoint_option
@option(
    "--program",
    click.Choice(PROGRAMS),
    "Also write the sampling step as a program that runs without this library: with onnxruntime, "
    "or torch alone. Of models in raster order.",
    "program_format",
)
@option(
    "--guidance",
    FACTOR,
    "Of the program, as in sample: where it is not 1, the program takes a scale, and reads each "
    "sequence with its label and without. [default: what `ardiff tune` wrote, else 1]",
    "guidance_scale",
)
def export(
    run_folder: Path,
    folder: Path,
    checkpoint: int | None,
    program_format: str | None,
    guidance_scale: float | None,
) -> None:
    """Write the model of RUN into DIR, with a model card and a grid of samples.

    `from_pretrained(DIR)` of the model's class loads it; `hf upload NAME DIR` shares it.
    """
    from .card import card_of

    if guidance_scale is not None and program_format is None:
        raise click.UsageError("--guidance is of a --program")
    config = read_config(run_folder)
    source = checkpoint_of(run_folder, checkpoint)
    if folder.is_dir() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} is not empty: name another one")
    is_new = not folder.exists()
    with one_line_errors((OSError,)):
        check_folder("DIR", folder)
    try:
        with (
            one_line_errors((OSError, ValueError, ModuleNotFoundError)),
            tempfile.TemporaryDirectory(dir=folder.parent) as partial,
        ):
            model, _ = load_model(config, source)
            card, written = card_of(config, run_folder, source, model), Path(partial) / "model"
            if program_format is not None:
                card |= _write_program(model, written, program_format, guidance_scale)
            model.save_pretrained(written, model_card_kwargs=card)
            folder.rmdir()
            written.replace(folder)
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    click.echo(folder)


def _write_program(model, folder: Path, program_format: str, guidance_scale: float | None) -> dict:
    """Writes the program of a model; what its card tells of it."""
    from ..models.program import FORMATS, NUM_COMPARED, Program

    program = Program(model, program_format, guidance_scale=guidance_scale)
    difference, name = program.write(folder), FORMATS[program_format]
    told = f"its first {NUM_COMPARED} tokens differ by at most {difference:.1e} from PyTorch's"
    click.echo(f"{name}: {told}", err=True)
    return dict(program=name)
