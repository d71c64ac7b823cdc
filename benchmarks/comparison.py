"""This library against version 0.4.0 of the package of the same name, in one run: size, loss, speed of training and sampling.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/comparison.py --peer PEER --images FOLDER

Both sides have the arguments of the README's trainer example, and the defaults of their own for the rest. Each model lives in a
process of its own; the processes take turns, a few steps each, so that a machine that slows down does so for all. Training steps
are forward, backward and Adam on the same images in the same order; the loss is the mean of the last quarter of them.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from worker import CLASSES, OURS, Worker, serve

IMAGE_SIZE, PATCH_SIZE, DIM, BATCH_SIZE = 128, 16, 512, 16
STEPS_A_TURN = 4


def work(head: str, images_file: str) -> None:
    """A worker of one head."""
    import torch

    import autoregressive_diffusion_pytorch as package

    torch.manual_seed(0)
    images = torch.load(images_file, weights_only=True)
    model = getattr(package, CLASSES[head])(model=dict(dim=DIM), image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    order = torch.Generator().manual_seed(0)

    def train() -> dict:
        model.train()
        losses, seconds = [], []
        for _ in range(STEPS_A_TURN):
            batch = images[torch.randint(len(images), (BATCH_SIZE,), generator=order)]
            started = time.perf_counter()
            loss = model(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - started)
        return dict(losses=losses, seconds=seconds)

    def sample() -> dict:
        started = time.perf_counter()
        model.sample(batch_size=1)
        return dict(seconds=[time.perf_counter() - started])

    def size() -> dict:
        return dict(parameters=sum(p.numel() for p in model.parameters()))

    serve(train=train, sample=sample, size=size)


def compare(args: argparse.Namespace, images_file: str, stack: contextlib.ExitStack) -> None:
    sides = {"peer": Path(args.peer), "ours": OURS}
    workers = {
        (side, head): Worker(__file__, ["--work", head, images_file], path) for head in CLASSES for side, path in sides.items()
    }
    for worker in workers.values():
        stack.callback(worker.close)

    losses, steps, samples = ({key: [] for key in workers} for _ in range(3))
    for _ in range(args.steps // STEPS_A_TURN):
        for key, worker in workers.items():
            answer = worker.ask("train")
            losses[key] += answer["losses"]
            steps[key] += answer["seconds"]
    for _ in range(args.samples):
        for key, worker in workers.items():
            samples[key] += worker.ask("sample")["seconds"]

    print(f"{'':17}{'parameters':>12}{f'loss, {args.steps} steps':>18}{'s/training step':>17}{'s/sample':>10}")
    for head in CLASSES:
        medians = {}
        for side in sides:
            key = side, head
            size = workers[key].ask("size")["parameters"]
            loss = statistics.mean(losses[key][-max(args.steps // 4, 1) :])
            medians[side] = statistics.median(steps[key][1:]), statistics.median(samples[key])
            print(f"{head:11}{side:6}{size:12,}{loss:18.4f}{medians[side][0]:17.3f}{medians[side][1]:10.2f}")
        ratios = [peer / ours for peer, ours in zip(medians["peer"], medians["ours"], strict=True)]
        print(f"{'':11}{'peer / ours':24}{'':12}{ratios[0]:17.2f}{ratios[1]:10.2f}")


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="DIR", help="where version 0.4.0 is installed")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="images to train on")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each model")
    parser.add_argument("--samples", type=int, default=3, help="samples of each model")
    args = parser.parse_args()
    if args.steps < STEPS_A_TURN or args.steps % STEPS_A_TURN:
        parser.error(f"--steps must be a multiple of {STEPS_A_TURN}, got {args.steps}")

    import torch

    from autoregressive_diffusion_pytorch import ImageDataset

    dataset = ImageDataset(args.images, IMAGE_SIZE)
    indices = range(0, len(dataset), max(1, len(dataset) // 256))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        images_file = f"{folder}/images.pt"
        torch.save(torch.stack([dataset[i] for i in indices]), images_file)
        compare(args, images_file, stack)


if __name__ == "__main__":
    main()
