"""Commands on damaged run folders and with random options: none ends in a traceback.

    python benchmarks/fuzz.py --folders 100 --commands 100

A folder is a copy of a small run in which one file is damaged: cut off, changed, deleted, or JSON
with a key taken away or of another type. A command on it must work, or end with one line. Whole
checkpoints must still be there after it. A command line is a command with some of its options; two
in three have values that fit each option, in the others a third of the values do not.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import click
import numpy as np
from accelerate.state import AcceleratorState, GradientState
from click.testing import CliRunner
from faults import mutated
from PIL import Image

from autoregressive_diffusion_pytorch.cli import main as ardiff
from autoregressive_diffusion_pytorch.utils.manifests import (
    DamagedCheckpointError,
    check_checkpoint,
    list_checkpoints,
)

TINY = [
    "--dim",
    "16",
    "--depth",
    "1",
    "--heads",
    "2",
    "--mlp-width",
    "16",
    "--mlp-depth",
    "1",
    "--noise-draws",
    "1",
    "--batch-size",
    "4",
    "--steps",
    "4",
    "--checkpoint-every",
    "2",
    "--sample-every",
    "100",
]
ON_A_RUN = [
    "sample RUN --count 2 --steps 2",
    "complete RUN IMAGE --keep-rows 4 --count 1 --steps 2",
    "evaluate RUN digits --images 4 --count 0 --features none --tolerance 0.1",
    "export RUN OUT",
    "resume RUN --steps 6",
    "tune RUN digits --images 20 --count 10 --dry-run",
]
# what keeps a command short
SHORT = dict(
    check="",
    train="",
    resume="--steps 6 --minutes 0.02",
    sample="--count 2 --steps 2",
    complete="--count 1 --steps 2 --keep-rows 4",
    evaluate="--images 10 --count 10 --features none --steps 2 --tolerance 0.5",
    export="",
    tune="--images 20 --count 10 --dry-run",
)
TOO_LONG = ("help", "compile", "workers", "curve")
MISLEADING = ("surprise", "num_epochs", "names", "name", "guidance_scale", "channels")  # by others
# values that fit, where the kind of an option says too little
FITTING = dict(
    head=["flow", "diffusion"],
    solver=["dpmpp_2m", "euler", "heun"],
    features=["none"],
    tolerance=[0.1, 0.5],
    log_with=["tensorboard"],
    hold_out=[0.1, 0.3],
    checkpoint=[2, 4],
    keep_rows=[0, 2, 4, 8],
    image_size=[8],
    patch_size=[2, 4],
    channels=[1, 3],
    max_pixels=[72, 10**6],
    only=[0, 1, 5],
    names=["0", "7", "x"],
    name=["0", "7", "x"],
    output=["out.png", "out.json"],
    files=["out"],
    images=[10, 20],
    count=[10],
    num_train_steps=[1, 6],
    source=["digits"],
    run_folder=["out"],
    surprise=["image/00000.png"],
    max_minutes=[0.01, 0.02],
    minutes=[0.01, 0.02],
)
VALUES = ["0", "1", "-1", "0.5", "1e9", "nan", "", "x", "ä", "/proc/x", "\ud800"]


class TooLongError(Exception):
    """A command works for long: there is nothing wrong with it."""


def too_long(*_) -> None:
    raise TooLongError


def call(arguments: list[str], seconds: int = 60) -> tuple[str, str]:
    """Calls a command here: "works", "refuses", "is long" or "traceback", and what it wrote."""
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(ardiff, arguments)
    signal.alarm(0)
    if isinstance(result.exception, TooLongError):
        return "is long", ""
    if result.exception is None:
        return "works", ""
    if isinstance(result.exception, SystemExit):
        return "refuses", result.output.strip().splitlines()[-1] if result.output.strip() else ""
    return "traceback", "".join(traceback.format_exception(result.exception))


def whole(run: Path) -> set[str]:
    """The names of the whole checkpoints of a run."""
    found = set()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        with contextlib.suppress(DamagedCheckpointError):
            check_checkpoint(checkpoint)
            found.add(checkpoint.name)
    return found


def damage(file: Path, numbers: np.random.Generator) -> str:
    if file.suffix == ".json" and numbers.random() < 0.5:
        values = json.loads(file.read_text())
        name = sorted(values)[numbers.integers(len(values))] if values else "x"
        kind = numbers.integers(3)
        if kind == 0:
            values.pop(name, None)
        else:
            values[name] = [None, "x", [1], -1, {}][numbers.integers(5)] if kind == 1 else {"a": 1}
        file.write_text(json.dumps(values))
        return f"{name} of {file.name}"
    if numbers.random() < 0.2:
        file.unlink()
        return f"{file.name} deleted"
    file.write_bytes(mutated(file.read_bytes(), numbers))
    return f"{file.name} changed"


def folders(folder: Path, count: int) -> bool:
    run = folder / "run"
    assert call(["train", "digits", "--run", str(run), *TINY, "--hold-out", "0.01"])[0] == "works"
    (run / "generation.json").write_text(json.dumps(dict(temperature=0.9)))
    assert (
        call(["sample", str(run), "--count", "1", "--files", str(folder / "image")])[0] == "works"
    )
    numbers = np.random.default_rng(0)
    outcomes, lost = Counter(), 0
    for i in range(count):
        copy, out = folder / "copy", folder / "out"
        for path in (copy, out):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(run, copy)
        files = sorted(p for p in copy.rglob("*") if p.suffix in (".json", ".safetensors", ".pt"))
        what = damage(files[numbers.integers(len(files))], numbers)
        before = whole(copy)
        words = ON_A_RUN[i % len(ON_A_RUN)].split()
        places = dict(RUN=copy, OUT=out, IMAGE=folder / "image" / "00000.png")
        outcome, said = call([str(places.get(word, word)) for word in words])
        outcomes[outcome] += 1
        # a training that goes on removes old ones itself, but keeps three
        if not before <= whole(copy):
            lost += 1
            print(f"lost a checkpoint: {words[0]}, {what}")
        if outcome == "traceback":
            print(f"traceback: {words[0]}, {what}\n{said}")
    print(f"{count} damaged run folders: {dict(outcomes)}, {lost} with a lost checkpoint")
    return not (outcomes["traceback"] or lost)


def a_value(parameter: click.Option, choose: random.Random) -> list[str]:
    """Values of an option that fit its kind, as many as it takes."""
    kind, count = parameter.type, parameter.nargs
    if parameter.name in FITTING:
        return [str(choose.choice(FITTING[parameter.name]))]
    if isinstance(kind, click.Choice):
        return [choose.choice([value for value in kind.choices if value != "fp16"])]
    if isinstance(kind, click.IntRange):
        return [str(choose.randint(1, 8))]
    return [str(value) for value in sorted(choose.choices([0.25, 0.5, 1, 2], k=count))]


def a_line(name: str, places: dict[str, list], choose: random.Random) -> list[str]:
    """A command with some of its options: most lines fit all through, others in part."""
    wrong = choose.choice([0, 0, 0.3])  # share of the words that do not fit

    def word_or(fitting: list[str]) -> list[str]:
        return [choose.choice(VALUES) if choose.random() < wrong else word for word in fitting]

    words = [name, *SHORT[name].split()]
    share = 2 / len(ardiff.commands[name].params)  # about two options
    for parameter in ardiff.commands[name].params:
        if isinstance(parameter, click.Argument):
            words += word_or([str(choose.choice(places[f"{name} {parameter.name}"]))])
        elif parameter.name not in TOO_LONG and choose.random() < share:
            if wrong == 0 and parameter.name in MISLEADING:
                continue
            flags = parameter.opts + parameter.secondary_opts
            words.append(choose.choice(flags))
            words += [] if parameter.is_flag else word_or(a_value(parameter, choose))
    return words


def commands(folder: Path, count: int) -> bool:
    choose = random.Random(0)
    outcomes, of_commands = Counter(), Counter()
    run, labelled, photos = folder / "run", folder / "labelled", folder / "photos"
    options = [*TINY, "--hold-out", "0.01", "--labels"]
    assert call(["train", "digits", "--run", str(labelled), *options])[0] == "works"
    shape = dict(shape=(12, 9, 8, 3), dtype="uint8")
    for i, image in enumerate(np.random.default_rng(0).integers(256, size=shape.pop("shape"))):
        file = photos / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(**shape)).save(file)
    for i in range(count):
        name = choose.choice(sorted(ardiff.commands))
        copy = folder / "copy"  # what goes on with a run changes it
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(choose.choice([run, labelled]), copy)
        places = {f"{command} run_folder": [copy] for command in ardiff.commands}
        places |= {
            "train source": ["digits", photos],
            "check folder": [photos, folder],
            "complete image_file": [photos / "a" / "0.png", folder / "image" / "00000.png"],
            "evaluate source": ["digits"],
            "tune source": ["digits"],
            "export folder": [folder / f"export{i}"],
        }
        line = a_line(name, places, choose)
        if name == "train":
            sizes = [] if "digits" in line else ["--image-size", "8", "--patch-size", "4"]
            line += [*sizes, *TINY, "--run", str(folder / f"train{i}"), "--minutes", "0.02"]
        outcome, said = call(line, seconds=10)
        outcomes[outcome] += 1
        of_commands[f"{name} {outcome}"] += 1
        if outcome == "traceback":
            print(f"traceback: {line}\n{said}")
    print(f"{count} random command lines: {dict(outcomes)}")
    print(", ".join(f"{name}: {number}" for name, number in sorted(of_commands.items())))
    return not outcomes["traceback"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folders", type=int, default=100, help="damaged run folders")
    parser.add_argument("--commands", type=int, default=100, help="random command lines")
    arguments = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        good = folders(Path(name), arguments.folders)
        good &= commands(Path(name), arguments.commands)
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
