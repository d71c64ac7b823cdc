"""Trainings and samplings of two processes against those of one."""

import pytest
import torch
from small_trainings import SMALL, Seeded, gradients, names, run_by_two, trainer_in

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images
from autoregressive_diffusion_pytorch.utils.manifests import check_checkpoint


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


TRAINING = """
    import io
    import logging
    import os
    import signal

    import torch
    from small_trainings import SMALL, gradients, images, trainer_in

    from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
    from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images
    from autoregressive_diffusion_pytorch.training import checkpoints
    from autoregressive_diffusion_pytorch.training.loop import TrainingStopped

    def trainer(folder, **kwargs):
        model = ImageAutoregressiveFlow(**SMALL)
        model.load_state_dict(torch.load("start.pt", weights_only=True))
        settings = dict(num_train_steps=6, checkpoint_every=2, validation_dataset=images(5))
        return trainer_in(folder, model, **settings, **kwargs)

    first = trainer_in("gradients", batch_size=8, num_train_steps=1)
    rank = first.accelerator.process_index
    assert first.accelerator.num_processes == 2
    found = dict(gradients=gradients(first))

    whole = trainer("whole")
    whole()
    found["validation"] = whole.validate()

    stopped = trainer("parts")
    train_step = stopped._train_step

    def stopping(batches):
        if stopped.step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(batches)

    stopped._train_step = stopping
    try:
        stopped()
        raise AssertionError("the signal was not heeded")
    except TrainingStopped as error:
        assert (error.code, error.step) == (143, 3)
    parts = trainer("parts", resume=True)
    parts()
    for one, other in ((whole.unwrapped_model, parts.unwrapped_model), (whole.ema, parts.ema)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    found["weights"] = parts.unwrapped_model.state_dict()

    model = ImageAutoregressiveFlow.from_pretrained("whole/checkpoints/checkpoint.6")
    found["drawn"] = draw_images(model, 7, batch_size=2, seed=3)

    def fail(*args):
        raise OSError("No space left on device")

    fsync = checkpoints.os.fsync
    checkpoints.os.fsync = fail  # only the main process writes
    try:
        parts.save()
        raise AssertionError("it was saved")
    except OSError as error:
        message = "could not be written, what was saved before is untouched: No space left"
        assert message in str(error)

    # what fails in one process is told, and the other does not wait
    class Lost(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index == 3:
                raise OSError("the file is gone")
            return images(1)[0]

    checkpoints.os.fsync = fsync
    model = ImageAutoregressiveFlow(**SMALL)
    failing = trainer_in("failing", model, num_train_steps=2, validation_dataset=Lost())
    sample = failing.ema.ema_model.sample

    def sample_or_fail(**kwargs):
        if rank == 1:
            raise RuntimeError("out of memory")
        return sample(**kwargs)

    failing.ema.ema_model.sample = sample_or_fail
    logger = logging.getLogger("autoregressive_diffusion_pytorch")
    logger.addHandler(handler := logging.StreamHandler(told := io.StringIO()))
    failing()
    logger.removeHandler(handler)
    lines = [line.split(", the training")[0] for line in told.getvalue().splitlines()]
    expected = ["the validation of step 2 failed", "the grid of step 2 failed"]
    assert lines == (expected if rank == 0 else []), lines
    torch.save(found, f"{rank}.pt")
"""


def test_training_and_sampling(tmp_path, on_cpu):
    torch.save(ImageAutoregressiveFlow(**SMALL).state_dict(), tmp_path / "start.pt")
    first, second = run_by_two(TRAINING, tmp_path)

    # one process has the same gradients: of the large batch, and of two passes
    settings = dict(num_train_steps=1, batch_size=8)
    for i, kwargs in enumerate(
        (dict(batch_size=16), dict(accelerate_kwargs=dict(gradient_accumulation_steps=2)))
    ):
        expected = gradients(trainer_in(tmp_path / str(i), **(settings | kwargs)))
        for rank in (first, second):
            for name, gradient in expected.items():
                torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-5, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())

    # the same in both; one that is stopped, by a signal to one of them, ends with the bits of one
    # that is not: the script compares
    assert first["validation"] == second["validation"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    assert names(tmp_path / "parts" / "checkpoints")[-3:] == [
        "checkpoint.3",
        "checkpoint.4",
        "checkpoint.6",
    ]
    assert names(tmp_path / "parts" / "results") == ["results.6.png"]
    check_checkpoint(tmp_path / "parts" / "checkpoints" / "checkpoint.6")
    check_checkpoint(tmp_path / "failing" / "checkpoints" / "checkpoint.2")

    model = ImageAutoregressiveFlow.from_pretrained(
        tmp_path / "whole" / "checkpoints" / "checkpoint.6"
    )
    drawn = draw_images(model, 7, batch_size=2, seed=3)
    assert torch.equal(first["drawn"], drawn)
    assert torch.equal(second["drawn"], drawn)


MIXED_PRECISION = """
    import torch
    from small_trainings import SMALL, trainer_in

    from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow

    class Recorded(ImageAutoregressiveFlow):
        seen = []

        def forward(self, images, **conditions):
            if self.training:
                self.seen += images[:, 0, 0, 0].tolist()
            assert conditions.keys() == {"labels", "cond", "cond_mask"}
            return super().forward(images, **conditions)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, i):
            vectors = dict(cond=torch.randn(3, 5), cond_mask=torch.arange(3) < i)
            return dict(image=torch.full((1, 4, 4), i / 16), label=i, **vectors)

    model = Recorded(**SMALL, num_classes=16, dim_cond=5)
    of_each = dict(labels=[1, 2, 3], cond=torch.randn(3, 5), guidance_scale=[1.0, 2.0, 3.0])
    settings = dict(num_train_steps=4, max_minutes=10, checkpoint_every=2, sample_kwargs=of_each)
    trainer = trainer_in(".", model, Images(), **settings)
    trainer()
    rank = trainer.accelerator.process_index
    torch.save(dict(seen=model.seen, weights=model.state_dict()), f"{rank}.pt")
"""


def test_mixed_precision(tmp_path):
    first, second = run_by_two(MIXED_PRECISION, tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    # each image once, half of them in each process; the same weights in both
    assert sorted(first["seen"] + second["seen"]) == [i / 16 for i in range(16)]
    for name, weight in first["weights"].items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second["weights"][name])
    assert names(tmp_path / "checkpoints") == ["checkpoint.2", "checkpoint.4"]
    assert names(tmp_path / "results") == ["results.4.png"]


SHARDED = """
    import torch
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from small_trainings import images, trainer_in
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    # accelerate shards on accelerators only, torch on CPUs too
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Attention", "FeedForward", "ResidualBlock"],
    )

    def sharded(folder, **kwargs):
        settings = dict(checkpoint_every=2, validation_dataset=images(5))
        settings |= dict(accelerate_kwargs=dict(fsdp_plugin=plugin))
        return trainer_in(folder, **settings, **kwargs)

    def parts_of(model):
        return sum(isinstance(module, FSDPModule) for module in model.modules())

    def local(value):
        return value.to_local() if isinstance(value, DTensor) else value

    whole = sharded("whole", num_train_steps=4, gradient_checkpointing=True)
    assert parts_of(whole.unwrapped_model) == parts_of(whole.ema.ema_model) > 5
    assert isinstance(next(whole.unwrapped_model.parameters()), DTensor)
    assert isinstance(next(whole.ema.ema_model.parameters()), DTensor)
    whole()
    sharded("parts", num_train_steps=2, gradient_checkpointing=True)()
    parts = sharded("parts", num_train_steps=4, gradient_checkpointing=True, resume=True)
    assert parts.step == 2
    parts()
    models = [(trainer.unwrapped_model, trainer.ema.ema_model) for trainer in (whole, parts)]
    for one, other in zip(*models, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(local(value), local(other.state_dict()[name])), name
    torch.save({}, f"{whole.accelerator.process_index}.pt")
"""


def test_sharded_weights(tmp_path, on_cpu):
    run_by_two(SHARDED, tmp_path)
    assert names(tmp_path / "whole" / "checkpoints") == ["checkpoint.2", "checkpoint.4"]
    assert names(tmp_path / "whole" / "results") == ["results.4.png"]
    # what one process trains whose batches are as large, up to the order of sums, of which Adam
    # makes much at small gradients
    trainer = trainer_in(tmp_path / "one", batch_size=4, num_train_steps=4)
    trainer()
    loaded = Seeded.from_pretrained(tmp_path / "whole" / "checkpoints" / "checkpoint.4")
    for name, value in trainer.ema.ema_model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=1e-3)
    # and which can go on from there
    trainer = trainer_in(tmp_path / "whole", batch_size=4, num_train_steps=5, resume=True)
    assert trainer.step == 4
    trainer()
