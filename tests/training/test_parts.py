import resource
import signal

import pytest
import torch
from small_trainings import Augmented, Constant, events, make_trainer, names, stop_after

from autoregressive_diffusion_pytorch.training.checkpoints import best_checkpoint
from autoregressive_diffusion_pytorch.training.loop import TrainingStopped


def test_a_stop_at_a_checkpoint_is_made_up_for(tmp_path):
    class Worsening(Constant):
        """Its loss is lowest at the fourth step."""

        def forward(self, images):
            return self.mean.sum() if self.training else self.mean.new_tensor(abs(steps.step - 4.0))

    settings = dict(num_train_steps=10, checkpoint_every=2, save_results_every=2, keep_last=1)
    settings |= dict(validation_dataset=torch.rand(3, 1, 4, 4))
    for run in ("whole", "parts"):
        steps = make_trainer(tmp_path / run, Worsening(), **settings)
        if run == "parts":
            with pytest.raises(TrainingStopped):
                stop_after(4, steps)()
            steps = make_trainer(tmp_path / run, Worsening(), resume=True, **settings)
        steps()
    for folder in ("checkpoints", "results"):
        assert names(tmp_path / "parts" / folder) == names(tmp_path / "whole" / folder)
    assert names(tmp_path / "whole" / "checkpoints") == ["checkpoint.10", "checkpoint.4"]
    assert steps.validation.best_loss == 0


def test_a_full_disk_stops_with_an_error_and_leaves_what_was_there(tmp_path):
    """The process's files may not grow beyond k bytes, for many k: what the system refuses to
    write, no library can."""
    trainer = make_trainer(tmp_path, num_train_steps=2, keep_last=1)
    trainer()
    checkpoint = tmp_path / "checkpoints" / "checkpoint.2"
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    largest = max(map(len, before.values()))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer.step = 3
    try:
        for limit in [*range(0, largest, largest // 25), largest - 1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
            with pytest.raises(
                OSError,
                match=r"checkpoint\.3 could not be written, what was saved before is untouched: ",
            ):
                trainer.save()
            assert {
                path: path.read_bytes()
                for path in (tmp_path / "checkpoints").rglob("*")
                if path.is_file()
            } == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, ignored)
    trainer.save()
    assert names(tmp_path / "checkpoints") == ["checkpoint.3"]


def test_the_last_and_the_best_are_kept(tmp_path):
    class Worsening(Constant):
        """Its loss is lowest at the third step."""

        def forward(self, images):
            if self.training:
                return self.mean.sum()
            return trainer.unwrapped_model.mean.new_tensor(abs(trainer.step - 3.0))

    settings = dict(
        num_train_steps=8, checkpoint_every=1, validation_dataset=torch.rand(3, 1, 4, 4)
    )
    trainer = make_trainer(tmp_path, Worsening(), keep_last=2, **settings)
    trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.3", "checkpoint.7", "checkpoint.8"]
    assert best_checkpoint(tmp_path / "checkpoints").name == "checkpoint.3"
    trainer = make_trainer(tmp_path / "all", Worsening(), keep_last=None, **settings)
    trainer()
    assert len(names(tmp_path / "all" / "checkpoints")) == 8


def test_the_validation_loss_is_that_of_the_averaged_weights_on_all_images(tmp_path):
    images = torch.rand(7, 1, 4, 4)
    trainer = make_trainer(tmp_path, Constant(), validation_dataset=images, learning_rate=0.1)
    trainer()
    averaged = trainer.ema.ema_model.mean
    assert not torch.equal(averaged, trainer.unwrapped_model.mean)
    expected = (images - averaged).square().mean().item()
    assert trainer.validate() == pytest.approx(expected, rel=1e-6)
    (entry,) = events(tmp_path)["validation_loss"]
    assert entry.value == pytest.approx(expected, rel=1e-6)


def test_validation_has_the_same_noise_each_time_and_leaves_the_training_alone(tmp_path):
    trainer = make_trainer(tmp_path, validation_dataset=Augmented().images)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = trainer.validate()
    assert torch.equal(torch.rand(3), expected)
    assert trainer.validate() == first
    for mode in (True, False):
        trainer.ema.ema_model.train(mode)
        trainer.validate()
        assert all(module.training == mode for module in trainer.ema.ema_model.modules())
