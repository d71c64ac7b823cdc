"""Programs of `ardiff export --program`: what they differ from PyTorch, how large and how fast.

    python benchmarks/exporting.py runs/digits

Draws whole images of a run with PyTorch, with onnxruntime, and with the program of `torch.export`.
The largest difference is between tokens of the same noise, over all tokens of three images. Seconds
per image are medians; the three take turns, in one process.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from autoregressive_diffusion_pytorch.models.presets import load_pretrained
from autoregressive_diffusion_pytorch.models.program import (
    FORMATS,
    Program,
    draw_tokens,
    load_program,
)

NAMES = dict(onnx="onnxruntime", torch="torch.export")


def draw(run, settings: dict, batch: int) -> None:
    """Draws a batch of images by a program, but for the pixels of the tokens."""
    rng, (_, count, width) = np.random.default_rng(0), settings["inputs"]["noise"]["shape"]
    noises = (rng.standard_normal((batch, count, width)) for _ in range(settings["num_tokens"]))
    labels = [0] * batch if "num_classes" in settings else None
    for _ in draw_tokens(run, settings, noises, labels):
        pass


def sample(model, settings: dict, batch: int) -> None:
    labels = [0] * batch if "num_classes" in settings else None
    model.sample(batch, labels=labels)


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run of images in raster order")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_pretrained(options.run).eval()

    draws, facts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for format, file in FORMATS.items():
            started, program = time.perf_counter(), Program(model, format)
            program.write(Path(folder) / format)
            seconds = time.perf_counter() - started
            run = load_program(Path(folder) / format, options.threads)
            settings = program.settings()
            size = (Path(folder) / format / file).stat().st_size / 1e6
            difference = program.difference(run, settings["num_tokens"])
            facts[NAMES[format]] = f"{difference:.1e} | {size:.1f} | {seconds:.0f}"
            draws[NAMES[format]] = partial(draw, run, settings)
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        facts = {"PyTorch": f"| {size:.1f} |"} | facts
        draws = {"PyTorch": partial(sample, model, settings)} | draws

        columns = [f"s per image, batch {batch}" for batch in options.batch_sizes]
        print("|", " | ".join(("", "largest difference", "MB", "s to export", *columns)), "|")
        print("| ---", *["| ---:"] * (3 + len(columns)), "|")
        seconds = {}
        for batch in options.batch_sizes:
            for repeat in range(options.repeats + 1):
                for name, function in draws.items():
                    spent = timed(partial(function, batch)) / batch
                    if repeat:  # the first one warms up
                        seconds.setdefault((name, batch), []).append(spent)
        for name, fact in facts.items():
            medians = [statistics.median(seconds[name, batch]) for batch in options.batch_sizes]
            print("|", " | ".join((name, fact, *(f"{median:.4f}" for median in medians))), "|")


if __name__ == "__main__":
    main()
