"""Small trainings, what happens to them and what is seen of them, and a way to run scripts by two
processes."""

import os
import random
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=3, mlp_width=16)
SMALL = dict(image_size=4, patch_size=2, channels=1, model=SIZES)


class Seeded(ImageAutoregressiveFlow):
    """Whose noise for an image follows from the image, however the batch is divided."""

    def forward(self, images):
        losses = []
        for image in images:
            torch.manual_seed(int(1e6 * image.sum()))
            losses.append(super().forward(image.unsqueeze(0)))
        return torch.stack(losses).mean()


def images(count=32):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def trainer_in(folder, model=None, dataset=None, **kwargs):
    settings = dict(
        num_train_steps=3,
        batch_size=2,
        num_samples=3,
        max_grad_norm=1e9,
        learning_rate=0.01,
        checkpoints_folder=f"{folder}/checkpoints",
        results_folder=f"{folder}/results",
        logs_folder=f"{folder}/logs",
    )
    if model is None:
        torch.manual_seed(0)
        model = Seeded(**SMALL)
    return ImageTrainer(
        model, dataset=images() if dataset is None else dataset, **(settings | kwargs)
    )


def gradients(trainer):
    """Those of its first step."""
    found, step = [], trainer.optimizer.step

    def record():
        found.append(
            {name: p.grad.clone() for name, p in trainer.unwrapped_model.named_parameters()}
        )
        step()

    trainer.optimizer.step = record
    trainer()
    return found[0]


def of_two(rank: int, script: str, port: int) -> None:
    """What a launcher such as torchrun tells a process; then the script."""
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    runpy.run_path(script, run_name="__main__")


# imports once for both what takes longer than most of the scripts
LAUNCHER = """
    import socket

    from accelerate import Accelerator
    from small_trainings import of_two
    from torch.multiprocessing import start_processes

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start_processes(of_two, ("script.py", port), nprocs=2, start_method="fork")
"""


def run_by_two(script, folder, **environment):
    """Runs a script by two processes, in a folder; what each saved as `RANK.pt`."""
    (folder / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LAUNCHER)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    settings = dict(
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",  # beside a GPU torch would take one per process
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
    )
    environment = os.environ | settings | environment
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


class Constant(torch.nn.Module):
    """The least that the trainer asks of a model: learns the mean of the images, samples it."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, images):
        return (images - self.mean).square().mean()

    def sample(self, batch_size, generator):
        return self.mean.detach().expand(batch_size, 1, 4, 4).clamp(0, 1)


def small_model(model_class=ImageAutoregressiveFlow, num_classes=None, **kwargs):
    return model_class(
        image_size=4, patch_size=2, channels=1, num_classes=num_classes, model=SIZES | kwargs
    )


def make_trainer(folder, model=None, images=None, **kwargs):
    settings = dict(
        num_train_steps=4,
        batch_size=2,
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "results",
        logs_folder=folder / "logs",
        num_samples=4,
        accelerate_kwargs=dict(cpu=True),
    )
    return ImageTrainer(
        small_model() if model is None else model,
        dataset=torch.rand(8, 1, 4, 4) if images is None else images,
        **(settings | kwargs),
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Augmented(torch.utils.data.Dataset):
    """Labelled images with random numbers of all kinds in them."""

    def __init__(self):
        self.images = torch.rand(10, 1, 4, 4)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        shift = torch.rand(()) + random.random() + np.random.rand()
        return (self.images[index] + 0.1 * shift).clamp(0, 1), index % 3


def stop_after(step, trainer):
    """Lets a trainer get a signal while it makes a step."""
    train_step = trainer._train_step

    def stopping(batches):
        if trainer.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(batches)

    trainer._train_step = stopping
    return trainer


def same_bits(first, second):
    """Two trainers hold the same, to the last bit."""

    def tensors(trainer):
        yield from trainer.unwrapped_model.state_dict().items()
        yield from trainer.ema.state_dict().items()
        for i, state in trainer.optimizer.state_dict()["state"].items():
            yield from ((f"{name} {i}", value) for name, value in state.items())

    return all(
        name == other and torch.equal(value, other_value)
        for (name, value), (other, other_value) in zip(tensors(first), tensors(second), strict=True)
    )


def interrupt_after(count, function):
    calls = []

    def interrupted(*args):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(args)
        return function(*args)

    return interrupted


def events(folder):
    """What TensorBoard reads, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "logs" / "training"))
    accumulator.Reload()
    return {name: accumulator.Scalars(name) for name in accumulator.Tags()["scalars"]}
