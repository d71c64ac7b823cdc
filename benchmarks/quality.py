"""Quality of samples: version 0.4.0 of the package and this library, trained for the same time on the same images.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/quality.py --peer PEER --images FOLDER --distance 'python frechet.py' --folder runs/quality

Each model is trained on images of 32 × 32 pixels in patches of 4, by its own library's trainer: version 0.4.0 with its trainer's
defaults (fp32, 16 images a step), this library by `ardiff train`. The transformers have the same width and depth; all else is each
side's default. Then each draws samples at its own default steps, and ours also at four times as many.

With `--curve`, ours are drawn by every solver at several numbers of steps instead, and `--plot FILE` draws the curves of distance
against evaluations of the network for each token (needs matplotlib). With `--labels`, ours without labels is compared with ours
that learns the names of the folders as labels, at several scales of guidance and temperatures, the labels drawn as often as among
the real images. The two are trained at the same time, each on half of the cores.

The distance is any command that takes two files of images (n h w 3, 8 bit, .npy), real and generated ones, and prints a number.
A folder is for one such comparison: what is in it already is not trained or drawn again.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from worker import CLASSES, OURS, Worker, environment, serve

IMAGE_SIZE, PATCH_SIZE = 32, 4
SIZES = dict(dim=256, depth=6)  # of the transformer, on both sides
BATCH_SIZE = 250  # of sampling
CURVE_EVALUATIONS = [4, 6, 12, 24]
UNGUIDED_TEMPERATURES = [1.0, 0.95]
GUIDANCE = [(1.0, 1.0), (1.25, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (3.0, 0.95), (3.0, 0.9)]  # scale, temperature
EVALUATIONS_A_STEP = dict(midpoint=2, heun=2)


class TimeIsUp(Exception):
    pass


class UntilDeadline:
    """A dataset that ends the training which reads it."""

    def __init__(self, dataset, minutes: float):
        self.dataset = dataset
        self.deadline = time.monotonic() + 60 * minutes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        if time.monotonic() > self.deadline:
            raise TimeIsUp
        return self.dataset[index]


def work_as_peer(head: str) -> None:
    """A worker with version 0.4.0."""
    import torch

    import autoregressive_diffusion_pytorch as package

    torch.manual_seed(0)
    model = getattr(package, CLASSES[head])(model=SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)

    def train(images: str, minutes: float, weights: str) -> dict:
        dataset = package.ImageDataset(images, IMAGE_SIZE)
        trainer = package.ImageTrainer(
            model,
            dataset=UntilDeadline(dataset, minutes),
            num_train_steps=10**9,
            save_results_every=10**9,
            checkpoint_every=10**9,
            checkpoints_folder=Path(weights).with_suffix(""),
            results_folder=Path(weights).with_suffix(""),
        )
        try:
            trainer()
        except TimeIsUp:
            pass
        steps = int(trainer.ema_model.step)
        torch.save(dict(steps=steps, raw=model.state_dict(), averaged=trainer.ema_model.ema_model.state_dict()), weights)
        return {}

    def draw(weights: str, kind: str, count: int, file: str) -> dict:
        saved = torch.load(weights, weights_only=True)
        model.load_state_dict(saved[kind])
        return dict(_draw(model, count, file), steps=saved["steps"])

    serve(train=train, draw=draw)


def work_as_ours(head: str) -> None:
    """A worker with this library."""
    import numpy as np
    import torch

    import autoregressive_diffusion_pytorch as package
    from autoregressive_diffusion_pytorch.checkpoints import newest_checkpoint

    def draw(run: str, count: int, file: str, real_labels: str | None = None, **kwargs: str | float) -> dict:
        checkpoint = newest_checkpoint(Path(run) / "checkpoints")
        model = getattr(package, CLASSES[head]).from_pretrained(checkpoint)
        solver = kwargs.pop("solver", model.model.head.solver)
        num_steps = kwargs.pop("num_steps", model.model.head.NUM_SAMPLE_STEPS[solver])
        labels = None
        if real_labels:
            real = np.load(real_labels)
            labels = torch.from_numpy(real[np.arange(count) * len(real) // count])
        drawn = _draw(model, count, file, labels, solver=solver, num_steps=num_steps, **kwargs)
        evaluations = model.model.head.num_evaluations(num_steps, solver)
        return dict(drawn, steps=int(checkpoint.suffix[1:]), solver=solver, num_steps=num_steps, evaluations=evaluations)

    serve(draw=draw)


def _draw(model, count: int, file: str, labels=None, **kwargs) -> dict:
    import numpy as np
    import torch

    torch.manual_seed(1)
    started = time.perf_counter()
    images = []
    for start in range(0, count, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, count)
        given = {} if labels is None else dict(labels=labels[start:stop])
        images.append(model.sample(batch_size=stop - start, **given, **kwargs))
    seconds = time.perf_counter() - started
    images = torch.cat(images).clamp(0, 1).permute(0, 2, 3, 1).mul(255).round().byte()
    np.save(file, images.numpy())
    return dict(seconds=seconds)


class Results:
    """Distances of what was drawn, kept in a file of the folder."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.file = args.folder / f"distances.{args.count}.json"
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}

    def add(self, name: str, worker: Worker, **request) -> dict:
        if name not in self.rows:
            file = self.args.folder / "samples.npy"
            row = worker.ask("draw", count=self.args.count, file=str(file), **request)
            command = [*shlex.split(self.args.distance), str(self.args.folder / "real.npy"), str(file)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row["distance"] = float(re.search(r"\d[\d.]*(e-?\d+)?", printed)[0])
            self.rows[name] = row
            self.file.write_text(json.dumps(self.rows, indent=2))
        row = self.rows[name]
        print(f"{name:36}{row['steps']:15}{1000 * row['seconds'] / self.args.count:14.0f}{row['distance']:10.3f}", flush=True)
        return row


def save_real(args: argparse.Namespace) -> None:
    import numpy as np

    from autoregressive_diffusion_pytorch import ImageDataset

    dataset = ImageDataset(args.images, IMAGE_SIZE, labels_from_folders=args.labels)
    items = [dataset[i] for i in range(len(dataset))]
    if args.labels:
        items, labels = zip(*items, strict=True)
        np.save(args.folder / "real_labels.npy", np.array(labels))
    images = [image.permute(1, 2, 0).mul(255).round().byte().numpy() for image in items]
    np.save(args.folder / "real.npy", np.stack(images))


def compare(args: argparse.Namespace, results: Results) -> None:
    for head in args.heads:
        if args.peer:
            weights = args.folder / f"peer-{head}.pt"
            worker = Worker(__file__, ["--work", "peer", head], args.peer)
            if not weights.exists():
                worker.ask("train", images=str(args.images), minutes=args.minutes, weights=str(weights))
            for kind in ("raw", "averaged"):
                results.add(f"0.4.0, {head}, {kind} weights", worker, weights=str(weights), kind=kind)
            worker.close()
        run = train_ours(args, head)
        worker = Worker(__file__, ["--work", "ours", head], OURS)
        default = results.add(f"ours, {head}", worker, run=str(run))
        results.add(f"ours, {head}, 4 x the steps", worker, run=str(run), num_steps=4 * default["num_steps"])
        worker.close()


def compare_labels(args: argparse.Namespace, results: Results) -> None:
    real_labels = str(args.folder / "real_labels.npy")
    for head in args.heads:
        # at the same time, each on half of the cores: minutes are not equally fast
        with ThreadPoolExecutor() as pool:
            runs = list(pool.map(partial(train_ours, args, head, cores=max(os.cpu_count() // 2, 1)), (False, True)))
        worker = Worker(__file__, ["--work", "ours", head], OURS)
        for temperature in UNGUIDED_TEMPERATURES:
            results.add(f"{head}, no labels, at {temperature}", worker, run=str(runs[0]), temperature=temperature)
        for scale, temperature in GUIDANCE:
            name = f"{head}, labels, guidance {scale}, at {temperature}"
            guided = dict(real_labels=real_labels, guidance_scale=scale, temperature=temperature)
            results.add(name, worker, run=str(runs[1]), **guided)
        worker.close()


def train_ours(args: argparse.Namespace, head: str, labels: bool = False, cores: int | None = None) -> Path:
    run = args.folder / (f"{head}-labels" if labels else head)
    if not (run / "checkpoints").exists():  # the one checkpoint is written at the end
        shutil.rmtree(run, ignore_errors=True)
        sizes = [f"--{name}={value}" for name, value in (SIZES | dict(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)).items()]
        options = [*(size.replace("_", "-") for size in sizes), "--head", head, "--run", str(run), "--sample-every", str(10**9)]
        options += ["--checkpoint-every", str(10**9), "--labels" if labels else "--no-labels"]
        main = "from autoregressive_diffusion_pytorch.cli import main; main()"
        command = [sys.executable, "-c", main, "train", str(args.images), "--minutes", str(args.minutes), *options]
        threads = dict(OMP_NUM_THREADS=str(cores)) if cores else {}
        subprocess.run(command, check=True, capture_output=True, env=environment(OURS) | threads)
    return run


def draw_curves(args: argparse.Namespace, results: Results) -> None:
    from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow

    curves = {}
    head_classes = dict(diffusion=ElucidatedDiffusion, flow=RectifiedFlow)
    for head in args.heads:
        head_class = head_classes[head]
        run = train_ours(args, head)
        worker = Worker(__file__, ["--work", "ours", head], OURS)
        for solver in head_class.NUM_SAMPLE_STEPS:
            for num_steps in sorted({n // EVALUATIONS_A_STEP.get(solver, 1) for n in CURVE_EVALUATIONS}):
                row = results.add(f"{head}, {solver}, {num_steps} steps", worker, run=str(run), solver=solver, num_steps=num_steps)
                curves.setdefault(head, {}).setdefault(solver, []).append((row["evaluations"], row["distance"]))
        worker.close()
    if args.plot:
        plot(curves, args.plot)


def plot(curves: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (head, solvers) in zip(axes, curves.items(), strict=True):
        for solver, points in solvers.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=solver)
        axis.set(title=f"{head} head", xlabel="evaluations of the head's network for each token", xscale="log", yscale="log")
        axis.set_xticks(CURVE_EVALUATIONS, map(str, CURVE_EVALUATIONS))
        axis.minorticks_off()
        axis.legend()
    axes[0].set_ylabel("distance to the real images")
    axes[0].set_yticks(ticks := [2, 3, 5, 10, 20], map(str, ticks))
    figure.savefig(file, dpi=120)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        side, head = sys.argv[2:]
        (work_as_peer if side == "peer" else work_as_ours)(head)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="images to train on")
    parser.add_argument("--distance", required=True, metavar="COMMAND", help="measures the distance of two files of images")
    parser.add_argument("--folder", required=True, type=Path, metavar="FOLDER", help="for the trained models and the results")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="where version 0.4.0 is installed; without it, only ours")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, for each model")
    parser.add_argument("--count", type=int, default=2000, help="samples for each figure")
    parser.add_argument("--heads", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--labels", action="store_true", help="with labels and guidance against without; a folder a class")
    parser.add_argument("--curve", action="store_true", help="every solver at several numbers of steps")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture of the curves")
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / ("real_labels.npy" if args.labels else "real.npy")).exists():
        save_real(args)
    print(f"{'':36}{'training steps':>15}{'ms an image':>14}{'distance':>10}")
    (draw_curves if args.curve else compare_labels if args.labels else compare)(args, Results(args))


if __name__ == "__main__":
    main()
