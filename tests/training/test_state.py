import os
import shutil

import pytest
import torch
from small_trainings import Constant, make_trainer, same_bits

from autoregressive_diffusion_pytorch.training.checkpoints import write_checkpoint


def test_a_resumed_run_follows_new_settings(tmp_path):
    settings = dict(num_train_steps=4, learning_rate=0.1, adam_kwargs=dict(betas=(0.5, 0.6)))
    make_trainer(tmp_path, **settings)()
    again = dict(
        num_train_steps=5, learning_rate=1e-5, adam_kwargs=dict(betas=(0.7, 0.8), weight_decay=0.3)
    )
    trainer = make_trainer(tmp_path, resume=True, **again)
    trainer()
    assert trainer.step == 5
    decaying, others = trainer.optimizer.param_groups
    assert [group["lr"] for group in (decaying, others)] == [1e-5, 1e-5]
    assert (decaying["betas"], decaying["weight_decay"], others["weight_decay"]) == (
        (0.7, 0.8),
        0.3,
        0.0,
    )


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_checkpoint_with_a_payload_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(tmp_path)()
    checkpoint = tmp_path / "checkpoints" / "checkpoint.4"
    state = torch.load(checkpoint / "training.pt", weights_only=True)

    def forge(folder):
        for file in ("config.json", "model.safetensors", "online.safetensors"):
            shutil.copy(checkpoint / file, folder)
        torch.save(state | dict(payload=Payload()), folder / "training.pt")

    write_checkpoint(tmp_path / "checkpoints", 5, forge)  # with all the right hashes
    with pytest.raises(
        ValueError,
        match=r"checkpoint.5/training.pt is refused: it holds more than tensors and plain values",
    ):
        make_trainer(tmp_path, num_train_steps=9, resume=True)
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "checkpoints" / "checkpoint.5" / "training.pt", weights_only=False)
    assert (tmp_path / "executed").exists()  # it would have been


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    make_trainer(tmp_path)()
    with pytest.raises(
        ValueError,
        match=r"(?s)online.safetensors holds the weights of another model than the trainer's: "
        r".*mean",
    ):
        make_trainer(tmp_path, Constant(), resume=True)


def test_parameters_without_a_gradient_so_far(tmp_path):
    class Partial(Constant):
        """Uses a part of it only from the third step on."""

        def __init__(self):
            super().__init__()
            self.late = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return super().forward(images) + (
                self.late.square() + self.late if self.training and trainer.step > 1 else 0
            )

    settings = dict(
        num_train_steps=6, checkpoint_every=1, keep_last=None, images=torch.rand(8, 1, 4, 4)
    )
    trainer = make_trainer(tmp_path / "whole", Partial(), **settings)
    trainer()
    whole = trainer
    for step in (1, 2, 3):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        for later in range(step + 1, 7):
            shutil.rmtree(folder / "checkpoints" / f"checkpoint.{later}")
        trainer = make_trainer(folder, Partial(), resume=True, **settings)
        trainer()
        assert same_bits(trainer, whole)


def test_saving_changes_nothing(tmp_path):
    images = torch.rand(8, 1, 4, 4)
    first, second = (make_trainer(tmp_path / str(i), Constant(), images) for i in (1, 2))
    second.save()
    first()
    second()
    assert same_bits(first, second)
