"""Likelihoods: what they cost, which model finds unseen images more probable, and whether a model
knows what it was trained on.

    python benchmarks/likelihood.py cost

Seconds a sequence, as tokens get wider and sequences longer: of one pass through the transformer,
of the evaluations of the head's network without derivatives, and of `log_prob` with the estimated
and the exact divergence, at as many evaluations.

    pip install --target PEER autoregressive-diffusion-pytorch==0.4.0 --no-deps
    pip install --target PEER einx torchdiffeq
    python benchmarks/likelihood.py compare --images FOLDER --peer PEER \\
        --folder runs/likelihood --minutes 5

Bits per dimension of images that no model was trained on (every tenth of the folder), of both heads
of version 0.4.0 of the package and of this library, trained for the same time on the other images.
Sizes, training and resuming as in `quality.py`. The networks of version 0.4.0 are integrated by
this library's solver, the denoiser with its clamp and without. All have the same noise of
dequantisation.

    ardiff train digits --hold-out 0.1 --run runs/digits
    python benchmarks/likelihood.py known --run runs/digits --images FOLDER

Whether a model of digits tells digits that it has not seen from other images, by the bits per
dimension it gives them: the share of pairs of an unseen digit and another image in which the digit
has fewer bits (AUROC).
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import quality_worker
from configurations import change, peer
from quality_worker import SIZES, Configuration, marks_of
from worker import CLASSES, OURS, Worker, serve

IMAGE_SIZE, PATCH_SIZE = 32, 8
COST_STEPS = 4  # of the Runge-Kutta solver; the cost grows with them
WIDTHS, LENGTHS = (4, 16, 48, 192), (16, 64, 256)


def cost(args: argparse.Namespace) -> None:
    import torch

    from autoregressive_diffusion_pytorch import AutoregressiveFlow

    def seconds(function) -> float:
        function()
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    print(
        f"{4 * COST_STEPS} evaluations, flow head, dim 256, depth 6, head of width 384, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"{'width':>6}{'tokens':>8}{'transformer':>13}{'evaluations':>13}{'estimated':>11}{'exact':>9}"
        "   seconds a sequence"
    )
    for width in WIDTHS:
        for length in LENGTHS:
            model = AutoregressiveFlow(
                **SIZES, dim_input=width, max_seq_len=length, mlp_width=384
            ).eval()
            seq = torch.randn(args.batch_size, length, width)
            log_prob = partial(model.log_prob, seq, solver="rk4", num_steps=COST_STEPS)
            with torch.no_grad():
                conds = model.conditions(seq)
                draw = model.head.sampler(solver="euler", num_steps=4 * COST_STEPS)
                rows = [
                    seconds(lambda: model.conditions(seq)),  # noqa: B023 - called at once
                    seconds(lambda: draw(conds)),  # noqa: B023
                    seconds(partial(log_prob, divergence="hutchinson")),
                    seconds(partial(log_prob, divergence="exact")),
                ]
            transformer, evaluations, estimated, exact = (row / args.batch_size for row in rows)
            print(
                f"{width:6}{length:8}{transformer:13.4f}{evaluations:13.4f}{estimated:11.4f}{exact:9.4f}",
                flush=True,
            )


def split_folder(images: Path, folder: Path) -> tuple[Path, Path]:
    """Two folders of links: to every tenth image, and to the others."""
    from autoregressive_diffusion_pytorch.data.folder_listing import list_folder

    for i, file in enumerate(list_folder(images).images):
        link = folder / ("held-out" if i % 10 == 0 else "train") / file.relative_to(images)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    return folder / "train", folder / "held-out"


def held_out(folder: str, count: int):
    from torch.utils.data import Subset

    from autoregressive_diffusion_pytorch import ImageDataset

    dataset = ImageDataset(folder, IMAGE_SIZE)
    count = min(count, len(dataset))
    return Subset(dataset, [i * len(dataset) // count for i in range(count)])


def summary(bits) -> dict:
    from autoregressive_diffusion_pytorch.evaluation.report import mean_and_standard_error

    mean, error = mean_and_standard_error(bits)
    return dict(bits=mean, error=error)


def work_as_ours(head: str) -> None:
    import autoregressive_diffusion_pytorch as package
    from autoregressive_diffusion_pytorch.evaluation.report import bits_per_dim
    from autoregressive_diffusion_pytorch.utils.manifests import newest_checkpoint

    def bits(run: str, images: str, count: int, **kwargs) -> dict:
        checkpoint = newest_checkpoint(Path(run) / "checkpoints")
        model = getattr(package, CLASSES[head]).from_pretrained(checkpoint)
        return summary(bits_per_dim(model, held_out(images, count), **kwargs))

    serve(bits=bits)


def work_as_peer(head: str) -> None:
    """A worker with version 0.4.0 and, imported after it under the same name, this library."""
    import torch

    import autoregressive_diffusion_pytorch as package

    peer = getattr(package, CLASSES[head])(
        model=SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE
    ).eval()
    for name in [
        name for name in sys.modules if name.split(".")[0] == "autoregressive_diffusion_pytorch"
    ]:
        del sys.modules[name]
    sys.path.insert(0, str(OURS))

    import autoregressive_diffusion_pytorch as ours
    from autoregressive_diffusion_pytorch.evaluation.report import bits_per_dim

    model = getattr(ours, CLASSES[head])(model=SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    part = peer.model.diffusion if head == "diffusion" else peer.model.flow

    def conditions(seq, **_):
        # what its model hands to its head, for which the head's forward is put aside
        part.forward = lambda tokens, cond, **_: cond
        try:
            return peer.model(seq).view(*seq.shape[:2], -1)
        finally:
            del part.forward

    class Network(torch.nn.Module):
        """Its network, as the heads of this library ask for one; times go along with their
        embedding, as the last entry."""

        def __init__(self, clamped: bool):
            super().__init__()
            self.clamped = clamped

        def modulate_time(self, times):
            times = times.float().reshape(-1)
            return torch.cat((part.net.to_time_emb(times), times[:, None]), dim=-1).squeeze(0)

        def modulate_z(self, z):
            return torch.nn.functional.pad(z, (0, 1))

        def denoise(self, noised, modulation):
            cond, times = modulation[..., :-1], modulation[..., -1:]
            x = noised
            for (
                norm,
                block,
                gamma,
            ) in part.net.layers:  # its forward, with time and condition added before
                silu = torch.nn.functional.silu(cond)
                x = block(norm(x, condition=silu)) * (gamma(silu) + 1) + x
            if head == "flow":
                return (x - noised) / (1 - times).clamp_min(part.eps)
            if not self.clamped:
                return x
            sigma = (4 * times).exp()
            noised = noised / part.c_in(sigma)
            denoised = (part.c_skip(sigma) * noised + part.c_out(sigma) * x).clamp(-1, 1)
            return (denoised - part.c_skip(sigma) * noised) / part.c_out(sigma)

    model.model.conditions = conditions

    def load(weights: str, kind: str) -> None:
        saved = torch.load(weights, weights_only=True)
        average = {
            name.removeprefix("ema_model."): part
            for name, part in saved["average"].items()
            if name.startswith("ema_model.")
        }
        peer.load_state_dict(saved["model"] if kind == "raw" else average)

    def bits(weights: str, kind: str, clamped: bool, images: str, count: int, **kwargs) -> dict:
        load(weights, kind)
        sizes = dict(dim_token=part.dim, dim_z=peer.model.start_token.shape[0], width=1, depth=1)
        model.model.head = (
            ours.ElucidatedDiffusion(**sizes, sigma_data=0.5)
            if head == "diffusion"
            else ours.RectifiedFlow(**sizes, model_output_clean=False, sigma_data=0.5)
        )
        model.model.head.net = Network(clamped)
        return summary(bits_per_dim(model, held_out(images, count), **kwargs))

    def check(weights: str) -> dict:
        """How far its denoised tokens, or its velocities, are from its own where its network is
        asked as here."""
        load(weights, "raw")
        noised, cond = torch.randn(50, part.dim), torch.randn(50, peer.model.start_token.shape[0])
        if head == "flow":
            times = torch.rand(50)
            own = (part.net(noised, times=times, cond=cond) - noised) / (
                1 - times[:, None]
            ).clamp_min(part.eps)
            return dict(difference=difference(Network(False), noised, times, cond, own))
        sigma = (2 * torch.randn(50)).exp()
        levels, differences = sigma[:, None], []
        for clamped in (False, True):
            own = part.preconditioned_network_forward(noised, sigma, cond=cond, clamp=clamped)
            own = (own - part.c_skip(levels) * noised) / part.c_out(levels)
            differences.append(
                difference(Network(clamped), part.c_in(levels) * noised, sigma.log() / 4, cond, own)
            )
        return dict(difference=max(differences))

    @torch.no_grad()
    def difference(network, noised, times, cond, expected) -> float:
        modulations = torch.stack(
            [network.modulate_time(time) for time in times]
        ) + network.modulate_z(cond)
        return (network.denoise(noised, modulations) - expected).abs().max().item()

    serve(bits=bits, check=check)


def trained(configuration: Configuration, args: argparse.Namespace, path: Path) -> tuple[Path, int]:
    """The folder of a configuration that is trained for `args.minutes` on one core, now or before,
    and its steps."""
    folder = args.folder / quality_worker.as_file_name(configuration.name)
    if args.minutes not in marks_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [json.dumps(asdict(configuration)), str(folder), str(args.images)]
        trainer = Worker(quality_worker.__file__, arguments, path, OMP_NUM_THREADS="1")
        trainer.ask("train", minutes=args.minutes)
        trainer.close()
    return folder, marks_of(folder)[args.minutes]


def compare(args: argparse.Namespace) -> None:
    train, unseen = split_folder(args.images, args.folder)
    args.images = train
    given = dict(
        images=str(unseen),
        count=args.count,
        rtol=args.tolerance,
        atol=args.tolerance,
        batch_size=args.batch_size,
    )
    print(f"{'':44}{'training steps':>15}{'bits per dimension':>22}")

    def show(name: str, row: dict) -> None:
        print(f"{name:44}{row['steps']:15}{row['bits']:13.3f} ± {row['error']:.3f}", flush=True)

    for head in args.heads:
        if args.peer:
            weights, steps = trained(
                peer(f"0.4.0, {head}", head=head, patch_size=PATCH_SIZE), args, args.peer
            )
            weights = weights / f"{args.minutes:g}.pt"
            worker = Worker(__file__, ["--work", "peer", head], args.peer)
            difference = worker.ask("check", weights=str(weights))["difference"]
            if difference > 1e-2:
                raise SystemExit(
                    "version 0.4.0's network gives other numbers here than by itself, "
                    f"by {difference}"
                )
            for kind in ("raw", "averaged"):
                for clamped in (True, False) if head == "diffusion" else (False,):
                    name = f"0.4.0, {head}, {kind} weights" + (", clamped" if clamped else "")
                    bits = worker.ask(
                        "bits", weights=str(weights), kind=kind, clamped=clamped, **given
                    )
                    show(name, bits | dict(steps=steps))
            worker.close()
        worker = Worker(__file__, ["--work", "ours", head], OURS)
        run, steps = trained(change(f"this, {head}", head=head), args, OURS)
        show(f"ours, {head}", worker.ask("bits", run=str(run), **given) | dict(steps=steps))
        worker.close()


def known(args: argparse.Namespace) -> None:
    import torch
    from sklearn.metrics import roc_auc_score

    from autoregressive_diffusion_pytorch import ImageDataset
    from autoregressive_diffusion_pytorch.cli.run import load_model, read_config, split
    from autoregressive_diffusion_pytorch.cli.sources import dataset_of
    from autoregressive_diffusion_pytorch.evaluation.report import bits_per_dim
    from autoregressive_diffusion_pytorch.utils.manifests import newest_checkpoint

    config = read_config(args.run)
    model, _ = load_model(config, newest_checkpoint(args.run / "checkpoints"))
    _, unseen = split(dataset_of(config)[0], config)
    if unseen is None:
        raise SystemExit(f"{args.run} held out no digits: train it with --hold-out 0.1")
    digits = torch.stack(list(unseen))
    count = len(digits)
    flowers = ImageDataset(args.images, model.image_size, channels=model.channels)
    torch.manual_seed(0)
    sets = {
        "digits": digits,
        "photographs": torch.stack([flowers[i * len(flowers) // count] for i in range(count)]),
        "digits, black and white swapped": 1 - digits,
        "digits, upside down": digits.flip(-2),
        "digits, their pixels shuffled": digits.flatten(1)[
            :, torch.randperm(digits[0].numel())
        ].view_as(digits),
        "noise": torch.rand_like(digits),
        "one grey all over": torch.rand(count, 1, 1, 1).expand_as(digits),
        "black": torch.zeros_like(digits),
    }
    print(f"{'':34}{'bits per dimension':>20}{'AUROC':>8}   {count} images each")
    bits = {name: bits_per_dim(model, images.contiguous()) for name, images in sets.items()}
    for name, other in bits.items():
        both, is_other = torch.cat((bits["digits"], other)), torch.arange(2 * count) >= count
        area = "" if name == "digits" else f"{roc_auc_score(is_other, both):.3f}"
        print(f"{name:34}{other.mean():11.3f} ± {other.std() / count**0.5:.3f}{area:>10}")


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        side, head = sys.argv[2:]
        (work_as_peer if side == "peer" else work_as_ours)(head)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("cost")
    command.add_argument("--batch-size", type=int, default=4, help="sequences at a time")
    command.set_defaults(run_command=cost)

    command = commands.add_parser("compare")
    command.add_argument(
        "--images",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="images to train on, and to hold out",
    )
    command.add_argument(
        "--folder", required=True, type=Path, metavar="FOLDER", help="for the trained models"
    )
    command.add_argument(
        "--peer",
        type=Path,
        metavar="DIR",
        help="where version 0.4.0 is installed; without it, only ours",
    )
    command.add_argument("--minutes", type=float, default=5.0, help="of training, for each model")
    command.add_argument("--count", type=int, default=200, help="held-out images")
    command.add_argument("--tolerance", type=float, default=1e-3, help="of the solver")
    command.add_argument("--batch-size", type=int, default=10, help="images at a time")
    command.add_argument("--heads", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    command.set_defaults(run_command=compare)

    command = commands.add_parser("known")
    command.add_argument("--run", required=True, type=Path, help="of digits, some of them held out")
    command.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photographs")
    command.set_defaults(run_command=known)

    args = parser.parse_args()
    args.run_command(args)


if __name__ == "__main__":
    main()
