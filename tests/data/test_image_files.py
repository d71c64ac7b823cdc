import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from autoregressive_diffusion_pytorch.data.image_files import (
    DamagedImageError,
    read_image,
    read_pixels,
)


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


def jpeg(**options):
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("stray", [1, 3, 65])
def test_a_whole_jpeg_is_read_whatever_its_decoder_remarks(tmp_path, stray):
    whole = jpeg()
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "stray.jpg").write_bytes(whole[:-2] + b"\x12" * stray + whole[-2:])
    expected = read_image(tmp_path / "whole.jpg", (32, 32), 3)
    assert torch.equal(read_image(tmp_path / "stray.jpg", (32, 32), 3), expected)


@pytest.mark.parametrize("kind", ["zipped", "many", "international", "profile"])
def test_a_png_with_large_metadata_is_read(tmp_path, kind):
    info, options = PngImagePlugin.PngInfo(), {}
    if kind == "zipped":
        info.add_text("workflow", "x" * 1_200_000, zip=True)
    elif kind == "international":
        info.add_itxt("workflow", "x" * 1_200_000, zip=True)
    elif kind == "many":
        for i in range(70):
            info.add_text(f"part {i}", "x" * 1_000_000, zip=True)
    else:
        options = dict(icc_profile=b"x" * 1_200_000)
    Image.new("RGB", (9, 9), (255, 0, 51)).save(tmp_path / "a.png", pnginfo=info, **options)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    image = read_image(tmp_path / "a.png", (4, 4), 3)
    assert torch.allclose(image, torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 4, 4))
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_png_is_turned_as_its_texts_say(tmp_path):
    picture = Image.new("L", (2, 1))
    picture.putpixel((1, 0), 255)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    picture.save(tmp_path / "a.png", pnginfo=info)
    assert read_image(tmp_path / "a.png", (2, 1), 1).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_broken_metadata_leave_a_whole_picture(tmp_path, ending):
    options = {} if ending == "tif" else dict(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffnonsense")
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / f"a.{ending}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = read_image(tmp_path / f"a.{ending}", (4, 4), 3)
    torch.testing.assert_close(image[0], torch.ones(4, 4), rtol=0, atol=0.02)


def test_pictures_above_the_limit_of_pillow_are_read(tmp_path, monkeypatch):
    for ending in ("png", "jpg", "webp", "gif", "tif"):
        Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / f"a.{ending}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for path in tmp_path.iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(path, (4, 4), 3).min() > 0.98
        for limit in (1599, 700):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(DamagedImageError, match="more pixels than the") as caught:
                    read_pixels(path, (4, 4), 3, limit)
            assert caught.value.kind == "too large"
    assert Image.MAX_IMAGE_PIXELS == 100


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("content", "message", "kind"),
    [
        (b"", "is empty", "empty"),
        (b"\0" * 1000, "is damaged: it holds zeros alone", "damaged"),
        (b"\n<!DOCTYPE html><html><body>404", "is an HTML page, not an image", "no image"),
        (b"\xef\xbb\xbf<HTML>", "is an HTML page, not an image", "no image"),
        (b'<?xml version="1.0"?><Error/>', "is an XML file, not an image", "no image"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg>', "is an SVG drawing", "no image"),
        (b'{"error": "not found"}', "is a text file, not an image", "no image"),
        ("schöne Blumen".encode("latin-1"), "is a text file, not an image", "no image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", "no image"),
        (b"%PDF-1.7\n\0", "is a PDF document, not an image", "no image"),
        (b"\0\5\x16\7" + b"\0" * 99, "holds metadata of macOS, not an image", "no image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image: `pip install pillow-heif`", "no image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a film", "no image"),
        (bytes(range(256)), "is not an image of a format that Pillow reads", "no image"),
        (cut(jpeg()), "is cut off", "damaged"),
        (cut(jpeg(progressive=True)), "is cut off", "damaged"),
        (jpeg()[:20], "is damaged: its header cannot be read", "damaged"),
    ],
)
def test_messages_speak_of_the_file(tmp_path, content, message, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedImageError) as caught:
        read_image(path, (4, 4), 3)
    fault = str(caught.value)
    assert fault.startswith(f"{path} ")
    assert message in fault
    assert "object at 0x" not in fault
    assert "\n" not in fault
    assert caught.value.kind == kind


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "bmp", "gif"])
def test_a_file_that_is_cut_off_says_so(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.effect_noise((64, 64), 99).save(path)
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(DamagedImageError, match=f"a.{ending} is cut off"):
        read_image(path, (4, 4), 3)


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(DamagedImageError, match=r"a\.jpg cannot be opened: no such file"):
        read_image(tmp_path / "a.jpg", (4, 4), 3)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DamagedImageError, match="cannot be opened: permission denied") as caught:
        read_image(tmp_path / "a.jpg", (4, 4), 3)
    assert caught.value.kind == "cannot be opened"
    assert pickle.loads(pickle.dumps(caught.value)).kind == "cannot be opened"


def test_values_out_of_range_are_told(tmp_path):
    Image.fromarray(np.full((4, 4), 300, dtype=np.float32)).save(tmp_path / "a.tif")
    message = "a.tif holds values from 300 to 300 in mode F, expected 0 … 1"
    with pytest.raises(DamagedImageError, match=message):
        read_image(tmp_path / "a.tif", (4, 4), 1)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("L", (4, 4), grey) for grey in (255, 0)]
    for ending in ("gif", "png", "webp"):
        path = tmp_path / f"a.{ending}"
        options = dict(lossless=True) if ending == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert read_image(path, (4, 4), 1).min() == 1
