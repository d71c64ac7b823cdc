import math
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from small_trainings import Constant, events, make_trainer, names, stop_after

from autoregressive_diffusion_pytorch.data.order import DeadWorkerError
from autoregressive_diffusion_pytorch.training.loop import TrainingStopped
from autoregressive_diffusion_pytorch.utils.manifests import check_checkpoint


def test_shows_a_bar_with_loss_and_speed_a_summary_and_no_line_a_step(tmp_path, capsys):
    make_trainer(
        tmp_path, Constant(), num_train_steps=200, validation_dataset=torch.rand(3, 1, 4, 4)
    )()
    captured = capsys.readouterr()
    assert captured.out == ""
    bar, summary = captured.err.strip().split("\n")
    assert "200/200" in bar
    assert "loss 0." in bar
    assert "images/s" in bar
    assert re.fullmatch(
        r"200 steps in [\d:]+, \d+ images/s with all that was saved and drawn, loss \d\.\d+, "
        r"validation loss \d\.\d+, at best \d\.\d+; .*checkpoint\.200",
        summary,
    )


def test_ends_in_time_with_grid_and_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        Constant(),
        num_train_steps=10**9,
        max_minutes=0.5 / 60,
        save_results_every=10**9,
        checkpoint_every=10**9,
    )
    started = time.monotonic()
    trainer()
    assert 0.5 < time.monotonic() - started < 20
    assert names(tmp_path / "checkpoints") == [f"checkpoint.{trainer.step}"]
    assert names(tmp_path / "results") == [f"results.{trainer.step}.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_names_how_to_resume(tmp_path, capsys, number, code):
    class Interrupted(Constant):
        def forward(self, images):
            if self.training:
                os.kill(os.getpid(), number)
            return super().forward(images)

    trainer = make_trainer(tmp_path, Interrupted(), validation_dataset=torch.rand(3, 1, 4, 4))
    with pytest.raises(TrainingStopped) as stopped:
        trainer()
    assert (stopped.value.code, stopped.value.step) == (code, 1)
    # a notebook takes SystemExit for the end of its process
    expected = dict(SIGINT=KeyboardInterrupt, SIGTERM=SystemExit)[signal.Signals(number).name]
    kinds = [kind for kind in (KeyboardInterrupt, SystemExit) if isinstance(stopped.value, kind)]
    assert kinds == [expected]
    assert stopped.value.checkpoint == tmp_path / "checkpoints" / "checkpoint.1"
    check_checkpoint(stopped.value.checkpoint)
    assert names(tmp_path / "results") == []  # there may be little time
    assert (
        f"stopped after step 1 and saved as {stopped.value.checkpoint}: resume = True goes on"
        in capsys.readouterr().err
    )
    make_trainer(tmp_path, Constant(), resume=True)()


def test_a_worker_that_dies_during_a_step_is_reported(tmp_path):
    class Killer(Constant):
        def forward(self, images):
            if not self.training:
                return super().forward(images)
            for worker in psutil.Process().children():
                worker.kill()
            for _ in range(1000):
                time.sleep(0.01)  # torch raises its error here

    with pytest.raises(DeadWorkerError, match=r"a process that reads images ended: .*Killed"):
        make_trainer(tmp_path, Killer(), dataloader_kwargs=dict(num_workers=1))()


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_with_a_gradient_scaler_a_loss_that_is_not_finite_reaches_no_weight(tmp_path, nonfinite):
    """The scaler of fp16, on a CPU: it heeds gradients alone."""

    class Broken(Constant):
        def forward(self, images):
            is_broken = self.training and trainer.step in (1, 2)
            return super().forward(images) + (math.inf if is_broken else 0.0)

    trainer = make_trainer(
        tmp_path, Broken(), num_train_steps=5, nonfinite=nonfinite, learning_rate=0.1
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.optimizer]
    before = []
    heed = trainer._handle_nonfinite
    trainer._handle_nonfinite = lambda result: (
        before.append(trainer.unwrapped_model.mean.clone()),
        heed(result),
    )
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda *args: (
        scaler.unscale_(trainer.optimizer.optimizer),
        clip(*args),
    )[1]
    if nonfinite == "stop":
        with pytest.raises(
            FloatingPointError,
            match=r"the loss inf .* step 2; the weights are still those of the step before",
        ):
            trainer()
    else:
        trainer()
        assert trainer.skipped_steps == 2
        assert not torch.equal(before[3], before[2])
    assert torch.equal(before[1], before[0])
    assert torch.equal(before[2], before[0]) if nonfinite == "skip" else len(before) == 2


def test_a_signal_at_the_last_step_is_none(tmp_path):
    trainer = make_trainer(tmp_path)
    stop_after(4, trainer)()
    assert names(tmp_path / "results") == ["results.4.png"]


@pytest.mark.parametrize("at_fault", ["model", "dataset"])
def test_a_failing_run_with_workers_ends(tmp_path, at_fault):
    script = f"""
import torch
from autoregressive_diffusion_pytorch import ImageTrainer

class Model(torch.nn.Linear):
    def forward(self, images):
        if self.training and "{at_fault}" == "model":
            raise RuntimeError("out of memory")
        return self.weight.sum()

    def sample(self, batch_size, generator):
        return self.weight

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if "{at_fault}" == "dataset" and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("out of memory")
        return torch.rand(1, 4, 4)

torch.set_num_threads(1)
settings = dict(batch_size=2, dataloader_kwargs=dict(num_workers=2))
settings |= dict(logs_folder="{tmp_path}", checkpoints_folder="{tmp_path}")
ImageTrainer(Model(1, 1), dataset=Images(), **settings)()
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = os.environ | dict(ACCELERATE_USE_CPU="true")
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 1
    assert "RuntimeError: " in result.stderr
    assert "out of memory" in result.stderr


def broken_at(steps, value=math.nan):
    """A model whose loss is not finite at some steps."""

    class Broken(Constant):
        calls = 0

        def forward(self, images):
            if not self.training:
                return super().forward(images)
            self.calls += 1
            return super().forward(images) * (value if self.calls in steps else 1.0)

    return Broken()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path, value):
    trainer = make_trainer(tmp_path, broken_at([3], value), num_train_steps=5, checkpoint_every=1)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss (nan|inf) .* not finite at step 3; .*those of the step before",
    ):
        trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.1", "checkpoint.2"]
    state = trainer.unwrapped_model.state_dict()
    assert state["mean"].isfinite().all()
    trainer = make_trainer(tmp_path, Constant(), num_train_steps=5, resume=True)
    assert torch.equal(trainer.unwrapped_model.mean, state["mean"])


def test_nonfinite_steps_are_skipped_and_logged(tmp_path, caplog):
    trainer = make_trainer(
        tmp_path, broken_at([3, 4]), num_train_steps=6, nonfinite="skip", log_every=1
    )
    trainer()
    assert trainer.unwrapped_model.mean.isfinite().all()
    assert trainer.skipped_steps == 2
    assert trainer.ema.step == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"step {step} is skipped: the loss nan and the gradient norm nan are not finite"
        for step in (3, 4)
    ]
    assert [entry.value for entry in events(tmp_path)["skipped_steps"]] == [0, 0, 1, 2, 2, 2]


def test_a_gradient_that_is_not_finite_counts_too(tmp_path):
    class Steep(Constant):
        def forward(self, images):
            return (self.mean * 0).sqrt().sum()  # of slope infinity

    with pytest.raises(
        FloatingPointError,
        match=r"the loss 0 and the gradient norm (nan|inf) are not finite at step 1",
    ):
        make_trainer(tmp_path, Steep())()


def test_broken_weights_are_not_skipped_for_ever(tmp_path):
    trainer = make_trainer(tmp_path, broken_at(range(1000)), num_train_steps=1000, nonfinite="skip")
    with pytest.raises(FloatingPointError, match="not finite at step 26, as in 25 steps before it"):
        trainer()


def test_a_dataset_smaller_than_a_batch(tmp_path):
    make_trainer(tmp_path, Constant(), torch.rand(3, 1, 4, 4), batch_size=16)()


def test_gradients_are_clipped(tmp_path):
    trainer = make_trainer(tmp_path, Constant(), num_train_steps=1, max_grad_norm=1e-3)
    assert gradient_of_a_step(trainer).norm() == pytest.approx(1e-3, rel=1e-3)


def gradient_of_a_step(trainer):
    gradients = []
    step = trainer.optimizer.step

    def record():
        gradients.append(trainer.unwrapped_model.mean.grad.clone())
        step()

    trainer.optimizer.step = record
    trainer()
    (gradient,) = gradients
    return gradient
