"""What do bf16 and int8 save in sampling on a CPU, and what do they change?

    ardiff train digits --labels --run runs/digits
    python benchmarks/precision.py --run runs/digits
    python benchmarks/precision.py --dims 256 512 1024 --threads 1 2

Of untrained models, 128 × 128 pixels in 64 tokens of 768 numbers, and of a run: seconds per image
at several batch sizes, and in parentheses the time of single precision over it. Precisions take
turns, and the figures are medians; a model is copied once, before. Of a run on small images also:

- frechet: the Fréchet distance of pixels in [0, 1] from as many samples as half of the images that
  the run learned from, with the labels of one half, to the other half.
- sliced: the sliced Wasserstein distance between the same, on average over the levels.
- mean, largest: the difference of a pixel from single precision with the same seed.

The floor is that of the two halves. Other seeds show what is chance.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from digits import frechet
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images
from autoregressive_diffusion_pytorch.evaluation.sliced_wasserstein import (
    patches_per_image,
    pyramid_patches,
    sliced_wasserstein,
)
from autoregressive_diffusion_pytorch.utils.modes import PRECISIONS, in_precision
from autoregressive_diffusion_pytorch.utils.rng import generator_for

CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)


def seconds_per_image(
    models: dict[str, Module], batch_size: int, clock: Callable, repeats: int, **options
) -> dict[str, float]:
    """The median of each model; the first turn, which warms up, does not count."""
    found = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            started = clock()
            model.sample(batch_size, generator=torch.Generator().manual_seed(0), **options)
            found[name].append((clock() - started) / batch_size)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def print_times(name: str, model: Module, args: argparse.Namespace, labels: Tensor | None) -> None:
    models = {precision: in_precision(model, precision) for precision in PRECISIONS}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch_size in args.batch_sizes:
            options = dict(compile=True) if args.compile else {}
            if labels is not None:
                options |= dict(labels=torch.arange(batch_size) % (int(labels.max()) + 1))
            seconds = seconds_per_image(
                models, batch_size, CLOCKS[args.clock], args.repeats, **options
            )
            cells = [f"{x:.4f} ({seconds['no'] / x:.2f})" for x in seconds.values()]
            print(f"{name:24}{threads:9}{batch_size:9}" + "".join(map("{:>16}".format, cells)))


def print_distances(run: Path, seeds: list[int], steps: int | None) -> tuple[Module, Tensor | None]:
    from autoregressive_diffusion_pytorch.cli.measuring import data_of
    from autoregressive_diffusion_pytorch.cli.run import checkpoint_of, load_model, read_config
    from autoregressive_diffusion_pytorch.evaluation.drawing import dataset_batch

    config = read_config(run)
    model, _ = load_model(config, checkpoint_of(run, None))
    dataset = data_of(config, config["source"], None)
    real, labels = dataset_batch(dataset, range(len(dataset)))
    order = torch.randperm(len(real), generator=generator_for(0))
    one, other = order[::2], order[1::2]
    labels = None if labels is None else labels[one]

    def row(name: str, images: Tensor, *differences: float) -> None:
        def patches(of: Tensor) -> list[Tensor]:
            return pyramid_patches(of, patches_per_image(len(of)), generator_for(0))

        sliced = statistics.mean(sliced_wasserstein(patches(real[other]), patches(images)))
        pixels = frechet(
            images.flatten(1).double().numpy(), real[other].flatten(1).double().numpy()
        )
        cells = (pixels, sliced, *differences)
        print(f"{name:24}" + "".join(f"{cell:12.4f}" for cell in cells), flush=True)

    heading = ("samples", "frechet", "sliced", "mean", "largest")
    print(f"\n{heading[0]:24}" + "".join(f"{text:>12}" for text in heading[1:]))
    row("two halves of real ones", real[one])
    for seed in seeds:
        drawn = {}
        for precision in PRECISIONS:
            options = dict(batch_size=256, seed=seed, labels=labels, num_steps=steps)
            drawn[precision] = images = draw_images(model, len(one), precision=precision, **options)
            away = (images - drawn["no"]).abs()
            row(f"{precision}, seed {seed}", images, away.mean().item(), away.max().item())
    return model, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="of `ardiff train`, on small images")
    parser.add_argument("--dims", nargs="*", type=int, default=[], help="of untrained models")
    parser.add_argument("--depth", type=int, default=12, help="of untrained models")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor does not count what else runs on a machine; for one thread",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed turns")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="of the solver; by default the run's own")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    args = parser.parse_args()

    trained = None if args.run is None else print_distances(args.run, args.seeds, args.steps)
    columns = "".join(map("{:>16}".format, PRECISIONS))
    print(f"\n{'seconds per image':24}{'threads':>9}{'images':>9}{columns}")
    if trained is not None:
        print_times(str(args.run)[-22:], trained[0], args, trained[1])
    for dim in args.dims:
        sizes = dict(dim=dim, depth=args.depth)
        model = ImageAutoregressiveFlow(model=sizes, image_size=128, patch_size=16)
        print_times(f"width {dim}", model, args, None)


if __name__ == "__main__":
    main()
