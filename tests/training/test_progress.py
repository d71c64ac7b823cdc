import json
import os
import socket

import pytest
import torch
from small_trainings import make_trainer, same_bits, stop_after

from autoregressive_diffusion_pytorch.training import progress as module
from autoregressive_diffusion_pytorch.training.loop import Part, TrainingTerminated
from autoregressive_diffusion_pytorch.training.progress import Progress


class Seen(Part):
    """What the file holds after each step."""

    def __init__(self, file):
        self.file, self.found = file, []

    def after_step(self, trainer, step):
        self.found.append(json.loads(self.file.read_text()))


def read(folder):
    return json.loads((folder / "progress.json").read_text())


def trainer_with_progress(folder, **kwargs):
    torch.manual_seed(0)
    seen = Seen(folder / "progress.json")
    trainer = make_trainer(folder, parts=[Progress(folder), seen], **kwargs)
    return trainer, seen


def test_tells_where_a_training_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0)
    trainer, seen = trainer_with_progress(tmp_path)
    trainer()
    assert [(found["state"], found["step"]) for found in seen.found] == [
        ("running", step) for step in (1, 2, 3, 4)
    ]
    last = read(tmp_path)
    assert (last["state"], last["step"], last["num_train_steps"]) == ("ended", 4, 4)
    assert (last["pid"], last["host"], last["item"]) == (os.getpid(), socket.gethostname(), "image")
    assert last["loss"] == pytest.approx(trainer.log.losses.average)
    assert last["items_per_second"] > 0
    assert last["started"] <= last["updated"]
    assert last["updated"].endswith("+00:00")


def test_is_seldom_written(tmp_path):
    trainer, seen = trainer_with_progress(tmp_path)
    trainer()
    assert [found["step"] for found in seen.found] == [0, 0, 0, 0]
    assert seen.found[0]["loss"] is seen.found[0]["items_per_second"] is None
    assert read(tmp_path)["step"] == 4


def test_a_signal_and_an_error_stop_it(tmp_path):
    trainer, _ = trainer_with_progress(tmp_path)
    with pytest.raises(TrainingTerminated):
        stop_after(2, trainer)()
    assert (read(tmp_path)["state"], read(tmp_path)["step"]) == ("stopped", 2)
    trainer, _ = trainer_with_progress(tmp_path, resume=True)
    trainer._train_step = None
    with pytest.raises(TypeError):
        trainer()
    assert (read(tmp_path)["state"], read(tmp_path)["step"]) == ("stopped", 2)


def test_minutes_end_it(tmp_path):
    trainer, _ = trainer_with_progress(tmp_path, max_minutes=1e-9)
    trainer()
    assert (read(tmp_path)["state"], read(tmp_path)["step"]) == ("ended", 1)


def test_leaves_the_training_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0)
    with_progress, _ = trainer_with_progress(tmp_path / "with")
    torch.manual_seed(0)
    without = make_trainer(tmp_path / "without")
    for trainer in (with_progress, without):
        trainer()
    assert same_bits(with_progress, without)


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(module, "atomic_write_text", fail)
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, parts=[Progress(tmp_path)])
    trainer()
    assert trainer.step == 4
    told = [message for message in caplog.messages if "progress" in message]
    assert told == ["the progress is not written: [Errno 28] No space left on device"]
