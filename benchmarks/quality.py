"""Quality of samples: any set of configurations, trained for the same time on the same images,
version 0.4.0 among them.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/quality.py comparison --peer PEER --images FOLDER \\
        --distance 'python frechet.py' --folder runs/comparison

The sets are those of `configurations.py`. Each configuration is trained by its own library's
trainer in a process of its own, draws samples after the given minutes of training, and goes on. A
minute is one of processor time on each of its cores: what is saved and drawn does not count. With
`--at-once 2` two at a time have a core each.

The distances are printed by any commands that take two files of images (n h w 3, 8 bit, .npy), real
and generated ones: one number, or a first line of names and a last line of as many numbers. Or with
`--features` they are this library's in the features of "inception" or of a network of torch.export.
A last column, borders, is the mean difference of neighbouring pixels across borders of patches, in
units of that inside patches, over the same of the real images: 1 where nothing is seen of patches.

A folder is for one set at one size: what is in it already is not trained, drawn or measured again,
so that a comparison that was ended goes on from the last mark, and any mark can be drawn again with
other settings. `--plot` draws the first distance against evaluations of the network, for sets with
several solvers; `--plot-speed` against the time of an image, for any set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

import quality_worker
from configurations import SETS
from quality_worker import BATCH_SIZE, Configuration, as_file_name, marks_of
from worker import OURS, Worker


class Comparison:
    """Trains, draws and measures the configurations of a set, each as far as it is not done."""

    def __init__(self, args: argparse.Namespace, configurations: list[Configuration]):
        self.args = args
        self.configurations = configurations
        self.cores = max((os.cpu_count() or 1) // args.at_once, 1)
        self.file = args.folder / f"results.{args.count}.json"
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.lock = Lock()
        self.distance = distances_by(args)
        self.columns: list[str] = []

    def folder(self, configuration: Configuration) -> Path:
        return self.args.folder / as_file_name(configuration.name)

    def run(self) -> None:
        if self.args.interleave:
            workers = {}
            for minutes in self.args.minutes:
                for configuration in self.configurations:
                    self.advance(configuration, [minutes], workers)
            return
        with ThreadPoolExecutor(self.args.at_once) as pool:
            # all of them, so that an error shows
            list(
                pool.map(
                    lambda configuration: self.advance(configuration, self.args.minutes, {}),
                    self.configurations,
                )
            )

    def advance(
        self, configuration: Configuration, marks: list[float], workers: dict[str, Worker]
    ) -> None:
        """Trains a configuration up to marks and measures it at each; a worker of `workers` stays
        for later marks."""
        folder = self.folder(configuration)
        for minutes in marks:
            wanted = self.wanted(configuration, minutes)
            missing = {name: request for name, request in wanted.items() if name not in self.rows}
            trained = minutes in marks_of(folder)
            if not trained or missing:
                if configuration.name not in workers:
                    workers[configuration.name] = self.worker(configuration, folder)
                worker = workers[configuration.name]
                if not trained:
                    worker.ask("train", minutes=minutes)
                for name, request in missing.items():
                    self.measure(name, worker, configuration, minutes, request)
            for name in wanted:
                self.show(self.rows[name])
        if marks[-1] == self.args.minutes[-1] and configuration.name in workers:
            workers.pop(configuration.name).close()

    def worker(self, configuration: Configuration, folder: Path) -> Worker:
        folder.mkdir(parents=True, exist_ok=True)
        description = json.dumps(asdict(configuration))
        (folder / "configuration.json").write_text(description)
        arguments = [description, str(folder), str(self.args.images)]
        path = self.args.peer if configuration.is_peer else OURS
        return Worker(quality_worker.__file__, arguments, path, OMP_NUM_THREADS=str(self.cores))

    def wanted(self, configuration: Configuration, minutes: float) -> dict[str, dict]:
        """What is to be drawn at a mark: the name of a row, and what to ask for."""
        samplings = configuration.samplings
        if minutes != self.args.minutes[-1]:
            samplings = dict(list(samplings.items())[:1])  # on the way only the first
        return {
            f"{configuration.name}|{sampling}|{minutes:g}": request
            for sampling, request in samplings.items()
        }

    def measure(
        self, name: str, worker: Worker, configuration: Configuration, minutes: float, request: dict
    ) -> None:
        sampling = name.split("|")[1]
        samples = (
            self.folder(configuration)
            / f"{as_file_name(f'samples {sampling}'.strip())}.{minutes:g}.npy"
        )
        real = self.args.folder / f"real.{configuration.image_size}.npy"
        request = dict(average=configuration.average) | request
        row = worker.ask(
            "draw", minutes=minutes, **request, count=self.args.count, file=str(samples)
        )
        row |= dict(
            configuration=configuration.name,
            sampling=sampling,
            minutes=minutes,
            steps=marks_of(self.folder(configuration))[minutes],
            distances=self.distance(real, samples)
            | dict(borders=borders(real, samples, configuration.patch_size)),
        )
        with self.lock:
            self.rows[name] = row
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self.rows, indent=2))
            partial.replace(self.file)

    def show(self, row: dict) -> None:
        if not self.columns:
            self.columns = list(row["distances"])
            print(
                f"{'':44}{'minutes':>8}{'steps':>8}{'ms/image':>10}"
                + "".join(f"{name[:10]:>11}" for name in self.columns)
            )
        name = ", ".join(filter(None, (row["configuration"], row["sampling"])))
        speed = 1000 * row["seconds"] / self.args.count
        numbers = "".join(f"{row['distances'][column]:11.3f}" for column in self.columns)
        print(f"{name:44}{row['minutes']:8g}{row['steps']:8}{speed:10.1f}{numbers}", flush=True)


def distances_by(args: argparse.Namespace) -> Callable[[Path, Path], dict[str, float]]:
    """The distances of two files of images, real and generated ones."""
    if args.distance:

        def by_commands(real: Path, generated: Path) -> dict[str, float]:
            found = {}
            for i, line in enumerate(args.distance):
                command = [*shlex.split(line), str(real), str(generated)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                # of two commands each has names of its own
                found |= {
                    name if name not in found else f"{name}-{i + 1}": value
                    for name, value in read_distances(printed).items()
                }
            return found

        return by_commands

    import numpy as np
    import torch

    from autoregressive_diffusion_pytorch.evaluation.metrics import (
        Inception,
        distances,
        features_of,
        load_feature_network,
    )

    network = Inception() if args.features == "inception" else load_feature_network(args.features)

    def by_features(real: Path, generated: Path) -> dict[str, float]:
        images = [
            torch.from_numpy(np.load(file)).permute(0, 3, 1, 2) / 255 for file in (real, generated)
        ]
        features = [
            torch.cat([features_of(network, part)[0] for part in group.split(BATCH_SIZE)])
            for group in images
        ]
        return distances(*features)

    return by_features


def read_distances(printed: str) -> dict[str, float]:
    """What a command printed: the numbers of its last line by the names of its first, or the first
    number of all."""
    number = r"-?\d[\d.]*(?:e-?\d+)?"
    lines = printed.strip().splitlines()
    names = lines[0].split()
    values = lines[-1].split()[-len(names) :]
    if (
        len(lines) > 1
        and len(names) == len(values)
        and all(re.fullmatch(number, value) for value in values)
    ):
        return dict(zip(names, map(float, values), strict=True))
    return dict(distance=float(re.search(number, printed)[0]))


def borders(real: Path, generated: Path, patch_size: int) -> float:
    """The step of images at the borders of patches, in units of that of the real ones."""
    import numpy as np

    def step(file: Path) -> float:
        images, across, inside = np.load(file).astype(np.float32), 0.0, 0.0
        for axis in (1, 2):
            differences = np.abs(np.diff(images, axis=axis))
            is_border = np.arange(1, images.shape[axis]) % patch_size == 0
            across += differences.compress(is_border, axis).mean().item()
            inside += differences.compress(~is_border, axis).mean().item()
        return across / inside

    return step(generated) / step(real)


def save_real(images: Path, image_size: int, file: Path) -> None:
    import numpy as np

    from autoregressive_diffusion_pytorch import ImageDataset

    dataset = ImageDataset(images, image_size)
    np.save(
        file, np.stack([(image * 255).round().byte().permute(1, 2, 0).numpy() for image in dataset])
    )


def plot(rows: list[dict], file: Path) -> None:
    """The distance against evaluations of the network, a line for each solver."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    names = list(dict.fromkeys(row["configuration"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(9, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        curves = {}
        for row in rows:
            if row["configuration"] == name and row["sampling"]:
                curves.setdefault(row["sampling"].split(",")[0], []).append(
                    (row["evaluations"], next(iter(row["distances"].values())))
                )
        for solver, points in curves.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=solver)
        axis.set(
            title=name,
            xlabel="evaluations of the head's network for each token",
            xscale="log",
            yscale="log",
        )
        axis.set_xticks(
            ticks := sorted(evaluations for evaluations, _ in next(iter(curves.values()), [])),
            map(str, ticks),
        )
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend()
    axes[0, 0].set_ylabel("distance to the real images")
    figure.savefig(file, dpi=120)


def plot_speed(rows: list[dict], count: int, minutes: float, file: Path) -> None:
    """The distance against the time of an image, a colour for each configuration: points of samples
    as learned are joined, those of guided ones are hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    rows = [row for row in rows if row["minutes"] == minutes]
    for name in dict.fromkeys(row["configuration"] for row in rows):
        points = {True: [], False: []}
        for row in rows:
            if row["configuration"] == name:
                is_guided = "guidance" in row["sampling"]
                distance = next(iter(row["distances"].values()))
                points[is_guided].append((1000 * row["seconds"] / count, distance))
        (line,) = axis.plot(*zip(*sorted(points[False]), strict=True), marker="o", label=name)
        if points[True]:
            style = dict(marker="o", facecolors="none", edgecolors=line.get_color())
            axis.scatter(*zip(*points[True], strict=True), **style)
    names = next(iter(rows))["distances"]
    axis.set(xlabel="milliseconds for an image", ylabel=f"{next(iter(names))} distance")
    axis.set(xscale="log", yscale="log")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:g}")
        each.set_minor_formatter("{x:g}")
    axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=list(SETS), help="which configurations")
    parser.add_argument(
        "--images", required=True, type=Path, metavar="FOLDER", help="images to train on"
    )
    measure = parser.add_mutually_exclusive_group(required=True)
    measure.add_argument(
        "--distance",
        nargs="+",
        metavar="COMMAND",
        help="commands that measure distances of two files of images",
    )
    measure.add_argument(
        "--features",
        metavar="NETWORK",
        help="'inception', or a file: Fréchet distance in its features",
    )
    parser.add_argument(
        "--folder",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="for the trained models and the results",
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="DIR",
        help="where version 0.4.0 is installed; without it, only ours",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        default=[7.0],
        help="of training: samples are measured after each",
    )
    parser.add_argument("--count", type=int, default=2000, help="samples for each figure")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these configurations of the set, in this order"
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="train so many at a time, each on its share of the cores",
    )
    parser.add_argument(
        "--precision",
        choices=("no", "bf16"),
        help="of our training; by default that of `ardiff train` here",
    )
    parser.add_argument(
        "--interleave", action="store_true", help="train all in turn, from mark to mark"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="picture of distances against evaluations"
    )
    parser.add_argument(
        "--plot-speed", type=Path, metavar="FILE", help="picture of distances against time"
    )
    args = parser.parse_args()
    if args.interleave and args.at_once > 1:
        parser.error("--interleave and --at-once exclude each other")
    args.minutes.sort()

    available = {c.name: c for c in SETS[args.set] if args.peer or not c.is_peer}
    if unknown := set(args.only or ()) - available.keys():
        parser.error(f"--only: {sorted(unknown)} are not in {args.set}: {list(available)}")
    configurations = [available[name] for name in args.only or available]
    configurations = [replace(c, precision=c.precision or args.precision) for c in configurations]
    args.folder.mkdir(parents=True, exist_ok=True)
    for image_size in {c.image_size for c in configurations}:
        if not (file := args.folder / f"real.{image_size}.npy").exists():
            save_real(args.images, image_size, file)
    comparison = Comparison(args, configurations)
    comparison.run()
    if args.plot:
        plot(list(comparison.rows.values()), args.plot)
    if args.plot_speed:
        rows = list(comparison.rows.values())
        plot_speed(rows, args.count, args.minutes[-1], args.plot_speed)


if __name__ == "__main__":
    main()
