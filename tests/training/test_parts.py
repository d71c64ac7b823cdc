import resource
import signal
from types import SimpleNamespace

import pytest
import torch
from small_trainings import Augmented, Constant, events, make_trainer, names, stop_after

from autoregressive_diffusion_pytorch.training.checkpoints import add_facts
from autoregressive_diffusion_pytorch.training.loop import TrainingStopped
from autoregressive_diffusion_pytorch.utils.manifests import (
    best_checkpoint,
    check_checkpoint,
    validation_loss,
)


def test_a_stop_at_a_checkpoint_is_made_up_for(tmp_path):
    class Worsening(Constant):
        """Its loss is lowest at the fourth step."""

        def forward(self, images):
            return self.mean.sum() if self.training else self.mean.new_tensor(abs(steps.step - 4.0))

    steps = SimpleNamespace(step=0)  # before there is a trainer
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
            return self.mean.new_tensor(abs(trainer.step - 3.0))

    trainer = SimpleNamespace(step=0)  # before there is one
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


class Lost(torch.utils.data.Dataset):
    """Held-out images of which a file gets lost after the start."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise OSError("the file 3.jpg is gone")
        return torch.rand(1, 4, 4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failing_validation_costs_that_loss_alone(tmp_path, caplog, num_workers):
    settings = dict(checkpoint_every=2, dataloader_kwargs=dict(num_workers=num_workers))
    trainer = make_trainer(tmp_path, Constant(), validation_dataset=Lost(), **settings)
    trainer()
    for step in (2, 4):
        assert validation_loss(tmp_path / "checkpoints" / f"checkpoint.{step}") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the validation of step {step} failed, the training goes on without: "
        f"{'' if num_workers == 0 else 'OSError: '}the file 3.jpg is gone"
        for step in (2, 4)
    ]
    assert names(tmp_path / "results") == ["results.4.png"]
    with pytest.raises(OSError, match=r"the file 3\.jpg is gone"):
        trainer.validate()
    # a run that goes on makes up for it
    settings |= dict(validation_dataset=torch.rand(3, 1, 4, 4), num_train_steps=6, resume=True)
    resumed = make_trainer(tmp_path, Constant(), **settings)
    resumed()
    losses = {
        step: validation_loss(tmp_path / "checkpoints" / f"checkpoint.{step}") for step in (4, 6)
    }
    assert None not in losses.values()
    assert resumed.validation.best_loss == min(losses.values())


def test_the_training_is_saved_before_it_is_validated_and_drawn(tmp_path):
    events = []

    class Telling(Constant):
        def forward(self, images):
            if not self.training and started:
                events.append("validated")
            return super().forward(images)

        def sample(self, batch_size, generator):
            events.append("drawn")
            return super().sample(batch_size, generator)

    started = []
    settings = dict(num_train_steps=1, validation_dataset=torch.rand(2, 1, 4, 4))
    trainer = make_trainer(tmp_path, Telling(), log_every=9, **settings)
    started.append(True)
    validate = trainer.validation.compute

    def compute(trainer):
        check_checkpoint(trainer.checkpoints.path(1))
        return validate(trainer)

    trainer.validation.compute = compute
    trainer.log._utilization_by_speed = 0.0  # which would call the model
    trainer()
    assert events == ["validated", "drawn"]
    check_checkpoint(trainer.checkpoint)
    assert validation_loss(trainer.checkpoint) == trainer.validation.loss


def test_a_run_killed_before_its_last_validation_makes_up_for_it(tmp_path):
    images = torch.rand(3, 1, 4, 4)
    make_trainer(tmp_path, Constant(), validation_dataset=images, num_train_steps=3)()
    checkpoint = tmp_path / "checkpoints" / "checkpoint.3"
    loss = validation_loss(checkpoint)
    add_facts(checkpoint, validation_loss=None)
    (tmp_path / "results" / "results.3.png").unlink()
    settings = dict(validation_dataset=images, num_train_steps=3, resume=True)
    make_trainer(tmp_path, Constant(), **settings)()
    assert validation_loss(checkpoint) == loss
    check_checkpoint(checkpoint)
    assert names(tmp_path / "results") == ["results.3.png"]


def test_a_log_that_cannot_be_written_ends_no_training(tmp_path, caplog):
    trainer = make_trainer(tmp_path, Constant())

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    trainer.accelerator.log = fail
    trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.4"]
    assert "step 4 is not logged: No space left on device" in caplog.text
