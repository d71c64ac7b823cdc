"""Training: version 0.4.0 of the package, this library, and the machine's matrix products, in one
run.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/training.py --peer PEER --images FOLDER
    python benchmarks/training.py --images FOLDER --device cuda --dim 768 --depth 12 \\
        --heads flow --compile

Both sides have the arguments of the README's trainer example (images of 128 × 128 pixels, width
512, depth 8) and the defaults of their own for the rest, one noise draw a token among them. A step
is forward, backward and Adam, on the same images in the same order. Ours also trains in bf16 mixed
precision, and with gradient checkpointing.

"Of the machine" is the share of the rate of matrix products that the training reaches: the
operations of matrix products and attention in a step, forward and backward, over those of one large
product in the same time and precision, measured in turn with the steps. The loss is the mean of the
last quarter of the steps. Memory is the most that a step held above what was held before. Each
model lives in a process of its own; they take turns, a few steps each, so that a machine that slows
down does so for all. Figures are medians.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sampling import CudaMemory, ProcessMemory
from worker import CLASSES, OURS, PEER_HEADS, Worker, serve

IMAGE_SIZE, PATCH_SIZE = 128, 16
STEPS_A_TURN = 4


def work(head: str, images_file: str, arguments: str) -> None:
    """A worker of one model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import autoregressive_diffusion_pytorch as package

    options = json.loads(arguments)
    device, dtype = torch.device(options["device"]), getattr(torch, options["dtype"])
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.manual_seed(0)
    images = torch.load(images_file, weights_only=True)
    sizes = dict(dim=options["dim"], depth=options["depth"])
    model = getattr(package, CLASSES[head])(
        model=sizes, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE
    ).to(device)
    if options["checkpointing"]:
        model.checkpoint_gradients()
    loss_of = torch.compile(model) if options["compile"] else model
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    order = torch.Generator().manual_seed(0)
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()

    def step(function=loss_of) -> float:
        batch = images[torch.randint(len(images), (options["batch_size"],), generator=order)].to(
            device
        )
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = function(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def product() -> float:
        """Seconds of a matrix product."""
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        return time.perf_counter() - started

    def train() -> dict:
        model.train()
        losses, seconds = [], []
        for _ in range(STEPS_A_TURN):
            started = time.perf_counter()
            losses.append(step())
            synchronize()
            seconds.append(time.perf_counter() - started)
        return dict(
            losses=losses, seconds=seconds, rate=2 * size**3 / min(product() for _ in range(5))
        )

    def measure() -> dict:
        with FlopCounterMode(display=False) as counter:
            step(model)
        memory = CudaMemory() if device.type == "cuda" else ProcessMemory()
        step()
        parameters = sum(p.numel() for p in model.parameters())
        return dict(
            parameters=parameters,
            flops=counter.get_total_flops(),
            megabytes=memory.growth() / 2**20,
        )

    serve(train=train, measure=measure)


def compare(args: argparse.Namespace, images_file: str, stack: contextlib.ExitStack) -> None:
    common = dict(
        device=args.device,
        dtype="float32",
        compile=False,
        checkpointing=False,
        dim=args.dim,
        depth=args.depth,
    )
    common |= dict(batch_size=args.batch_size)
    variants = {"0.4.0": (Path(args.peer), {})} if args.peer else {}
    variants |= {
        "this": (OURS, {}),
        "this, checkpointing": (OURS, dict(checkpointing=True)),
        "this, bf16": (OURS, dict(dtype="bfloat16")),
    }
    if args.compile:
        variants["this, bf16, compiled"] = (OURS, dict(dtype="bfloat16", compile=True))
    workers = {
        (head, name): Worker(
            __file__, ["--work", head, images_file, json.dumps(common | options)], path
        )
        for head in args.heads
        for name, (path, options) in variants.items()
        if path == OURS or head in PEER_HEADS
    }
    for worker in workers.values():
        stack.callback(worker.close)
    sizes = {key: worker.ask("measure") for key, worker in workers.items()}
    answers = {key: [] for key in workers}
    for _ in range(args.steps // STEPS_A_TURN):
        for key, worker in workers.items():
            answers[key].append(worker.ask("train"))

    titles = (
        "parameters",
        f"loss, {args.steps} steps",
        "s/step",
        "images/s",
        "of the machine",
        "MB",
    )
    print(
        f"{'':32}{titles[0]:>12}{titles[1]:>17}{titles[2]:>8}{titles[3]:>10}{titles[4]:>16}{titles[5]:>7}"
    )
    for (head, name), turns in answers.items():
        size = sizes[head, name]
        losses = [loss for turn in turns for loss in turn["losses"]]
        loss = statistics.mean(losses[-max(len(losses) // 4, 1) :])
        step = statistics.median(seconds for turn in turns for seconds in turn["seconds"])
        rate = statistics.median(turn["rate"] for turn in turns)
        flops = sizes[head, name.replace(", checkpointing", "")][
            "flops"
        ]  # what is computed again does not count
        print(
            f"{head:10}{name:22}{size['parameters']:12,}{loss:17.4f}{step:8.3f}"
            f"{args.batch_size / step:10.1f}"
            f"{flops / step / rate:16.2f}{size['megabytes']:7.0f}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", metavar="DIR", help="where version 0.4.0 is installed")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="images to train on")
    parser.add_argument("--heads", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--steps", type=int, default=24, help="training steps of each model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=512, help="width of the transformer")
    parser.add_argument("--depth", type=int, default=8, help="layers of the transformer")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="also ours compiled")
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
