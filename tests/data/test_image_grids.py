import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive_diffusion_pytorch.data.image_grids import (
    labels_by_row,
    save_image_files,
    save_image_grid,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
    # not white on a white page
    assert channels in (1, 3) or grid.getchannel("A").getpixel((0, 0)) == 255
    grid = grid.convert("RGB")
    margin = grid.width - 2 * 50 - 2
    assert grid.height == 2 * 50 + 2
    assert np.asarray(grid)[2:50, margin + 2 : margin + 50].min() > 120  # the images as they are
    pixels = np.asarray(grid)[:, :margin].max(axis=2)
    assert (pixels > 128).sum() > 20  # letters
    first, second = (
        np.flatnonzero(rows.max(axis=0) > 128).max() for rows in (pixels[:51], pixels[51:])
    )
    assert first < second < margin


@pytest.mark.parametrize("pair", ["猫犬", "жщ", "λφ", "ねこ", "אב", "🐱🐶"])
def test_names_of_any_script_can_be_told_apart(tmp_path, pair):
    pictures = []
    for name in pair:
        save_image_grid(torch.zeros(1, 3, 16, 16), tmp_path / "grid.png", 1, [name])
        picture = Image.open(tmp_path / "grid.png")
        pictures.append((picture.size, picture.tobytes()))
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_hold_the_images(tmp_path, channels):
    images = torch.rand(2, channels, 5, 7)
    save_image_files(images, tmp_path / "files")
    assert names(tmp_path / "files") == ["00000.png", "00001.png"]
    image = Image.open(tmp_path / "files" / "00001.png")
    assert image.size == (7, 5)
    pixels = torch.tensor(list(image.tobytes())).view(5, 7, channels).permute(2, 0, 1)
    torch.testing.assert_close(pixels / 255, images[1], rtol=0, atol=0.5 / 255 + 1e-6)
