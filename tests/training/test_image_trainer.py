import random

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import SIZES, Augmented, Constant, make_trainer, names, small_model
from torch.utils.data import DataLoader, TensorDataset

from autoregressive_diffusion_pytorch import (
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
    ImageDataset,
)
from autoregressive_diffusion_pytorch.training import image_trainer
from autoregressive_diffusion_pytorch.utils.rng import seed_process


@pytest.mark.parametrize("model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow])
def test_writes_grids_and_checkpoints_that_load(model_class, tmp_path):
    trainer = make_trainer(
        tmp_path,
        small_model(model_class),
        num_train_steps=5,
        save_results_every=2,
        checkpoint_every=3,
    )
    trainer()
    assert names(tmp_path / "results") == ["results.2.png", "results.4.png", "results.5.png"]
    assert names(tmp_path / "checkpoints") == ["checkpoint.3", "checkpoint.5"]
    files = [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "online.safetensors",
        "training.pt",
    ]
    assert names(tmp_path / "checkpoints" / "checkpoint.5") == files

    loaded = model_class.from_pretrained(tmp_path / "checkpoints" / "checkpoint.5")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.ema.ema_model.state_dict()[name])


def test_samples_are_of_the_averaged_weights_with_the_same_seed(tmp_path):
    # an average that stays
    trainer = make_trainer(
        tmp_path, num_train_steps=2, save_results_every=1, ema_kwargs=dict(beta=1.0)
    )
    trainer()
    first, second = (
        Image.open(tmp_path / "results" / f"results.{step}.png").tobytes() for step in (1, 2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("mixed", "own", "expected"),
    [("no", {}, None), ("bf16", {}, "bf16"), ("bf16", dict(precision="no"), "no")],
)
def test_grids_are_drawn_in_the_precision_of_the_training(
    tmp_path, monkeypatch, mixed, own, expected
):
    seen, sample = [], ImageAutoregressiveFlow.sample

    def record(model, *args, **kwargs):
        seen.append((kwargs.get("precision"), next(model.parameters()).dtype))
        return sample(model, *args, **kwargs)

    monkeypatch.setattr(ImageAutoregressiveFlow, "sample", record)
    trainer = make_trainer(
        tmp_path,
        num_train_steps=1,
        sample_kwargs=own,
        accelerate_kwargs=dict(cpu=True, mixed_precision=mixed),
    )
    trainer()
    assert seen == [(expected, torch.float32)]
    # a model of one's own need not know of precisions
    make_trainer(
        tmp_path / "own",
        Constant(),
        num_train_steps=1,
        accelerate_kwargs=dict(cpu=True, mixed_precision=mixed),
    )()


def test_a_dataset_of_other_things_than_images(tmp_path):
    with pytest.raises(TypeError, match=r"dataset must give images .* got an item of type str"):
        make_trainer(tmp_path / "a", Constant(), ["image"] * 8)()
    images = torch.rand(8, 1, 4, 4)
    for i, (dataset, message) in enumerate(
        (
            (Endless(), "got a Endless"),
            (DataLoader(images), "got a DataLoader: give its dataset"),
            (dict(train=images), "got a dict with the keys 'train'"),
            ("photos", "got a str: ImageDataset reads"),
        )
    ):
        expected = f"dataset must have a length and give items by their index, {message}"
        with pytest.raises(TypeError, match=expected):
            make_trainer(tmp_path / f"b{i}", Constant(), dataset)
        with pytest.raises(TypeError, match=f"validation_{expected}"):
            make_trainer(tmp_path / f"v{i}", Constant(), images, validation_dataset=dataset)
    with pytest.raises(
        ValueError,
        match="labels are given to a model without classes: num_classes makes one with them",
    ):
        make_trainer(
            tmp_path / "c", images=TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8))
        )()
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


def layout_of(trainer):
    grids = trainer.samples
    return grids.conditions(trainer), grids.columns, grids.row_names


def test_labels_come_to_the_model_and_a_row_a_class_to_the_grids(tmp_path, monkeypatch):
    grids = []
    monkeypatch.setattr(
        image_trainer,
        "save_image_grid",
        lambda images, path, *layout: grids.append((len(images), *layout)),
    )
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    trained, sampled = listen(
        make_trainer(
            tmp_path, Listener(num_classes=3), TensorDataset(images, labels), num_samples=5
        )
    )
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
    monkeypatch.setattr(
        image_trainer, "save_image_grid", lambda images, path, *layout: grids.append(layout)
    )
    listen(make_trainer(tmp_path, Listener(num_classes=2), dataset))
    assert grids == [(2, ["rose", "tulip"])]


def test_names_that_do_not_fit_the_classes_are_not_used(tmp_path):
    dataset = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    dataset.classes = ["rose", "tulip"]
    assert layout_of(make_trainer(tmp_path, Listener(num_classes=3), dataset))[2] == ["0", "1", "2"]


def test_a_hugging_face_dataset_trains_as_it_is(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["rose", "tulip"])
    )
    pictures = [Image.new("RGB", (9, 6 + i), (30 * i, 0, 0)) for i in range(4)]
    dataset = datasets.Dataset.from_dict(
        dict(image=pictures, label=[0, 1, 1, 0]), features=features
    )
    grids = []
    monkeypatch.setattr(
        image_trainer,
        "save_image_grid",
        lambda images, path, *layout: grids.append((images.shape, *layout)),
    )
    model = ImageAutoregressiveFlow(image_size=(4, 6), patch_size=2, num_classes=2, model=SIZES)
    make_trainer(tmp_path, model, dataset)()
    # as tensors, which it gives with 8 bits
    dataset = datasets.Dataset.from_dict(
        dict(image=[Image.new("RGB", (6, 4))] * 4, label=[0, 1, 1, 0]), features=features
    )
    make_trainer(tmp_path / "tensors", model, dataset.with_format("torch"))()
    assert grids == [((4, 3, 4, 6), 2, ["rose", "tulip"])] * 2


def test_vectors_come_to_the_model_and_those_of_the_first_items_to_the_grids(tmp_path):
    class Captioned(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            vectors = torch.full((3, 5), float(index))
            return dict(
                image=torch.rand(1, 4, 4),
                cond=vectors,
                cond_mask=torch.arange(3) <= index,
                label=index % 2,
            )

    trained, (sample,) = listen(
        make_trainer(tmp_path, Listener(num_classes=2), Captioned(), num_samples=4)
    )
    assert {name: tuple(given.shape) for name, given in trained[0].items()} == dict(
        images=(2, 1, 4, 4), labels=(2,), cond=(2, 3, 5), cond_mask=(2, 3)
    )
    assert sample["batch_size"] == 4
    assert sample["cond"][:, 0, 0].tolist() == [0, 1, 2, 3]
    assert sample["labels"].tolist() == [0, 1, 0, 1]
    assert sample["cond_mask"].sum(dim=1).tolist() == [1, 2, 3, 3]

    own = dict(cond=torch.zeros(4, 5))
    _, (sample,) = listen(
        make_trainer(tmp_path / "own", Listener(), Captioned(), num_samples=4, sample_kwargs=own)
    )
    assert sample.keys() == {"batch_size", "cond"}
    assert sample["cond"] is own["cond"]


def test_a_conditional_model_trains_draws_and_loads(tmp_path):
    images = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    model = ImageAutoregressiveFlow(
        image_size=4, patch_size=2, channels=1, num_classes=3, model=SIZES
    )
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
            cond=torch.nn.utils.rnn.pad_sequence(
                [item["cond"] for item in items], batch_first=True
            ),
            cond_mask=torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1),
        )

    seen = []
    for i in (1, 2):
        torch.manual_seed(i)
        trainer = make_trainer(
            tmp_path / str(i), Listener(), Captions(), dataloader_kwargs=dict(collate_fn=pad)
        )
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
    assert layout_of(trainer)[1:] == (2, ["0", "1", "2"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_grid_costs_that_grid_alone(tmp_path, caplog):
    class Faltering(Constant):
        def sample(self, batch_size, generator):
            if trainer.step == 2:
                raise RuntimeError("out of memory")
            return super().sample(batch_size, generator)

    trainer = make_trainer(tmp_path, Faltering(), save_results_every=1)
    trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.4"]
    assert names(tmp_path / "results") == [f"results.{step}.png" for step in (1, 3, 4)]
    assert [record.getMessage() for record in caplog.records] == [
        "the grid of step 2 failed, the training goes on without: RuntimeError: out of memory"
    ]


def test_a_grid_that_cannot_be_written_costs_that_grid_alone(tmp_path, caplog, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(tmp_path, Constant())
    monkeypatch.setattr(image_trainer, "save_image_grid", fail)
    trainer()
    assert names(tmp_path / "checkpoints") == ["checkpoint.4"]
    assert "the grid of step 4 failed, the training goes on without: [Errno 28]" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        trainer.save_results()
    # and it is made up for
    monkeypatch.undo()
    make_trainer(tmp_path, Constant(), resume=True)()
    assert names(tmp_path / "results") == ["results.4.png"]


@pytest.mark.parametrize(
    ("sample_kwargs", "error", "message"),
    [
        (dict(num_step=4), TypeError, "an unexpected argument 'num_step': did you mean 'num_step"),
        (dict(num_steps=0), ValueError, "num_steps must be"),
        (dict(solver="eulr"), ValueError, "solver must be one of"),
        (dict(guidance_scale=2.0), ValueError, "guidance_scale other than 1 needs a model"),
        (dict(labels=[0]), ValueError, "labels are given to a model without classes"),
    ],
)
def test_arguments_of_the_grids_are_tried_at_the_start(tmp_path, sample_kwargs, error, message):
    with pytest.raises(error, match=f"sample_kwargs do not fit the model: .*{message}"):
        make_trainer(tmp_path, sample_kwargs=sample_kwargs)


def test_what_makes_no_grid_and_no_batch_is_told_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="sample_kwargs must not hold 'batch_size': num_samples"):
        make_trainer(tmp_path, sample_kwargs=dict(batch_size=3))
    images = [*torch.rand(3, 1, 4, 4), torch.rand(1, 5, 5)]
    with pytest.raises(ValueError, match=r"dataset gives images that make no batch: .*equal size"):
        make_trainer(tmp_path, images=images)


class Silent(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, images):
        return self.weight.sum()


def test_a_model_that_draws_nothing_is_refused_at_the_start(tmp_path):
    with pytest.raises(TypeError, match=r"model must have sample\(batch_size=…, generator=…\)"):
        make_trainer(tmp_path, Silent())
    with pytest.raises(
        TypeError, match=r"sample_kwargs do not fit .*unexpected keyword argument 'temperature'"
    ):
        make_trainer(tmp_path, Constant(), sample_kwargs=dict(temperature=1.0))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (torch.rand(4, 1, 5, 5), r"validation_dataset does not fit the model: images must be of"),
        (torch.rand(4, 3, 4, 4), r"validation_dataset does not fit the model: images must be of"),
        (torch.rand(4, 1, 4, 4), r"validation_dataset does not fit the model: labels are missing"),
        (
            [(torch.rand(1, 4, 4), 5)],
            r"validation_dataset does not fit .* labels must be from 0 to",
        ),
    ],
)
def test_images_to_validate_on_are_tried_at_the_start(tmp_path, validation, message):
    labelled = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    model = small_model(num_classes=3)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model, labelled, validation_dataset=validation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, "got 0 to 255: divide 8-bit values by 255"),
        (lambda x: x * 2 - 1, r"got -1 to 1: leave out Normalize\(0.5, 0.5\)"),
    ],
)
@pytest.mark.parametrize("which", ["dataset", "validation_dataset"])
def test_the_range_of_each_dataset_is_tried_at_the_start(tmp_path, change, message, which):
    images = torch.rand(4, 1, 4, 4)
    images[:, 0, 0, :2] = torch.tensor([0.0, 1.0])
    given = dict(dataset=images, validation_dataset=images) | {which: change(images)}
    with pytest.raises(ValueError, match=message) as raised:
        make_trainer(tmp_path, None, given.pop("dataset"), **given)
    if which == "validation_dataset":
        assert str(raised.value).startswith("validation_dataset does not fit the model: images")
    # a model of one's own may have another range
    make_trainer(tmp_path / "own", Constant(), images, validation_dataset=change(images))


@pytest.mark.parametrize("name", ["checkpoints_folder", "results_folder", "logs_folder"])
def test_folders_are_tried_at_the_start(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"{name} .*file/x cannot be written: .*file is a file"):
        make_trainer(tmp_path / "run", Constant(), **{name: tmp_path / "file" / "x"})


def test_trying_changes_no_random_number(tmp_path):
    model, dataset = small_model(num_classes=3), Augmented()
    drawn = []
    for make in (False, True):
        seed_process(7, rank=0)
        if make:
            make_trainer(tmp_path, model, dataset, validation_dataset=dataset)
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
