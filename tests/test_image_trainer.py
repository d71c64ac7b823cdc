import copy
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from helpers import reset_accelerate
from PIL import Image
from small_trainings import (
    SIZES,
    Augmented,
    Constant,
    events,
    make_trainer,
    names,
    same_bits,
    small_model,
    stop_after,
    trainer_in,
)
from torch.utils.data import TensorDataset

from autoregressive_diffusion_pytorch import (
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
    ImageDataset,
    image_trainer,
)
from autoregressive_diffusion_pytorch.checkpoints import best_checkpoint, check_checkpoint, read_manifest
from autoregressive_diffusion_pytorch.image_trainer import TrainingStopped
from autoregressive_diffusion_pytorch.training_data import DeadWorkerError


@pytest.mark.parametrize("model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow])
def test_writes_grids_and_checkpoints_that_load(model_class, tmp_path):
    trainer = make_trainer(tmp_path, small_model(model_class), num_train_steps=5, save_results_every=2, checkpoint_every=3)
    trainer()
    assert names(tmp_path / "results") == ["results.2.png", "results.4.png", "results.5.png"]
    assert names(tmp_path / "checkpoints") == ["checkpoint.3", "checkpoint.5"]
    files = ["config.json", "manifest.json", "model.safetensors", "online.safetensors", "training.pt"]
    assert names(tmp_path / "checkpoints" / "checkpoint.5") == files

    loaded = model_class.from_pretrained(tmp_path / "checkpoints" / "checkpoint.5")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.ema.ema_model.state_dict()[name])


def test_trains_anything_with_a_loss_and_a_sample(tmp_path):
    images = torch.rand(64, 1, 4, 4)
    trainer = make_trainer(tmp_path, Constant(), images, num_train_steps=300, learning_rate=0.03, batch_size=16)
    trainer()
    torch.testing.assert_close(trainer.unwrapped_model.mean.detach(), images.mean(dim=0), rtol=0, atol=0.05)
    files = ["manifest.json", "model.safetensors", "online.safetensors", "training.pt"]
    assert names(tmp_path / "checkpoints" / "checkpoint.300") == files


def test_shows_a_bar_with_loss_and_speed_a_summary_and_no_line_a_step(tmp_path, capsys):
    make_trainer(tmp_path, Constant(), num_train_steps=200, validation_dataset=torch.rand(3, 1, 4, 4))()
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


def test_a_short_run_does_not_spend_itself_on_warming_up(tmp_path):
    settings = dict(num_train_steps=100, learning_rate=1.0, lr_schedule="cosine")
    trainer = make_trainer(tmp_path, Constant(), warmup_steps=500, **settings)
    assert trainer.learning_rate_at(8) == pytest.approx(0.9)
    assert trainer.learning_rate_at(10) == 1.0
    assert trainer.learning_rate_at(99) < 0.001
    assert make_trainer(tmp_path, Constant(), warmup_steps=4, **settings).learning_rate_at(4) == 1.0


def test_steps_of_epochs(tmp_path):
    accelerate_kwargs = dict(cpu=True, gradient_accumulation_steps=2)
    settings = dict(num_train_steps=None, batch_size=2, accelerate_kwargs=accelerate_kwargs)
    assert make_trainer(tmp_path, Constant(), torch.rand(10, 1, 4, 4), num_epochs=3, **settings).num_train_steps == 8
    assert make_trainer(tmp_path, Constant(), num_epochs=0.1, **settings).num_train_steps == 1
    assert make_trainer(tmp_path, Constant(), **settings).num_train_steps == 70_000
    with pytest.raises(ValueError, match="num_train_steps and num_epochs exclude each other, got 5 and 3"):
        make_trainer(tmp_path, Constant(), num_epochs=3, num_train_steps=5)


def test_the_average_of_a_short_run_is_near_its_weights(tmp_path):
    # a weight that grows evenly to 1 in 500 steps: averaged, it lags behind by the length of the average
    class Ramp(Constant):
        def forward(self, images):
            return -self.mean.sum()

    trainer = make_trainer(
        tmp_path, Ramp(), num_train_steps=500, warmup_steps=0, lr_schedule="constant", learning_rate=1 / 500, max_grad_norm=1e9
    )
    trainer()
    online, averaged = (m.mean.mean().item() for m in (trainer.unwrapped_model, trainer.ema.ema_model))
    assert online == pytest.approx(1.0, abs=0.01)
    assert 0.05 < online - averaged < 0.25


def test_samples_are_of_the_averaged_weights_with_the_same_seed(tmp_path):
    trainer = make_trainer(tmp_path, num_train_steps=2, save_results_every=1, ema_kwargs=dict(beta=1.0))  # an average that stays
    trainer()
    first, second = (Image.open(tmp_path / "results" / f"results.{step}.png").tobytes() for step in (1, 2))
    assert first == second


def test_ends_in_time_with_grid_and_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path, Constant(), num_train_steps=10**9, max_minutes=0.5 / 60, save_results_every=10**9, checkpoint_every=10**9
    )
    started = time.monotonic()
    trainer()
    assert 0.5 < time.monotonic() - started < 20
    assert names(tmp_path / "checkpoints") == [f"checkpoint.{trainer.step}"]
    assert names(tmp_path / "results") == [f"results.{trainer.step}.png"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(tmp_path, num_workers):
    # labels that are dropped at random, layers that are by Python's random numbers, augmentation, a validation, grids on the way
    model = small_model(num_classes=3, decoder_kwargs=dict(layer_dropout=0.2, attn_dropout=0.1))
    dataset = Augmented()
    settings = dict(
        images=dataset,
        batch_size=3,
        num_train_steps=11,
        checkpoint_every=4,
        save_results_every=3,
        validation_dataset=dataset,
        learning_rate=0.01,
        lr_schedule="cosine",
        accelerate_kwargs=dict(cpu=True, gradient_accumulation_steps=2),
        dataloader_kwargs=dict(num_workers=num_workers),
    )
    whole = make_trainer(tmp_path / "whole", copy.deepcopy(model), **settings)
    whole()

    parts = tmp_path / "parts"
    with pytest.raises(TrainingStopped):
        stop_after(2, make_trainer(parts, copy.deepcopy(model), **settings))()
    torch.rand(5)
    with pytest.raises(TrainingStopped):
        stop_after(9, make_trainer(parts, small_model(num_classes=3, **model_kwargs(model)), resume=True, **settings))()
    assert names(parts / "checkpoints") == ["checkpoint.4", "checkpoint.8", "checkpoint.9"]
    shutil.rmtree(parts / "checkpoints" / "checkpoint.9")  # as if the machine had failed before
    last = make_trainer(parts, small_model(num_classes=3, **model_kwargs(model)), resume=True, **settings)
    assert last.step == 8
    last()
    assert same_bits(last, whole)
    assert last.log.losses == whole.log.losses
    grids = [(tmp_path / run / "results" / "results.11.png").read_bytes() for run in ("whole", "parts")]
    assert grids[0] == grids[1]
    losses = [read_manifest(tmp_path / run / "checkpoints" / "checkpoint.11")["validation_loss"] for run in ("whole", "parts")]
    assert losses[0] == losses[1]


def model_kwargs(model):
    return dict(decoder_kwargs=model.config["model"]["decoder_kwargs"])


def test_the_scale_of_the_data_is_measured_before_the_training(tmp_path, monkeypatch):
    dataset = Augmented()
    scales = []
    for i, seed in enumerate((3, 3, 4)):
        trainer = make_trainer(tmp_path / str(i), small_model(num_classes=3), dataset, seed=seed)
        scales.append(trainer.unwrapped_model.model.head.sigma_data.item())
        assert trainer.ema.ema_model.model.head.sigma_data == scales[-1]
        torch.rand(3)  # what was drawn before has no say
    assert scales[0] == scales[1] != scales[2]
    images = torch.stack([image for image, _ in dataset])
    assert scales[0] == pytest.approx((2 * images - 1).std().item(), rel=0.1)

    # evenly spread ones of many
    monkeypatch.setattr("autoregressive_diffusion_pytorch.image_trainer.MEASURED_IMAGES", 4)
    trainer = make_trainer(tmp_path / "many", images=dataset.images)
    torch.testing.assert_close(trainer.unwrapped_model.model.head.sigma_data, (2 * dataset.images[::3] - 1).std())
    trainer()
    # it is that of the whole training
    resumed = make_trainer(tmp_path / "many", images=0.1 * dataset.images, num_train_steps=5, resume=True)
    resumed()
    assert resumed.unwrapped_model.model.head.sigma_data == trainer.unwrapped_model.model.head.sigma_data
    # and not measured where it is given
    own = make_trainer(tmp_path / "own", small_model(flow_kwargs=dict(sigma_data=0.7)))
    assert own.unwrapped_model.model.head.sigma_data == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("mixed", "own", "expected"), [("no", {}, None), ("bf16", {}, "bf16"), ("bf16", dict(precision="no"), "no")]
)
def test_grids_are_drawn_in_the_precision_of_the_training(tmp_path, monkeypatch, mixed, own, expected):
    seen, sample = [], ImageAutoregressiveFlow.sample

    def record(model, *args, **kwargs):
        seen.append((kwargs.get("precision"), next(model.parameters()).dtype))
        return sample(model, *args, **kwargs)

    monkeypatch.setattr(ImageAutoregressiveFlow, "sample", record)
    trainer = make_trainer(tmp_path, num_train_steps=1, sample_kwargs=own, accelerate_kwargs=dict(cpu=True, mixed_precision=mixed))
    trainer()
    assert seen == [(expected, torch.float32)]
    # a model of one's own need not know of precisions
    make_trainer(tmp_path / "own", Constant(), num_train_steps=1, accelerate_kwargs=dict(cpu=True, mixed_precision=mixed))()


def test_the_seed_makes_the_run(tmp_path):
    model, dataset = small_model(), Augmented()
    trainers = []
    for i, seed in enumerate((3, 3, 4)):
        trainers.append(make_trainer(tmp_path / str(i), copy.deepcopy(model), dataset.images, seed=seed))
        trainers[-1]()
        torch.rand(3)
    first, second, third = trainers
    assert same_bits(first, second)
    assert not same_bits(first, third)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, capsys, number, code):
    class Interrupted(Constant):
        def forward(self, images):
            os.kill(os.getpid(), number)
            return super().forward(images)

    trainer = make_trainer(tmp_path, Interrupted(), validation_dataset=torch.rand(3, 1, 4, 4))
    with pytest.raises(TrainingStopped) as stopped:
        trainer()
    assert (stopped.value.code, stopped.value.step) == (code, 1)
    assert stopped.value.checkpoint == tmp_path / "checkpoints" / "checkpoint.1"
    check_checkpoint(stopped.value.checkpoint)
    assert not (tmp_path / "results").exists()  # there may be little time
    assert f"stopped after step 1 and saved as {stopped.value.checkpoint}: resume = True goes on" in capsys.readouterr().err
    make_trainer(tmp_path, Constant(), resume=True)()


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
    assert steps._best_loss == 0


def test_an_interrupted_replacement_is_found_on_resuming(tmp_path):
    make_trainer(tmp_path)()
    checkpoint = tmp_path / "checkpoints" / "checkpoint.4"
    checkpoint.rename(checkpoint.with_name("checkpoint.4.replaced"))
    assert make_trainer(tmp_path, resume=True).step == 4


def test_another_number_of_images_is_told(tmp_path):
    make_trainer(tmp_path)()
    with pytest.warns(UserWarning, match="the dataset holds 5 images, 8 when the checkpoint was written"):
        make_trainer(tmp_path, images=torch.rand(5, 1, 4, 4), resume=True)


def test_a_worker_that_dies_during_a_step_is_told_too(tmp_path):
    class Killer(Constant):
        def forward(self, images):
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
            return super().forward(images) + (math.inf if trainer.step in (1, 2) else 0.0)

    trainer = make_trainer(tmp_path, Broken(), num_train_steps=5, nonfinite=nonfinite, learning_rate=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.optimizer]
    before = []
    heed = trainer._heed_nonfinite
    trainer._heed_nonfinite = lambda result: (before.append(trainer.unwrapped_model.mean.clone()), heed(result))
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda *args: (scaler.unscale_(trainer.optimizer.optimizer), clip(*args))[1]
    if nonfinite == "stop":
        with pytest.raises(FloatingPointError, match=r"the loss inf .* step 2; the weights are still those of the step before"):
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


def test_resuming_needs_a_checkpoint_and_starting_anew_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*checkpoints holds no whole checkpoint"):
        make_trainer(tmp_path, Constant(), resume=True)
    make_trainer(tmp_path, Constant())()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds checkpoint.4: resume = True goes on from there"):
        make_trainer(tmp_path, Constant())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_damaged_checkpoints_are_passed_over(tmp_path):
    settings = dict(num_train_steps=3, checkpoint_every=1)
    make_trainer(tmp_path, **settings)()
    checkpoints = tmp_path / "checkpoints"
    weights = (checkpoints / "checkpoint.3" / "online.safetensors").read_bytes()
    (checkpoints / "checkpoint.3" / "online.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (checkpoints / "checkpoint.2" / "training.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"passed over: .*checkpoint\.\d/(online.safetensors|training.pt)") as warned:
        trainer = make_trainer(tmp_path, resume=True, **settings)
    assert len(warned) == 2
    assert trainer.step == 1
    trainer()  # and the damaged ones are written anew
    for step in (1, 2, 3):
        check_checkpoint(checkpoints / f"checkpoint.{step}")
    for step in (1, 2, 3):
        (checkpoints / f"checkpoint.{step}" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="nothing to resume"), pytest.warns(UserWarning, match="passed over"):
        make_trainer(tmp_path, resume=True, **settings)


def test_a_full_disk_stops_with_an_error_and_leaves_what_was_there(tmp_path):
    """The process's files may not grow beyond k bytes, for many k: what the system refuses to write, no library can."""
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
            with pytest.raises(OSError, match=r"checkpoint\.3 could not be written, what was saved before is untouched: "):
                trainer.save()
            assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == before
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

    settings = dict(num_train_steps=8, checkpoint_every=1, validation_dataset=torch.rand(3, 1, 4, 4))
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


@pytest.mark.parametrize("at_fault", ["model", "dataset"])
def test_a_failing_run_with_workers_ends(tmp_path, at_fault):
    script = f"""
import torch
from autoregressive_diffusion_pytorch import ImageTrainer

class Model(torch.nn.Linear):
    def forward(self, images):
        raise RuntimeError("out of memory")

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if "{at_fault}" == "dataset":
            raise RuntimeError("out of memory")
        return torch.rand(1, 4, 4)

torch.set_num_threads(1)
settings = dict(batch_size=2, dataloader_kwargs=dict(num_workers=2), logs_folder="{tmp_path}", checkpoints_folder="{tmp_path}")
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
    with pytest.raises(FloatingPointError, match=r"the loss (nan|inf) .* not finite at step 3; .*those of the step before"):
        trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.1", "checkpoint.2"]
    state = trainer.unwrapped_model.state_dict()
    assert state["mean"].isfinite().all()
    trainer = make_trainer(tmp_path, Constant(), num_train_steps=5, resume=True)
    assert torch.equal(trainer.unwrapped_model.mean, state["mean"])


def test_steps_that_are_not_finite_are_left_out_and_told(tmp_path, caplog):
    trainer = make_trainer(tmp_path, broken_at([3, 4]), num_train_steps=6, nonfinite="skip", log_every=1)
    trainer()
    assert trainer.unwrapped_model.mean.isfinite().all()
    assert trainer.skipped_steps == 2
    assert trainer.ema.step == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"step {step} is skipped: the loss nan and the gradient norm nan are not finite" for step in (3, 4)
    ]
    assert [entry.value for entry in events(tmp_path)["skipped_steps"]] == [0, 0, 1, 2, 2, 2]


def test_a_gradient_that_is_not_finite_counts_too(tmp_path):
    class Steep(Constant):
        def forward(self, images):
            return (self.mean * 0).sqrt().sum()  # of slope infinity

    with pytest.raises(FloatingPointError, match=r"the loss 0 and the gradient norm (nan|inf) are not finite at step 1"):
        make_trainer(tmp_path, Steep())()


def test_broken_weights_are_not_skipped_for_ever(tmp_path):
    trainer = make_trainer(tmp_path, broken_at(range(1000)), num_train_steps=1000, nonfinite="skip")
    with pytest.raises(FloatingPointError, match="not finite at step 26, as in 25 steps before it"):
        trainer()


def test_gradient_checkpointing_changes_no_number(tmp_path):
    model = small_model()
    images = torch.rand(8, 1, 4, 4)
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), copy.deepcopy(model), images, gradient_checkpointing=on) for on in (False, True)
    )
    layers = [trainer.unwrapped_model.model.head.net.blocks[0] for trainer in (plain, checkpointed)]
    assert type(layers[0]) is not type(layers[1])
    plain()
    checkpointed()
    for expected, found in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"gradient_checkpointing needs a model with checkpoint_gradients\(\), got a Constant"):
        make_trainer(tmp_path / "other", Constant(), gradient_checkpointing=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_trains_and_resumes_on_a_gpu(tmp_path, precision):
    settings = dict(
        images=Augmented(),
        validation_dataset=Augmented(),
        accelerate_kwargs=dict(mixed_precision=precision, gradient_accumulation_steps=2),
        dataloader_kwargs=dict(num_workers=1, pin_memory=True),
        num_train_steps=30,
        checkpoint_every=4,
    )
    trainer = make_trainer(tmp_path, small_model(num_classes=3), **settings)
    with pytest.raises(TrainingStopped):
        stop_after(20, trainer)()
    resumed = make_trainer(tmp_path, small_model(num_classes=3), resume=True, **settings)
    assert same_bits(resumed, trainer)
    resumed()
    assert resumed.unwrapped_model.model.proj_in.weight.isfinite().all()
    assert resumed.skipped_steps < 30
    assert all(0 < entry.value < 1 for entry in events(tmp_path)["utilization"])


def test_a_compiled_model_trains_saves_and_resumes(tmp_path):
    accelerate_kwargs = dict(cpu=True, dynamo_backend="aot_eager")  # all of the compiler but its code generation
    model, images = small_model(), torch.rand(8, 1, 4, 4)
    plain = make_trainer(tmp_path / "plain", copy.deepcopy(model), images)
    plain()
    reset_accelerate()
    trainer = make_trainer(tmp_path / "compiled", model, images, accelerate_kwargs=accelerate_kwargs)
    assert trainer.model is not trainer.unwrapped_model
    trainer()
    for expected, found in zip(plain.unwrapped_model.parameters(), trainer.unwrapped_model.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    resumed = make_trainer(
        tmp_path / "compiled", small_model(), images, num_train_steps=5, resume=True, accelerate_kwargs=accelerate_kwargs
    )
    for expected, found in zip(trainer.unwrapped_model.parameters(), resumed.unwrapped_model.parameters(), strict=True):
        assert torch.equal(found, expected)
    resumed()


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


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(num_train_steps=0), ValueError, "num_train_steps must be a whole number of at least 1, got 0"),
        (dict(batch_size=1.5), ValueError, "batch_size must be a whole number of at least 1, got 1.5"),
        (dict(num_samples=0), ValueError, "num_samples must be"),
        (dict(learning_rate=0.0), ValueError, "learning_rate must be above 0, got 0.0"),
        (dict(max_minutes=0), ValueError, "max_minutes must be above 0, got 0"),
        (dict(num_epochs=0, num_train_steps=None), ValueError, "num_epochs must be above 0, got 0"),
        (dict(keep_last=0), ValueError, "keep_last must be a whole number of at least 1, got 0"),
        (dict(seed=-1), ValueError, "seed must be a whole number from 0 to 2147483647, got -1"),
        (dict(warmup_steps=-1), ValueError, "warmup_steps must be a whole number from 0 to inf, got -1"),
        (dict(log_every=0), ValueError, "log_every must be a whole number of at least 1, got 0"),
        (dict(nonfinite="ignore"), ValueError, "nonfinite must be one of 'stop', 'skip', got 'ignore'"),
        (dict(validation_dataset=TensorDataset(torch.zeros(0))), ValueError, "validation_dataset holds no image"),
        (dict(dataloader_kwargs=dict(shuffle=False)), ValueError, r"dataloader_kwargs must not hold \['shuffle'\]"),
        (dict(lr_schedule="linear"), ValueError, "lr_schedule must be one of 'constant', 'cosine', got 'linear'"),
        (dict(images=TensorDataset(torch.zeros(0))), ValueError, "dataset holds no image"),
        (dict(nonsense=1), TypeError, "nonsense"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, Constant(), **kwargs)


def test_a_dataset_of_other_things_than_images(tmp_path):
    with pytest.raises(TypeError, match=r"dataset must give images .* got an item of type str"):
        make_trainer(tmp_path / "a", Constant(), ["image"] * 8)()
    with pytest.raises(TypeError, match="must have a length and give items by their index, got a Endless"):
        make_trainer(tmp_path / "b", Constant(), Endless())
    with pytest.raises(ValueError, match="labels are given to a model without classes: num_classes makes one with them"):
        make_trainer(tmp_path / "c", images=TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8)))()
    with pytest.raises(ValueError, match="labels are missing"):
        make_trainer(tmp_path / "d", small_model(num_classes=3))()


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(1, 4, 4)


class Listener(Constant):
    """Notes what it is trained and sampled with."""

    def __init__(self, num_classes=None):
        super().__init__()
        self.num_classes = num_classes
        self.trained, self.sampled = [], []

    def forward(self, images, **conditions):
        self.trained.append(dict(conditions, images=images))
        return super().forward(images)

    def sample(self, batch_size, generator, **conditions):
        self.sampled.append(dict(conditions, batch_size=batch_size))
        return super().sample(batch_size, generator)


def listen(trainer):
    """What a trainer's model is trained and its average is sampled with."""
    trainer.ema.ema_model.sampled = trainer.unwrapped_model.sampled
    trainer()
    return trainer.unwrapped_model.trained, trainer.unwrapped_model.sampled


def test_labels_come_to_the_model_and_a_row_a_class_to_the_grids(tmp_path, monkeypatch):
    grids = []
    monkeypatch.setattr(image_trainer, "save_image_grid", lambda images, path, *layout: grids.append((len(images), *layout)))
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    trained, sampled = listen(make_trainer(tmp_path, Listener(num_classes=3), TensorDataset(images, labels), num_samples=5))
    for batch in trained:
        for image, label in zip(batch["images"], batch["labels"], strict=True):
            assert label == labels[[torch.equal(image, other) for other in images]]
    (sample,) = sampled
    assert sample["batch_size"] == 6
    assert sample["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert grids == [(6, 2, ["0", "1", "2"])]


def test_rows_have_the_names_of_the_classes(tmp_path, monkeypatch):
    for i, name in enumerate(("rose", "tulip")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (4, 4), 100 * i).save(tmp_path / "images" / name / "a.png")
    dataset = ImageDataset(tmp_path / "images", 4, channels=1, labels_from_folders=True)
    grids = []
    monkeypatch.setattr(image_trainer, "save_image_grid", lambda images, path, *layout: grids.append(layout))
    listen(make_trainer(tmp_path, Listener(num_classes=2), dataset))
    assert grids == [(2, ["rose", "tulip"])]


def test_names_that_do_not_fit_the_classes_are_not_used(tmp_path):
    dataset = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    dataset.classes = ["rose", "tulip"]
    assert make_trainer(tmp_path, Listener(num_classes=3), dataset)._grid_layout[2] == ["0", "1", "2"]


def test_a_hugging_face_dataset_trains_as_it_is(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["rose", "tulip"]))
    pictures = [Image.new("RGB", (9, 6 + i), (30 * i, 0, 0)) for i in range(4)]
    dataset = datasets.Dataset.from_dict(dict(image=pictures, label=[0, 1, 1, 0]), features=features)
    grids = []
    monkeypatch.setattr(image_trainer, "save_image_grid", lambda images, path, *layout: grids.append((images.shape, *layout)))
    model = ImageAutoregressiveFlow(image_size=(4, 6), patch_size=2, num_classes=2, model=SIZES)
    make_trainer(tmp_path, model, dataset)()
    # as tensors, which it gives with 8 bits
    dataset = datasets.Dataset.from_dict(dict(image=[Image.new("RGB", (6, 4))] * 4, label=[0, 1, 1, 0]), features=features)
    make_trainer(tmp_path / "tensors", model, dataset.with_format("torch"))()
    assert grids == [((4, 3, 4, 6), 2, ["rose", "tulip"])] * 2


def test_vectors_come_to_the_model_and_those_of_the_first_items_to_the_grids(tmp_path):
    class Captioned(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            vectors = torch.full((3, 5), float(index))
            return dict(image=torch.rand(1, 4, 4), cond=vectors, cond_mask=torch.arange(3) <= index, label=index % 2)

    trained, (sample,) = listen(make_trainer(tmp_path, Listener(num_classes=2), Captioned(), num_samples=4))
    assert {name: tuple(given.shape) for name, given in trained[0].items()} == dict(
        images=(2, 1, 4, 4), labels=(2,), cond=(2, 3, 5), cond_mask=(2, 3)
    )
    assert sample["batch_size"] == 4
    assert sample["cond"][:, 0, 0].tolist() == [0, 1, 2, 3]
    assert sample["labels"].tolist() == [0, 1, 0, 1]
    assert sample["cond_mask"].sum(dim=1).tolist() == [1, 2, 3, 3]

    own = dict(cond=torch.zeros(4, 5))
    _, (sample,) = listen(make_trainer(tmp_path / "own", Listener(), Captioned(), num_samples=4, sample_kwargs=own))
    assert sample.keys() == {"batch_size", "cond"}
    assert sample["cond"] is own["cond"]


def test_a_conditional_model_trains_draws_and_loads(tmp_path):
    images = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    model = ImageAutoregressiveFlow(image_size=4, patch_size=2, channels=1, num_classes=3, model=SIZES)
    make_trainer(tmp_path, model, images, sample_kwargs=dict(guidance_scale=2.0))()
    loaded = ImageAutoregressiveFlow.from_pretrained(tmp_path / "checkpoints" / "checkpoint.4")
    assert loaded.sample(labels=[0, 1, 2], guidance_scale=2.0).shape == (3, 1, 4, 4)
    picture = Image.open(tmp_path / "results" / "results.4.png")
    assert picture.height == 3 * 50 + 2
    assert picture.width > 2 * 50 + 2  # the names stand beside


def test_grids_show_the_same_conditions_however_they_are_drawn(tmp_path):
    class Captions(torch.utils.data.Dataset):
        """Of different lengths, with noise."""

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return dict(image=torch.rand(1, 4, 4), cond=torch.randn(1 + index, 5))

    def pad(items):
        lengths = [len(item["cond"]) for item in items]
        return dict(
            images=torch.stack([item["images"] for item in items]),
            cond=torch.nn.utils.rnn.pad_sequence([item["cond"] for item in items], batch_first=True),
            cond_mask=torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1),
        )

    seen = []
    for i in (1, 2):
        torch.manual_seed(i)
        trainer = make_trainer(tmp_path / str(i), Listener(), Captions(), dataloader_kwargs=dict(collate_fn=pad))
        seen.append(listen(trainer)[1][0])
    assert seen[0]["cond"].shape == (4, 4, 5)
    assert torch.equal(seen[0]["cond"], seen[1]["cond"])
    assert seen[0]["cond_mask"].sum(dim=1).tolist() == [1, 2, 3, 4]


def test_grids_are_drawn_in_evaluation_mode_and_leave_the_random_numbers_alone(tmp_path):
    modes = []

    class Noting(Constant):
        def sample(self, batch_size, generator):
            modes.append(self.training)
            torch.rand(3)
            return super().sample(batch_size, generator)

    trainer = make_trainer(tmp_path, Noting(), save_results_every=2)
    trainer()
    assert modes == [False, False]
    assert trainer.ema.ema_model.training
    before = torch.get_rng_state()
    trainer.save_results()
    assert torch.equal(torch.get_rng_state(), before)


def test_looking_at_the_dataset_for_the_grids_draws_no_random_numbers(tmp_path):
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.rand(1, 4, 4), index % 3

    trainer = make_trainer(tmp_path, Listener(num_classes=3), Augmented())
    before = torch.get_rng_state()
    assert trainer._grid_layout[1:] == (2, ["0", "1", "2"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path):
    model = small_model(decoder_kwargs=dict(layer_dropout=np.float32(0.1)))
    with pytest.raises(ValueError, match="decoder_kwargs is no JSON value"):
        make_trainer(tmp_path, model)


def test_a_failing_grid_loses_no_checkpoint(tmp_path):
    class Speechless(Constant):
        def sample(self, batch_size, generator):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer(tmp_path, Speechless())()
    assert names(tmp_path / "checkpoints") == ["checkpoint.4"]


def test_a_run_killed_in_the_midst_of_a_save_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    script = """
import torch
from small_trainings import small_model, trainer_in

torch.set_num_threads(1)
torch.manual_seed(0)
trainer_in("killed", small_model(), num_train_steps=1000, warmup_steps=0, checkpoint_every=1)()
"""
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent))
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, env=environment, stderr=log)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        there = os.listdir(checkpoints) if checkpoints.exists() else []
        if "checkpoint.5" in there and any(name.endswith(".partial") for name in there):
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()

    torch.manual_seed(1)
    resumed = trainer_in(tmp_path / "killed", small_model(), num_train_steps=20, warmup_steps=0, resume=True)
    assert 5 <= resumed.step < 20
    resumed()
    torch.manual_seed(0)
    whole = trainer_in(tmp_path / "whole", small_model(), num_train_steps=20, warmup_steps=0)
    whole()
    assert same_bits(resumed, whole)
