"""A small training, the same in one process as in several, and a way to run scripts by two processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer

SMALL = dict(image_size=4, patch_size=2, channels=1, model=dict(dim=16, depth=1, heads=2, dim_head=8, mlp_width=16))


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
    return ImageTrainer(model, dataset=images() if dataset is None else dataset, **(settings | kwargs))


def gradients(trainer):
    """Those of its first step."""
    found, step = [], trainer.optimizer.step

    def record():
        found.append({name: p.grad.clone() for name, p in trainer.unwrapped_model.named_parameters()})
        step()

    trainer.optimizer.step = record
    trainer()
    return found[0]


def run_by_two(script, folder, **environment):
    """Runs a script by two processes, in a folder; what each saved as `RANK.pt`."""
    (folder / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    settings = dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, paths)))
    environment = os.environ | settings | environment
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)
    assert result.returncode == 0, result.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
