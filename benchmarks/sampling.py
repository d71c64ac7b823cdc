"""Sampling: version 0.4.0 of the package, this library, and the cached transformer alone, in one
run.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/sampling.py --peer PEER

The models have the arguments of the README's trainer example and random weights, and sample at each
side's own defaults. Heads that version 0.4.0 does not have are compared with both of its. Three
tables: seconds a batch on 128 × 128 pixels (64 tokens of 768 numbers); the growth with the number
of tokens; the growth with the number of steps. "transformer" is the time of the cached
transformer's steps alone, "diffusion" and "flow" those of version 0.4.0. Memory is the most that
was held above what the model holds at rest. Each version lives in a process of its own; they take
turns, and the figures are medians. All of it is also written as JSON, with `--json`.
"""

import argparse
import contextlib
import ctypes
import json
import re
import statistics
import sys
import time
from pathlib import Path

from worker import CLASSES, OURS, PEER_HEADS, Worker, serve

PATCH_SIZE = 16


def work(
    side: str, head: str, device: str, dtype: str, dim: str, depth: str, *compile: str
) -> None:
    """A worker of one head."""
    import torch

    import autoregressive_diffusion_pytorch as package

    sizes = dict(dim=int(dim), depth=int(depth))
    options = dict(compile=True) if side == "ours" and compile else {}

    def make(num_tokens: int):
        torch.manual_seed(0)
        image_size = PATCH_SIZE * round(num_tokens**0.5)
        model = getattr(package, CLASSES[head])(
            model=sizes, image_size=image_size, patch_size=PATCH_SIZE
        )
        return model.to(device, getattr(torch, dtype)).eval()

    models = {}  # one at a time: the largest would be at rest in the memory of all

    def model_of(num_tokens: int):
        if num_tokens not in models:
            models.clear()
            models[num_tokens] = make(num_tokens)
        return models[num_tokens]

    def timed(function, *args, **kwargs) -> dict:
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        memory = CudaMemory() if device == "cuda" else ProcessMemory()
        synchronize()
        started = time.perf_counter()
        function(*args, **kwargs)
        synchronize()
        return dict(seconds=time.perf_counter() - started, megabytes=memory.growth() / 2**20)

    def sample(batch_size: int, num_tokens: int, num_steps: int | None = None) -> dict:
        model = model_of(num_tokens)
        return timed(
            model.sample,
            batch_size=batch_size,
            **options,
            **({} if num_steps is None else dict(num_steps=num_steps)),
        )

    def transformer(batch_size: int, num_tokens: int) -> dict:
        backbone = model_of(num_tokens).model.backbone
        step = backbone.step
        if options:
            from autoregressive_diffusion_pytorch.utils.modes import compiled

            step = compiled(step, backbone, dynamic=True)
        embeds = torch.randn(
            batch_size, 1, sizes["dim"], device=device, dtype=getattr(torch, dtype)
        )

        @torch.inference_mode()
        def run() -> None:
            state = None
            for _ in range(num_tokens):
                _, state = step(embeds, state)

        return timed(run)

    serve(sample=sample, transformer=transformer)


class ProcessMemory:
    """How far the resident memory of this process rises above what it is now; on Linux, elsewhere
    nothing is known."""

    def __init__(self):
        try:
            # what earlier runs have left free goes back to the system
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.at_rest = self.read("VmRSS")
        except (AttributeError, OSError):
            self.at_rest = float("nan")

    def read(self, name: str) -> float:
        try:
            return 1024 * int(
                re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]
            )
        except (OSError, TypeError):
            return float("nan")

    def growth(self) -> float:
        return self.read("VmHWM") - self.at_rest


class CudaMemory:
    """How far the memory on the GPU rises above what it is now."""

    def __init__(self):
        import torch

        torch.cuda.reset_peak_memory_stats()
        self.at_rest = torch.cuda.memory_allocated()

    def growth(self) -> float:
        import torch

        return torch.cuda.max_memory_allocated() - self.at_rest


def medians(repeats: int, *questions: tuple[Worker, str], **request) -> list[dict]:
    """Asks the workers in turns, and returns the medians of each one's answers; the first, which
    warms up, does not count."""
    turns = [
        [worker.ask(what, **request) for worker, what in questions] for _ in range(repeats + 1)
    ][1:]
    return [
        {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}
        for answers in zip(*turns, strict=True)
    ]


def against_the_peer(workers: dict[str, Worker], args: argparse.Namespace, head: str) -> list[dict]:
    """Seconds a batch, for each batch size."""
    rows = []
    for batch_size in args.batch_sizes:
        questions = [(workers["ours"], "sample"), (workers["ours"], "transformer")]
        peers = [name for name in workers if name != "ours"]
        questions += [(workers[name], "sample") for name in peers]
        ours, transformer, *others = medians(
            args.repeats, *questions, batch_size=batch_size, num_tokens=64
        )
        row = dict(
            head=head,
            batch_size=batch_size,
            ours=ours["seconds"],
            transformer=transformer["seconds"],
            ours_over_transformer=ours["seconds"] / transformer["seconds"],
            megabytes=ours["megabytes"],
        )
        for name in PEER_HEADS:
            other = dict(zip(peers, others, strict=True)).get(name)
            row[name] = other and other["seconds"]
            row[f"{name}_over_ours"] = other and other["seconds"] / ours["seconds"]
            row[f"{name}_megabytes"] = other and other["megabytes"]
        rows.append(row)
    return rows


def growth_with_tokens(worker: Worker, args: argparse.Namespace, head: str) -> list[dict]:
    rows = []
    for num_tokens in args.tokens:
        questions = (worker, "sample"), (worker, "transformer")
        ours, transformer = medians(args.repeats, *questions, batch_size=1, num_tokens=num_tokens)
        rows.append(
            dict(
                head=head,
                tokens=num_tokens,
                ours=ours["seconds"],
                transformer=transformer["seconds"],
                head_milliseconds_a_token=1000
                * (ours["seconds"] - transformer["seconds"])
                / num_tokens,
                megabytes=ours["megabytes"],
            )
        )
    return rows


def growth_with_steps(worker: Worker, args: argparse.Namespace, head: str) -> list[dict]:
    rows = []
    for num_steps in args.steps if head != "energy" else ():
        (ours,) = medians(
            args.repeats, (worker, "sample"), batch_size=16, num_tokens=64, num_steps=num_steps
        )
        rows.append(
            dict(head=head, steps=num_steps, ours=ours["seconds"], megabytes=ours["megabytes"])
        )
    return rows


def peers_of(head: str) -> tuple[str, ...]:
    """The heads of version 0.4.0 that one is compared with."""
    return (head,) if head in PEER_HEADS else PEER_HEADS


def as_text(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    cells = [[name.replace("_over_", " / ").replace("_", " ") for name in rows[0]]]
    cells += [[as_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)),
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="DIR",
        help="where version 0.4.0 is installed; without it, only ours",
    )
    parser.add_argument("--heads", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[1, 16, 64])
    parser.add_argument(
        "--tokens", nargs="*", type=int, default=[64, 256, 1024], help="numbers of tokens, squares"
    )
    parser.add_argument(
        "--steps", nargs="*", type=int, default=[4, 16, 64], help="numbers of steps"
    )
    parser.add_argument("--dim", type=int, default=512, help="width of the transformer")
    parser.add_argument("--depth", type=int, default=8, help="layers of the transformer")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="type of the weights, of ours",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile ours, and the transformer alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables here")
    args = parser.parse_args()
    if any(round(n**0.5) ** 2 != n for n in args.tokens):
        parser.error(f"--tokens must be squares, got {args.tokens}")

    tables = {
        "against the peer, seconds a batch": [],
        "tokens, batch of 1": [],
        "steps, batch of 16": [],
    }
    for head in args.heads:
        with contextlib.ExitStack() as stack:
            sizes, flags = [str(args.dim), str(args.depth)], ["--compile"] * args.compile
            ours = ["--work", "ours", head, args.device, args.dtype, *sizes, *flags]
            workers = {"ours": Worker(__file__, ours, OURS)}
            for name in peers_of(head) if args.peer else ():
                arguments = ["--work", "peer", name, args.device, "float32", *sizes]
                workers[name] = Worker(__file__, arguments, args.peer)
            for worker in workers.values():
                stack.callback(worker.close)
            sections = (
                against_the_peer(workers, args, head),
                growth_with_tokens(workers["ours"], args, head),
                growth_with_steps(workers["ours"], args, head),
            )
            for rows, section in zip(tables.values(), sections, strict=True):
                rows += section
    for title, rows in tables.items():
        if rows:
            print_table(title, rows)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
