import copy
import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from autoregressive_diffusion_pytorch import (
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
    ImageDataset,
    ImageTrainer,
    image_trainer,
)
from autoregressive_diffusion_pytorch.image_trainer import labels_by_row, newest_checkpoint, save_image_files, save_image_grid

SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


class Constant(torch.nn.Module):
    """The least that the trainer asks of a model: learns the mean of the images, samples it."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, images):
        return (images - self.mean).square().mean()

    def sample(self, batch_size, generator):
        return self.mean.detach().expand(batch_size, 1, 4, 4).clamp(0, 1)


def small_model(model_class=ImageAutoregressiveFlow, num_classes=None, **kwargs):
    return model_class(image_size=4, patch_size=2, channels=1, num_classes=num_classes, model=SMALL | kwargs)


def make_trainer(folder, model=None, images=None, **kwargs):
    settings = dict(
        num_train_steps=4,
        batch_size=2,
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "results",
        num_samples=4,
        accelerate_kwargs=dict(cpu=True),
    )
    return ImageTrainer(
        small_model() if model is None else model,
        dataset=torch.rand(8, 1, 4, 4) if images is None else images,
        **(settings | kwargs),
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow])
def test_writes_grids_and_checkpoints_that_load(model_class, tmp_path):
    trainer = make_trainer(tmp_path, small_model(model_class), num_train_steps=5, save_results_every=2, checkpoint_every=3)
    trainer()
    assert names(tmp_path / "results") == ["results.2.png", "results.4.png", "results.5.png"]
    assert names(tmp_path / "checkpoints") == ["checkpoint.3", "checkpoint.5"]
    assert names(tmp_path / "checkpoints" / "checkpoint.5") == ["config.json", "model.safetensors", "training.pt"]

    loaded = model_class.from_pretrained(tmp_path / "checkpoints" / "checkpoint.5")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.ema.ema_model.state_dict()[name])


def test_trains_anything_with_a_loss_and_a_sample(tmp_path):
    images = torch.rand(64, 1, 4, 4)
    trainer = make_trainer(tmp_path, Constant(), images, num_train_steps=300, learning_rate=0.03, batch_size=16)
    trainer()
    torch.testing.assert_close(trainer.unwrapped_model.mean.detach(), images.mean(dim=0), rtol=0, atol=0.05)
    assert names(tmp_path / "checkpoints" / "checkpoint.300") == ["model.safetensors", "training.pt"]


def test_shows_a_bar_with_loss_and_speed_and_no_line_a_step(tmp_path, capsys):
    make_trainer(tmp_path, Constant(), num_train_steps=200)()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "200/200" in captured.err
    assert "loss 0." in captured.err
    assert "images/s" in captured.err


def test_learning_rate_warms_up_and_falls(tmp_path):
    def rates(**kwargs):
        trainer = make_trainer(tmp_path, Constant(), num_train_steps=100, learning_rate=1.0, **kwargs)
        return [trainer.learning_rate_at(step) for step in range(100)]

    cosine = rates(warmup_steps=10, lr_schedule="cosine")
    assert cosine[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] < 0.001
    assert all(a >= b for a, b in pairwise(cosine[10:]))
    assert rates(warmup_steps=0) == [1.0] * 100
    # a short run does not spend itself on warming up
    assert rates(warmup_steps=500)[10] == 1.0


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


def test_resumes_from_the_newest_checkpoint(tmp_path):
    images = torch.rand(8, 1, 4, 4)
    # all images in a batch, so that the order of the data does not count
    # a learning rate so large that each step depends on those before it
    settings = dict(images=images, batch_size=8, num_train_steps=6, checkpoint_every=2, learning_rate=0.5)
    model = Constant()
    whole = make_trainer(tmp_path / "whole", copy.deepcopy(model), **settings)
    whole()

    first = make_trainer(tmp_path / "parts", copy.deepcopy(model), **settings)
    first.save_results = lambda: None
    first._train_step = interrupt_after(4, first._train_step)
    with pytest.raises(KeyboardInterrupt):
        first()
    second = make_trainer(tmp_path / "parts", Constant(), resume=True, **settings)
    assert second.step == 4
    second()

    for part in ("unwrapped_model", "ema"):
        expected, found = getattr(whole, part).state_dict(), getattr(second, part).state_dict()
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    # a new learning rate is heeded
    third = make_trainer(tmp_path / "parts", Constant(), resume=True, **(settings | dict(num_train_steps=7, learning_rate=1e-5)))
    third()
    assert third.optimizer.param_groups[0]["lr"] == 1e-5


def interrupt_after(count, function):
    calls = []

    def interrupted(*args):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(args)
        return function(*args)

    return interrupted


def test_resuming_needs_a_checkpoint_and_starting_anew_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*checkpoints holds no checkpoint"):
        make_trainer(tmp_path, Constant(), resume=True)
    make_trainer(tmp_path, Constant())()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds checkpoint.4: resume = True goes on from there"):
        make_trainer(tmp_path, Constant())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_interrupted_save_is_no_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, Constant(), num_train_steps=2, checkpoint_every=1)
    trainer()

    def fail(*args):
        raise OSError("no space left on device")

    trainer.step = 3
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer.save()
    assert newest_checkpoint(tmp_path / "checkpoints").name == "checkpoint.2"
    monkeypatch.undo()
    trainer.save()
    assert names(tmp_path / "checkpoints") == ["checkpoint.1", "checkpoint.2", "checkpoint.3"]


def test_newest_checkpoint_counts_steps(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint.9", "checkpoint.10", "checkpoint.11.partial", "other"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint.10"


def test_a_dataset_smaller_than_a_batch(tmp_path):
    make_trainer(tmp_path, Constant(), torch.rand(3, 1, 4, 4), batch_size=16)()


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path):
    images = torch.rand(8, 1, 4, 4)
    one_step = dict(num_train_steps=1, max_grad_norm=1e9)
    large = make_trainer(tmp_path / "large", Constant(), images, batch_size=8, **one_step)
    parts = make_trainer(
        tmp_path / "parts",
        Constant(),
        images,
        batch_size=2,
        **one_step,
        accelerate_kwargs=dict(cpu=True, gradient_accumulation_steps=4),
    )
    torch.testing.assert_close(gradient_of_a_step(parts), gradient_of_a_step(large))


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
    model = ImageAutoregressiveFlow(image_size=(4, 6), patch_size=2, num_classes=2, model=SMALL)
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
    model = ImageAutoregressiveFlow(image_size=4, patch_size=2, channels=1, num_classes=3, model=SMALL)
    make_trainer(tmp_path, model, images, sample_kwargs=dict(guidance_scale=2.0))()
    loaded = ImageAutoregressiveFlow.from_pretrained(tmp_path / "checkpoints" / "checkpoint.4")
    assert loaded.sample(labels=[0, 1, 2], guidance_scale=2.0).shape == (3, 1, 4, 4)
    picture = Image.open(tmp_path / "results" / "results.4.png")
    assert picture.height == 3 * 50 + 2
    assert picture.width > 2 * 50 + 2  # the names stand beside


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


@pytest.mark.parametrize(
    ("num_classes", "count", "labels", "columns"),
    [
        (3, 6, [0, 0, 1, 1, 2, 2], 2),
        (3, 7, [0, 0, 0, 1, 1, 1, 2, 2, 2], 3),
        (1, 2, [0, 0], 2),
        (10, 4, [0, 2, 5, 7], 1),
    ],
)
def test_labels_of_a_grid(num_classes, count, labels, columns):
    assert labels_by_row(num_classes, count)[0].tolist() == labels
    assert labels_by_row(num_classes, count)[1] == columns


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


SEVERAL_PROCESSES = """
import sys
import torch
from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer

class Recorded(ImageAutoregressiveFlow):
    seen = []
    def forward(self, images, **conditions):
        self.seen += images[:, 0, 0, 0].tolist()
        assert conditions.keys() == {"labels", "cond", "cond_mask"}
        return super().forward(images, **conditions)

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return dict(image=torch.full((1, 4, 4), i / 16), label=i, cond=torch.randn(3, 5), cond_mask=torch.arange(3) < i)

folder = sys.argv[1]
sizes = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_width=16)
model = Recorded(image_size=4, patch_size=2, channels=1, num_classes=16, dim_cond=5, model=sizes)
dataset = Images()
trainer = ImageTrainer(
    model, dataset=dataset, num_train_steps=4, max_minutes=10, batch_size=2, num_samples=1, checkpoint_every=2,
    checkpoints_folder=folder + "/checkpoints", results_folder=folder + "/results",
)
trainer()
rank = trainer.accelerator.process_index
assert trainer.accelerator.num_processes == 2
torch.save(dict(seen=model.seen, weights=model.state_dict()), f"{folder}/{rank}.pt")
"""


def test_two_processes_in_mixed_precision(tmp_path):
    (tmp_path / "script.py").write_text(SEVERAL_PROCESSES)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | dict(ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION="bf16", OMP_NUM_THREADS="1")
    result = subprocess.run([*command, tmp_path / "script.py", tmp_path], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    # each image once, half of them in each process; the same weights in both
    assert sorted(first["seen"] + second["seen"]) == [i / 16 for i in range(16)]
    for name, weight in first["weights"].items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second["weights"][name])
    assert names(tmp_path / "checkpoints") == ["checkpoint.2", "checkpoint.4"]
    assert names(tmp_path / "results") == ["results.4.png"]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_grid_shows_the_images(tmp_path, channels):
    images = torch.zeros(5, channels, 24, 24)
    images[3] = 1.0
    save_image_grid(images, tmp_path / "deep" / "grid.png")
    grid = Image.open(tmp_path / "deep" / "grid.png")
    # enlarged twice, in two rows of three, two pixels between them
    assert grid.size == (3 * 50 + 2, 2 * 50 + 2)
    assert grid.getpixel((25, 77)) == (255, 255, 255)
    assert grid.getpixel((75, 25)) == (0, 0, 0)
    assert names(tmp_path / "deep") == ["grid.png"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_names_stand_beside_the_rows(tmp_path, channels):
    images = torch.full((4, channels, 24, 24), 0.5)
    save_image_grid(images, tmp_path / "grid.png", 2, ["Tulip", "a much longer name"])
    grid = Image.open(tmp_path / "grid.png")
    assert channels in (1, 3) or grid.getchannel("A").getpixel((0, 0)) == 255  # not white on a white page
    grid = grid.convert("RGB")
    margin = grid.width - 2 * 50 - 2
    assert grid.height == 2 * 50 + 2
    assert np.asarray(grid)[2:50, margin + 2 : margin + 50].min() > 120  # the images as they are
    pixels = np.asarray(grid)[:, :margin].max(axis=2)
    assert (pixels > 128).sum() > 20  # letters
    first, second = (np.flatnonzero(rows.max(axis=0) > 128).max() for rows in (pixels[:51], pixels[51:]))
    assert first < second < margin


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_hold_the_images(tmp_path, channels):
    images = torch.rand(2, channels, 5, 7)
    save_image_files(images, tmp_path / "files")
    assert names(tmp_path / "files") == ["00000.png", "00001.png"]
    image = Image.open(tmp_path / "files" / "00001.png")
    assert image.size == (7, 5)
    pixels = torch.tensor(list(image.tobytes())).view(5, 7, channels).permute(2, 0, 1)
    torch.testing.assert_close(pixels / 255, images[1], rtol=0, atol=0.5 / 255 + 1e-6)
