"""Loading of many small files against training on them.

    python benchmarks/loading.py --images FOLDER

Seconds to find the files, twice; images a second that are read alone, by the process itself and by
workers, and from memory once they are cached; and images a second that a training takes on the same
machine, reading and all. `--drop-caches` empties the system's cache of files first (takes root), so
that the first scan finds them on the disk.
"""

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageDataset, ImageTrainer
from autoregressive_diffusion_pytorch.data.folder_listing import list_folder
from autoregressive_diffusion_pytorch.data.items import TrainingItems
from autoregressive_diffusion_pytorch.data.order import endless_batches
from autoregressive_diffusion_pytorch.utils.modes import best_precision

BATCH_SIZE = 64


def reading(dataset: ImageDataset, seconds: float, num_workers: int) -> float:
    """Images a second."""
    order = dict(seed=0, start=0, process_index=0, num_processes=1)
    batches = endless_batches(TrainingItems(dataset), BATCH_SIZE, **order, num_workers=num_workers)
    for _ in range(8):
        next(batches)
    started = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        if time.perf_counter() - started > seconds:
            return count * BATCH_SIZE / (time.perf_counter() - started)


def training(dataset, steps: int, num_workers: int, image_size: int) -> float:
    """Images a second of a small model's training, reading and all."""
    model = ImageAutoregressiveFlow(
        model=dict(dim=256, depth=6, heads=4, mlp_width=384), image_size=image_size, patch_size=4
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = ImageTrainer(
            model,
            dataset=dataset,
            num_train_steps=10**9,
            batch_size=BATCH_SIZE,
            checkpoints_folder=f"{folder}/checkpoints",
            results_folder=f"{folder}/results",
            log_with=None,
            accelerate_kwargs=dict(mixed_precision=best_precision()),
            dataloader_kwargs=dict(num_workers=num_workers),
        )
        batches = endless_batches(
            trainer.dataset,
            BATCH_SIZE,
            seed=0,
            start=0,
            process_index=0,
            num_processes=1,
            num_workers=num_workers,
        )
        trainer._train_step(batches)
        started = time.perf_counter()
        for _ in range(steps):
            trainer._train_step(batches)
        return steps * BATCH_SIZE / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="of the training")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement of reading")
    parser.add_argument("--drop-caches", action="store_true")
    args = parser.parse_args()
    if args.drop_caches:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    for time_name in ("first", "second"):
        started = time.perf_counter()
        count = len(list_folder(args.images).images)
        print(
            f"finding {count:,} files, the {time_name} time: {time.perf_counter() - started:.2f} s"
        )
    print(
        f"images/s on {os.cpu_count()} cores, of {args.image_size} × {args.image_size} pixels, "
        f"{BATCH_SIZE} a batch"
    )
    plain = ImageDataset(args.images, args.image_size)
    for num_workers in (0, 1, 2):
        print(
            f"  reading alone, {num_workers} workers: "
            f"{reading(plain, args.seconds, num_workers):9,.0f}",
            flush=True,
        )
    cached = ImageDataset(args.images, args.image_size, cache_in_memory=True)
    for i in range(len(cached)):
        cached[i]
    print(f"  the same from memory, 0 workers: {reading(cached, args.seconds, 0):9,.0f}")
    in_memory = torch.rand(BATCH_SIZE, 3, args.image_size, args.image_size)
    for name, dataset, num_workers in (
        ("a tensor", in_memory, 0),
        ("files", plain, 0),
        ("files", plain, 1),
        ("memory", cached, 0),
    ):
        rate = training(dataset, args.steps, num_workers, args.image_size)
        print(f"  training from {name}, {num_workers} workers: {rate:9,.1f}", flush=True)


if __name__ == "__main__":
    main()
