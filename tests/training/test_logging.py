import math
import statistics

import pytest
import torch
from accelerate.tracking import GeneralTracker
from small_trainings import SMALL, Constant, events, interrupt_after, make_trainer
from torch import nn

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlowMap
from autoregressive_diffusion_pytorch.training.logging import (
    RunningAverage,
    matmul_rate,
    training_flops,
)


def test_a_spike_leaves_a_trace(tmp_path, caplog):
    class Spiky(Constant):
        calls = 0

        def forward(self, images):
            self.calls += self.training
            return super().forward(images) + (100.0 if self.calls == 73 else 0.0)

    make_trainer(tmp_path, Spiky(), num_train_steps=90, log_every=50)()
    (record,) = caplog.records
    assert "the loss of step 73 is 100" in record.getMessage()
    assert "far above the average of 0." in record.getMessage()
    assert [entry.step for entry in events(tmp_path)["loss"]] == [50, 73, 90]


def test_tensorboard_reads_the_log(tmp_path):
    settings = dict(
        num_train_steps=20, log_every=5, checkpoint_every=8, learning_rate=0.1, warmup_steps=2
    )
    trainer = make_trainer(tmp_path, validation_dataset=torch.rand(3, 1, 4, 4), **settings)
    trainer()
    found = events(tmp_path)
    assert [entry.step for entry in found["validation_loss"]] == [8, 16, 20]
    names = (
        "loss",
        "loss_average",
        "gradient_norm",
        "learning_rate",
        "images_per_second",
        "utilization",
        "skipped_steps",
    )
    assert found.keys() == {*names, "validation_loss"}
    for name in names:
        assert [entry.step for entry in found[name]] == [5, 10, 15, 20], name
    assert [entry.value for entry in found["learning_rate"]] == pytest.approx([0.1] * 4)
    assert all(0 < entry.value < 1 for entry in found["utilization"])
    assert all(entry.value > 0 for entry in found["gradient_norm"])
    assert found["loss_average"][-1].value == pytest.approx(trainer.log.losses.average)


def test_parts_of_a_head_s_loss_are_logged(tmp_path):
    model = ImageAutoregressiveFlowMap(**SMALL)
    trainer = make_trainer(
        tmp_path, model, validation_dataset=torch.rand(3, 1, 4, 4), num_train_steps=4, log_every=2
    )
    trainer()
    found = events(tmp_path)
    for name in ("flow_error", "map_error"):
        assert [entry.step for entry in found[name]] == [2, 4]
    # half of the draws are of each
    for i, entry in enumerate(found["loss"]):
        errors = [found[name][i].value for name in ("flow_error", "map_error")]
        assert entry.value == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_a_resumed_run_goes_on_with_the_log(tmp_path):
    settings = dict(num_train_steps=6, log_every=1, checkpoint_every=2)
    trainer = make_trainer(tmp_path, **settings)
    trainer._train_step = interrupt_after(5, trainer._train_step)  # the fifth is logged and lost
    with pytest.raises(KeyboardInterrupt):
        trainer()
    make_trainer(tmp_path, resume=True, **settings)()
    assert [entry.step for entry in events(tmp_path)["loss"]] == [1, 2, 3, 4, 5, 6]


def test_other_trackers_and_none(tmp_path):
    class Memory(GeneralTracker):
        name = "memory"
        requires_logging_directory = False
        tracker = None
        entries, configs, finished = [], [], []

        def store_init_configuration(self, values):
            self.configs.append(values)

        def log(self, values, step=None, **kwargs):
            self.entries.append(step)

        def finish(self):
            self.finished.append(True)

    make_trainer(tmp_path / "memory", log_with=[Memory()], log_every=2)()
    assert (Memory.entries, Memory.finished) == ([2, 4], [True])
    assert Memory.configs[0]["image_size"] == 4
    make_trainer(tmp_path / "none", log_with=None)()
    assert not (tmp_path / "memory" / "logs").exists()
    assert not (tmp_path / "none" / "logs").exists()


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(ValueError, match="log_with: the packages of tensorboard are not installed"):
        make_trainer(tmp_path, Constant())


def test_average_and_variance_of_the_first_hundred():
    numbers = torch.randn(100).double().tolist()
    average = RunningAverage()
    for number in numbers:
        average.add(number)
    assert average.average == pytest.approx(statistics.mean(numbers))
    assert average.variance == pytest.approx(statistics.pvariance(numbers))


def test_it_forgets():
    average = RunningAverage()
    for number in [100.0] * 100 + [1.0] * 2000:
        average.add(number)
    assert average.average == pytest.approx(1.0, abs=1e-5)
    assert average.variance < 1e-3


def test_a_spike_stands_out():
    average = RunningAverage()
    assert not average.is_spike(1e9)  # of nothing yet
    for number in (0.1 * torch.randn(1000)).tolist():
        assert not average.is_spike(number)
        average.add(number)
    assert average.is_spike(average.average + 7 * math.sqrt(average.variance))
    assert not average.is_spike(-1e9)
    assert not average.is_spike(math.nan)


def test_operations_of_a_linear_layer():
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(), nn.Linear(7, 3))
    # two operations for each weight and row; twice as many backward
    assert training_flops(model, lambda model: model(torch.rand(11, 5))) == 3 * 2 * 11 * (
        5 * 7 + 7 * 3
    )
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_of_this_machine(dtype):
    rate = matmul_rate(torch.device("cpu"), dtype)
    assert 1e8 < rate < 1e15
    assert matmul_rate(torch.device("cpu"), dtype) == rate  # measured once
