import warnings

import numpy as np
import pytest
from PIL import Image

from autoregressive_diffusion_pytorch.data.image_files import DamagedImageError, read_image


def _mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A file with some of its bytes changed, cut off, taken out or filled in."""
    data = bytearray(data)
    kind = random.integers(4)
    start = int(random.integers(len(data)))
    length = int(random.integers(1, 1 + len(data) // 4))
    if kind == 0:
        del data[start:]
    elif kind == 1:
        for i in random.integers(len(data), size=random.integers(1, 64)):
            data[i] = random.integers(256)
    elif kind == 2:
        del data[start : start + length]
    else:
        data[start:start] = random.bytes(length)
    return bytes(data)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "bmp"])
def test_malformed_files_are_named_or_read_as_pillow_does(tmp_path, ending):
    random = np.random.default_rng(0)
    picture = Image.fromarray(np.linspace(0, 255, 24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3))
    picture.save(tmp_path / f"whole.{ending}")
    original = (tmp_path / f"whole.{ending}").read_bytes()
    path = tmp_path / f"mutated.{ending}"
    faults = []
    for _ in range(40):
        path.write_bytes(_mutated(original, random))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, on odd metadata
            try:
                image = read_image(path, (24, 20), 3)
            except DamagedImageError as error:
                faults.append(str(error))
            else:  # damage that the format itself cannot tell, such as another colour
                with Image.open(path) as opened:
                    opened.load()  # raises nothing
                assert image.shape == (3, 24, 20)
                assert 0 <= image.min() <= image.max() <= 1
    assert faults
    assert all(str(path) in fault for fault in faults)


def test_a_jpeg_whose_data_were_changed_is_named(tmp_path):
    """JPEG has no checksum, yet most changes are no valid code any more: they must not load as
    noise."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(path, quality=90)
    original = path.read_bytes()
    expected = read_image(path, (64, 64), 3)
    noise = 0
    for _ in range(100):
        start = int(random.integers(len(original) // 2, len(original) - 70))
        path.write_bytes(original[:start] + random.bytes(64) + original[start + 64 :])
        try:
            image = read_image(path, (64, 64), 3)
        except DamagedImageError:
            continue
        noise += bool((image - expected).abs().mean() > 0.02)
    assert noise <= 10
