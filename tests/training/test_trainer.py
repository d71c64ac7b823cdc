"""The trainer: models of images, any model of dictionaries of tensors, and parts that plug in."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_trainings
import torch
from helpers import reset_accelerate
from small_trainings import (
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

from autoregressive_diffusion_pytorch import AutoregressiveFlow, Trainer
from autoregressive_diffusion_pytorch.training.loop import TrainingStopped
from autoregressive_diffusion_pytorch.training.parts import Part
from autoregressive_diffusion_pytorch.utils.manifests import check_checkpoint, read_manifest


def test_trains_anything_with_a_loss_and_a_sample(tmp_path):
    images = torch.rand(64, 1, 4, 4)
    trainer = make_trainer(
        tmp_path, Constant(), images, num_train_steps=300, learning_rate=0.03, batch_size=16
    )
    trainer()
    torch.testing.assert_close(
        trainer.unwrapped_model.mean.detach(), images.mean(dim=0), rtol=0, atol=0.05
    )
    files = ["manifest.json", "model.safetensors", "online.safetensors", "training.pt"]
    assert names(tmp_path / "checkpoints" / "checkpoint.300") == files


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
    assert (
        make_trainer(
            tmp_path, Constant(), torch.rand(10, 1, 4, 4), num_epochs=3, **settings
        ).num_train_steps
        == 8
    )
    assert make_trainer(tmp_path, Constant(), num_epochs=0.1, **settings).num_train_steps == 1
    assert make_trainer(tmp_path, Constant(), **settings).num_train_steps == 70_000
    with pytest.raises(
        ValueError, match="num_train_steps and num_epochs exclude each other, got 5 and 3"
    ):
        make_trainer(tmp_path, Constant(), num_epochs=3, num_train_steps=5)


def test_the_average_of_a_short_run_is_near_its_weights(tmp_path):
    # a weight that grows evenly to 1 in 500 steps: averaged, it lags behind by the length of the
    # average
    class Ramp(Constant):
        def forward(self, images):
            return -self.mean.sum()

    trainer = make_trainer(
        tmp_path,
        Ramp(),
        num_train_steps=500,
        warmup_steps=0,
        lr_schedule="constant",
        learning_rate=1 / 500,
        max_grad_norm=1e9,
    )
    trainer()
    online, averaged = (
        m.mean.mean().item() for m in (trainer.unwrapped_model, trainer.ema.ema_model)
    )
    assert online == pytest.approx(1.0, abs=0.01)
    assert 0.05 < online - averaged < 0.25


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(tmp_path, num_workers):
    # labels that are dropped at random, layers that are by Python's random numbers, augmentation, a
    # validation, grids on the way
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
        stop_after(
            9,
            make_trainer(
                parts, small_model(num_classes=3, **model_kwargs(model)), resume=True, **settings
            ),
        )()
    assert names(parts / "checkpoints") == ["checkpoint.4", "checkpoint.8", "checkpoint.9"]
    shutil.rmtree(parts / "checkpoints" / "checkpoint.9")  # as if the machine had failed before
    last = make_trainer(
        parts, small_model(num_classes=3, **model_kwargs(model)), resume=True, **settings
    )
    assert last.step == 8
    last()
    assert same_bits(last, whole)
    assert last.log.losses == whole.log.losses
    grids = [
        (tmp_path / run / "results" / "results.11.png").read_bytes() for run in ("whole", "parts")
    ]
    assert grids[0] == grids[1]
    losses = [
        read_manifest(tmp_path / run / "checkpoints" / "checkpoint.11")["validation_loss"]
        for run in ("whole", "parts")
    ]
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
    monkeypatch.setattr("autoregressive_diffusion_pytorch.training.trainer.MEASURED_ITEMS", 4)
    trainer = make_trainer(tmp_path / "many", images=dataset.images)
    torch.testing.assert_close(
        trainer.unwrapped_model.model.head.sigma_data, (2 * dataset.images[::3] - 1).std()
    )
    trainer()
    # it is that of the whole training
    resumed = make_trainer(
        tmp_path / "many", images=0.1 * dataset.images, num_train_steps=5, resume=True
    )
    resumed()
    assert (
        resumed.unwrapped_model.model.head.sigma_data
        == trainer.unwrapped_model.model.head.sigma_data
    )
    # and not measured where it is given
    own = make_trainer(tmp_path / "own", small_model(flow_kwargs=dict(sigma_data=0.7)))
    assert own.unwrapped_model.model.head.sigma_data == pytest.approx(0.7)


def test_the_seed_makes_the_run(tmp_path):
    model, dataset = small_model(), Augmented()
    trainers = []
    for i, seed in enumerate((3, 3, 4)):
        trainers.append(
            make_trainer(tmp_path / str(i), copy.deepcopy(model), dataset.images, seed=seed)
        )
        trainers[-1]()
        torch.rand(3)
    first, second, third = trainers
    assert same_bits(first, second)
    assert not same_bits(first, third)


def test_an_interrupted_replacement_is_found_on_resuming(tmp_path):
    make_trainer(tmp_path)()
    checkpoint = tmp_path / "checkpoints" / "checkpoint.4"
    checkpoint.rename(checkpoint.with_name("checkpoint.4.replaced"))
    assert make_trainer(tmp_path, resume=True).step == 4


def test_another_number_of_images_is_warned_of(tmp_path):
    make_trainer(tmp_path)()
    with pytest.warns(
        UserWarning, match="the dataset holds 5 images, 8 when the checkpoint was written"
    ):
        make_trainer(tmp_path, images=torch.rand(5, 1, 4, 4), resume=True)


def test_resuming_needs_a_checkpoint_and_starting_anew_an_empty_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nothing to resume: .*checkpoints holds no whole checkpoint"
    ):
        make_trainer(tmp_path, Constant(), resume=True)
    make_trainer(tmp_path, Constant())()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        FileExistsError, match=r"already holds checkpoint.4: resume = True goes on from there"
    ):
        make_trainer(tmp_path, Constant())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_damaged_checkpoints_are_passed_over(tmp_path):
    settings = dict(num_train_steps=3, checkpoint_every=1)
    make_trainer(tmp_path, **settings)()
    checkpoints = tmp_path / "checkpoints"
    weights = (checkpoints / "checkpoint.3" / "online.safetensors").read_bytes()
    (checkpoints / "checkpoint.3" / "online.safetensors").write_bytes(
        weights[:-1] + bytes([weights[-1] ^ 1])
    )
    (checkpoints / "checkpoint.2" / "training.pt").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"passed over: .*checkpoint\.\d/(online.safetensors|training.pt)"
    ) as warned:
        trainer = make_trainer(tmp_path, resume=True, **settings)
    assert len(warned) == 2
    assert trainer.step == 1
    trainer()  # and the damaged ones are written anew
    for step in (1, 2, 3):
        check_checkpoint(checkpoints / f"checkpoint.{step}")
    for step in (1, 2, 3):
        (checkpoints / f"checkpoint.{step}" / "manifest.json").unlink()
    with (
        pytest.raises(FileNotFoundError, match="nothing to resume"),
        pytest.warns(UserWarning, match="passed over"),
    ):
        make_trainer(tmp_path, resume=True, **settings)


def test_gradient_checkpointing_changes_no_number(tmp_path):
    model = small_model()
    images = torch.rand(8, 1, 4, 4)
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), copy.deepcopy(model), images, gradient_checkpointing=on)
        for on in (False, True)
    )
    layers = [trainer.unwrapped_model.model.head.net.blocks[0] for trainer in (plain, checkpointed)]
    assert ["forward" in vars(layer) for layer in layers] == [False, True]
    plain()
    checkpointed()
    for expected, found in zip(
        plain.model.parameters(), checkpointed.model.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected)
    with pytest.raises(
        ValueError,
        match=r"gradient_checkpointing needs a model with checkpoint_gradients\(\), got a Constant",
    ):
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
    # all of the compiler but its code generation
    accelerate_kwargs = dict(cpu=True, dynamo_backend="aot_eager")
    model, images = small_model(), torch.rand(8, 1, 4, 4)
    plain = make_trainer(tmp_path / "plain", copy.deepcopy(model), images)
    plain()
    reset_accelerate()
    trainer = make_trainer(
        tmp_path / "compiled", model, images, accelerate_kwargs=accelerate_kwargs
    )
    assert trainer.model is not trainer.unwrapped_model
    trainer()
    for expected, found in zip(
        plain.unwrapped_model.parameters(), trainer.unwrapped_model.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected)
    resumed = make_trainer(
        tmp_path / "compiled",
        small_model(),
        images,
        num_train_steps=5,
        resume=True,
        accelerate_kwargs=accelerate_kwargs,
    )
    for expected, found in zip(
        trainer.unwrapped_model.parameters(), resumed.unwrapped_model.parameters(), strict=True
    ):
        assert torch.equal(found, expected)
    resumed()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            dict(num_train_steps=0),
            ValueError,
            "num_train_steps must be a whole number of at least 1, got 0",
        ),
        (
            dict(batch_size=1.5),
            ValueError,
            "batch_size must be a whole number of at least 1, got 1.5",
        ),
        (dict(num_samples=0), ValueError, "num_samples must be"),
        (dict(learning_rate=0.0), ValueError, "learning_rate must be above 0, got 0.0"),
        (dict(max_minutes=0), ValueError, "max_minutes must be above 0, got 0"),
        (dict(num_epochs=0, num_train_steps=None), ValueError, "num_epochs must be above 0, got 0"),
        (dict(keep_last=0), ValueError, "keep_last must be a whole number of at least 1, got 0"),
        (dict(seed=-1), ValueError, "seed must be a whole number from 0 to 2147483647, got -1"),
        (
            dict(warmup_steps=-1),
            ValueError,
            "warmup_steps must be a whole number from 0 to inf, got -1",
        ),
        (dict(log_every=0), ValueError, "log_every must be a whole number of at least 1, got 0"),
        (
            dict(nonfinite="ignore"),
            ValueError,
            "nonfinite must be one of 'stop', 'skip', got 'ignore'",
        ),
        (
            dict(validation_dataset=TensorDataset(torch.zeros(0))),
            ValueError,
            "validation_dataset holds no image",
        ),
        (
            dict(dataloader_kwargs=dict(shuffle=False)),
            ValueError,
            r"dataloader_kwargs must not hold \['shuffle'\]",
        ),
        (
            dict(lr_schedule="linear"),
            ValueError,
            "lr_schedule must be one of 'constant', 'cosine', got 'linear'",
        ),
        (dict(images=TensorDataset(torch.zeros(0))), ValueError, "dataset holds no image"),
        (dict(nonsense=1), TypeError, "nonsense"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, Constant(), **kwargs)


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path):
    model = small_model(decoder_kwargs=dict(layer_dropout=np.float32(0.1)))
    with pytest.raises(ValueError, match="decoder_kwargs is no JSON value"):
        make_trainer(tmp_path, model)


def test_a_run_killed_in_the_midst_of_a_save_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    script = """
import torch
from small_trainings import small_model, trainer_in

torch.set_num_threads(1)
torch.manual_seed(0)
trainer_in("killed", small_model(), num_train_steps=1000, warmup_steps=0, checkpoint_every=1)()
"""
    paths = [str(Path(small_trainings.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths)))
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=tmp_path,
            env=environment,
            stderr=log,
        )
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        there = os.listdir(checkpoints) if checkpoints.exists() else []
        if "checkpoint.5" in there and any(name.endswith(".partial") for name in there):
            break
        time.sleep(0.001)  # leaves the processor to the run
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()

    torch.manual_seed(1)
    resumed = trainer_in(
        tmp_path / "killed", small_model(), num_train_steps=20, warmup_steps=0, resume=True
    )
    assert 5 <= resumed.step < 20
    resumed()
    torch.manual_seed(0)
    whole = trainer_in(tmp_path / "whole", small_model(), num_train_steps=20, warmup_steps=0)
    whole()
    assert same_bits(resumed, whole)


SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def sequences(count=12):
    generator = torch.Generator().manual_seed(0)
    seqs = torch.randn(count, 5, 3, generator=generator)
    return [dict(seq=seq, labels=torch.tensor(i % 2)) for i, seq in enumerate(seqs)]


def sequence_trainer(folder, **kwargs):
    torch.manual_seed(0)
    model = AutoregressiveFlow(**SIZES, dim_input=3, max_seq_len=5, num_classes=2)
    settings = dict(num_train_steps=6, batch_size=4, checkpoint_every=3)
    folders = dict(checkpoints_folder=folder / "checkpoints", logs_folder=folder / "logs")
    cpu = dict(accelerate_kwargs=dict(cpu=True))
    return Trainer(model, dataset=sequences(), **(settings | folders | cpu | kwargs))


def test_a_sequence_model_trains_and_resumes_to_the_same_bits(tmp_path):
    options = dict(validation_dataset=sequences(5))
    whole = sequence_trainer(tmp_path / "whole", **options)
    whole()
    with pytest.raises(TrainingStopped):
        stop_after(4, sequence_trainer(tmp_path / "parts", **options))()
    torch.rand(3)
    resumed = sequence_trainer(tmp_path / "parts", resume=True, **options)
    assert resumed.step == 4
    resumed()
    assert same_bits(resumed, whole)
    assert resumed.validate() == pytest.approx(whole.validation.loss)
    assert names(tmp_path / "whole") == ["checkpoints", "logs"]
    assert "items_per_second" in events(tmp_path / "whole")


def test_a_model_is_told_how_far_its_training_is(tmp_path):
    model, seen = small_trainings.Seeded(**small_trainings.SMALL), []
    model.set_progress = seen.append
    trainer_in(tmp_path, model=model, num_train_steps=4)()
    assert seen == [0, 0.25, 0.5, 0.75]


def test_the_scale_of_sequences_is_measured_too(tmp_path):
    trainer = sequence_trainer(tmp_path)
    tokens = torch.cat([item["seq"] for item in sequences()])
    std, mean = torch.std_mean(tokens, dim=0)
    model = trainer.unwrapped_model
    torch.testing.assert_close(model.normalization.scale, std)
    torch.testing.assert_close(model.normalization.mean, mean)
    torch.testing.assert_close(model.head.sigma_data, ((tokens - mean) / std).std())


class Counter(Part):
    """Counts the steps of all runs of a training."""

    def __init__(self):
        self.started, self.count, self.last = 0, 0, []

    def start(self, trainer):
        self.started = trainer.step

    def after_step(self, trainer, step):
        self.count += 1
        assert trainer.log.losses.count == trainer.step  # the log comes first
        assert (trainer.step % 3 == 0) == trainer.checkpoints.path(trainer.step).exists()
        self.last.append(step.is_last)

    def state(self):
        return dict(count_of_steps=self.count)

    def load_state(self, state):
        self.count = state["count_of_steps"]


def test_a_part_sees_each_step_and_keeps_its_state(tmp_path):
    counter = Counter()
    sequence_trainer(tmp_path, parts=[counter])()
    assert (counter.started, counter.count) == (0, 6)
    assert counter.last == [False] * 5 + [True]
    counter = Counter()
    # the state in the checkpoint of a step is that before the part has seen the step
    sequence_trainer(tmp_path, parts=[counter], num_train_steps=9, resume=True)()
    assert (counter.started, counter.count) == (6, 8)


def test_a_dataset_without_items_is_refused(tmp_path):
    model = AutoregressiveFlow(**SIZES, max_seq_len=5)
    with pytest.raises(ValueError, match="dataset holds no item"):
        Trainer(model, dataset=[])
    with pytest.raises(TypeError, match="dataset must have a length"):
        Trainer(model, dataset=iter([]))


def test_auto_goes_on_where_it_can_and_starts_where_it_cannot(tmp_path):
    settings = dict(num_train_steps=2, resume="auto")
    make_trainer(tmp_path, Constant(), **settings)()
    assert make_trainer(tmp_path, Constant(), **settings).step == 2
    (tmp_path / "checkpoints" / "checkpoint.2" / "training.pt").unlink()
    with pytest.warns(UserWarning, match="passed over"):
        trainer = make_trainer(tmp_path, Constant(), **settings)
    assert trainer.step == 0
    trainer()
    check_checkpoint(tmp_path / "checkpoints" / "checkpoint.2")


def test_a_dataset_of_other_things_than_dictionaries_is_told(tmp_path):
    with pytest.raises(TypeError, match=r"dataset must give dictionaries of .* a Tensor"):
        Trainer(torch.nn.Linear(1, 1), dataset=torch.rand(4, 3), accelerate_kwargs=dict(cpu=True))


def test_a_model_that_cannot_be_copied_is_named(tmp_path):
    model = Constant()
    model.layer = torch.nn.utils.weight_norm(torch.nn.Linear(2, 2))
    model.layer(torch.rand(1, 2))
    message = r"model.layer has torch.nn.utils.weight_norm, .*parametrizations.weight_norm can"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model)
    model = Constant()
    model.layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))
    make_trainer(tmp_path / "new", model)


def test_fp16_without_a_gpu_is_refused_and_bars_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="mixed_precision = 'fp16' needs a GPU"):
        make_trainer(tmp_path, accelerate_kwargs=dict(cpu=True, mixed_precision="fp16"))
    make_trainer(tmp_path, accelerate_kwargs=dict(cpu=True, mixed_precision="bf16"))
    with pytest.raises(
        ValueError, match=r"mixed_precision must be 'bf16', as of this process's first .* got 'no'"
    ):
        make_trainer(tmp_path)


def test_a_second_training_has_another_compiler_in_a_process_of_its_own(tmp_path):
    make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"dynamo_backend must be 'NO', .* got 'AOT_EAGER'"):
        make_trainer(tmp_path, accelerate_kwargs=dict(cpu=True, dynamo_backend="aot_eager"))


def test_two_trainings_of_a_process_leave_each_other_alone(tmp_path):
    images = torch.rand(16, 1, 4, 4)

    def trainer(folder, passes):
        torch.manual_seed(0)
        kwargs = dict(cpu=True, gradient_accumulation_steps=passes)
        return make_trainer(
            tmp_path / folder, Constant(), images, accelerate_kwargs=kwargs, learning_rate=0.1
        )

    alone = trainer("alone", 3)
    alone()
    first, second = trainer("first", 3), trainer("second", 1)
    first()
    second()
    assert same_bits(first, alone)
    assert (first.items_seen, second.items_seen) == (24, 8)


def test_a_compiled_model_trains_resumes_and_loads_as_its_own(tmp_path):
    sizes = dict(dim=8, depth=1, heads=1, dim_head=8, mlp_depth=1, mlp_width=8)

    def trained(place, compiled, steps, **kwargs):
        torch.manual_seed(0)
        model = AutoregressiveFlow(**sizes, dim_input=2, max_seq_len=3)
        given = torch.compile(model, backend="eager") if compiled else model
        data = [dict(seq=torch.randn(3, 2, generator=generator)) for _ in range(8)]
        trainer = Trainer(
            given,
            dataset=data,
            num_train_steps=steps,
            batch_size=4,
            log_with=None,
            checkpoints_folder=tmp_path / place,
            accelerate_kwargs=dict(cpu=True),
            **kwargs,
        )
        trainer()
        return AutoregressiveFlow.from_pretrained(tmp_path / place / f"checkpoint.{steps}")

    generator = torch.Generator().manual_seed(0)
    trained("compiled", True, 1)
    generator.manual_seed(0)
    resumed = trained("compiled", True, 2, resume=True)
    generator.manual_seed(0)
    plain = trained("plain", False, 2)
    generator.manual_seed(0)
    assert resumed.config == plain.config
    for one, other in zip(resumed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    trained("compiled", False, 3, resume=True)  # nor do the files know of it
