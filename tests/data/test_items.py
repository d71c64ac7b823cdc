import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from autoregressive_diffusion_pytorch import ImageDataset
from autoregressive_diffusion_pytorch.data.items import TrainingItems

TENSOR = torch.rand(3, 4, 6)


PICTURE = Image.new("RGBA", (12, 9), (255, 0, 0, 255))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (TENSOR, dict(images=TENSOR)),
        ((TENSOR,), dict(images=TENSOR)),
        ((TENSOR, 2), dict(images=TENSOR, labels=2)),
        ([TENSOR, 2], dict(images=TENSOR, labels=2)),
        (dict(image=TENSOR, label=2, id="a"), dict(images=TENSOR, labels=2)),
        (dict(images=TENSOR, labels=2), dict(images=TENSOR, labels=2)),
        (dict(img=TENSOR), dict(images=TENSOR)),
        (
            dict(pixel_values=TENSOR, cond=TENSOR[0], cond_mask=None),
            dict(images=TENSOR, cond=TENSOR[0]),
        ),
        (
            (torch.full((3, 4, 6), 255, dtype=torch.uint8), 0),
            dict(images=torch.ones(3, 4, 6), labels=0),
        ),
        (PICTURE, dict(images=torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 6))),
        (
            dict(image=PICTURE, label=1),
            dict(images=torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 6), labels=1),
        ),
    ],
)
def test_items_of_many_kinds(item, expected):
    items = TrainingItems([item], (4, 6), 3)
    assert len(items) == 1
    assert items[0].keys() == expected.keys()
    for name, part in expected.items():
        assert (
            torch.equal(items[0][name], part)
            if isinstance(part, torch.Tensor)
            else items[0][name] == part
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_have_their_channels_first_or_last(dtype):
    top = 255 if dtype == np.uint8 else 1
    array = (top * np.random.rand(5, 6, 3)).astype(dtype)
    expected = torch.from_numpy(array).float().permute(2, 0, 1) / top
    for image in (array, array.transpose(2, 0, 1), array[::-1][::-1]):
        for items in (TrainingItems([image], (5, 6), 3), TrainingItems([dict(image=image)])):
            found = items[0]["images"]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)
    grey = TrainingItems(array[..., :1].transpose(2, 0, 1), (5, 6), 1)[0]["images"]
    torch.testing.assert_close(grey, expected[:1])
    # the size of the model decides where both axes could be the channels
    thin = TrainingItems([array.transpose(2, 0, 1)[:, :, :3]], (5, 3), 3)
    torch.testing.assert_close(thin[0]["images"], expected[..., :3])
    with pytest.raises(ValueError, match="whose axis of 1 to 4 channels cannot be told"):
        TrainingItems([array[:4, :4]])[0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a.png", "got an item of type str"),
        ((TENSOR, 1, 2), "got a tuple of 3"),
        (dict(photo=TENSOR, label=1), "got an item with the keys 'photo', 'label'"),
        (dict(image=[TENSOR]), "got an item of type list as an image"),
        ((np.zeros(3), 1), "got an array \\(3,\\) of float64"),
        (np.zeros((4, 6, 3), dtype=np.int64), "got an array \\(4, 6, 3\\) of int64"),
    ],
)
def test_items_that_hold_no_image(item, message):
    with pytest.raises(TypeError, match=f"dataset must give images .*{message}"):
        TrainingItems([item], (4, 6), 3)[0]


def test_a_picture_needs_a_size_to_be_brought_to():
    with pytest.raises(TypeError, match="got an item of type Image"):
        TrainingItems([PICTURE])[0]


def test_sizes_of_models_of_all_kinds():
    assert TrainingItems([PICTURE], 4, 3)[0]["images"].shape == (3, 4, 4)
    with pytest.raises(TypeError, match="got an item of type Image"):
        TrainingItems([PICTURE], 4)[0]


def test_vectors_that_are_lists():
    item = TrainingItems([dict(image=TENSOR, cond=[[0.5, 1.0]], cond_mask=[True])])[0]
    assert item["cond"].tolist() == [[0.5, 1.0]]
    assert item["cond_mask"].dtype == torch.bool
    with pytest.raises(
        TypeError, match="labels must be a tensor, or numbers that make one, got 'rose'"
    ):
        TrainingItems([(TENSOR, "rose")])[0]


class Attributed(list):
    """A dataset with attributes that only look like those of others."""


@pytest.mark.parametrize(
    "attributes", [dict(features=torch.randn(3)), dict(classes=2), dict(features={}, classes=None)]
)
def test_other_attributes_are_no_names_of_classes(attributes):
    dataset = Attributed([TENSOR])
    vars(dataset).update(attributes)
    assert TrainingItems(dataset).classes is None


def test_names_of_the_classes(class_folders):
    assert TrainingItems([TENSOR]).classes is None
    assert TrainingItems(ImageFolder(class_folders)).classes == ["rose", "tulip"]
    assert TrainingItems(ImageDataset(class_folders, 8, labels_from_folders=True)).classes == [
        "rose",
        "tulip",
    ]
    assert TrainingItems(ImageDataset(class_folders, 8)).classes is None


def test_names_of_the_classes_of_a_part():
    dataset = Attributed([TENSOR] * 3)
    dataset.classes = ["rose", "tulip"]
    part = Subset(Subset(dataset, [0, 1]), [1])
    assert TrainingItems(part).classes == ["rose", "tulip"]
