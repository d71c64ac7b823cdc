"""Reading and converting single image files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from .image_faults import (
    EMPTY,
    DamagedImageError,
    ValueRangeError,
    fault_of_content,
    fault_of_opening,
    fault_of_size,
)
from .image_formats import readable_endings

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's pixel formats, by number of channels
MAX_PIXELS = 500_000_000  # 1.5 GB of RGB while an image is decoded
# what brings the picture of each EXIF orientation upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# chunks of a PNG file that Pillow reads to a limit only: colour profile and texts
PNG_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
PNG_ORIENTATION = (b"XML:com.adobe.xmp\0\0", b"Raw profile type exif\0")


def read_image(path: Path, image_size: tuple[int, int], channels: int) -> Tensor:
    """The image of a file, (c h w) with values in [0, 1]. Errors as of `read_pixels`."""
    return read_pixels(path, image_size, channels).float() / 255


def read_pixels(
    path: Path, image_size: tuple[int, int], channels: int, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """The image of a file, fitted, with 8 bits in each channel (c h w).

    Raises:
        DamagedImageError: if the file cannot be read as an image, or has more pixels than
            `max_pixels`.
    """
    with decoded(path, read_file(path), max_pixels, 2 * max(image_size)) as image:
        return fit_pixels(_upright(image), image_size, channels)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises a DamagedImageError if it has none, or cannot be opened."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise fault_of_opening(path, error) from error
    if not data:
        raise DamagedImageError(f"{path} is empty", EMPTY)
    return data


@contextmanager
def decoded(
    path: Path, data: bytes, max_pixels: int = MAX_PIXELS, needed: int | None = None
) -> Iterator[Image.Image]:
    """The picture that a file's bytes hold, the first one of several, for use within the context.

    A picture that decodes whole is read, whatever its decoder remarks.

    Args:
        needed: height and width that are enough: a JPEG decodes much faster at 1/2, 1/4 or 1/8 of
            its size.

    Raises:
        DamagedImageError: as of `read_pixels`, also for what is raised within the context.
    """
    readable_endings()  # registers plugins
    if data.startswith(b"\x89PNG"):
        data = _without_texts(data)
    try:
        with _opened(data, max_pixels, needed) as image:
            image.load()
            yield image
    except DamagedImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise fault_of_size(path, max_pixels) from error
    except UnidentifiedImageError as error:  # its message tells an address in memory
        raise fault_of_content(path, data, None) from error
    except Exception as error:  # damaged files raise all kinds of errors in Pillow's decoders
        raise fault_of_content(path, data, error) from error


_limit_lock = Lock()
if hasattr(os, "register_at_fork"):  # a child may begin while another thread holds the lock
    os.register_at_fork(after_in_child=_limit_lock._at_fork_reinit)


def _opened(data: bytes, max_pixels: int, needed: int | None) -> Image.Image:
    """The picture with its header read, or decoded if Pillow's limit does not let it pass.

    That limit is a global of Pillow: it is raised for one thread at a time.
    """
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            image = Image.open(io.BytesIO(data))
            pixels = image.width * image.height
            if pixels > max_pixels:  # up to twice the limit Pillow only warns
                raise Image.DecompressionBombError
            if needed is not None:
                image.draft(None, (needed, needed))
            if limit is not None and pixels > limit:
                image.load()  # TIFF is held to the limit again
            return image
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _without_texts(data: bytes) -> bytes:
    """A PNG file without texts and colour profile, but for those that tell the orientation."""
    parts, start, position = [], 0, 8
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        is_text = data[position + 4 : position + 8] in PNG_TEXTS
        if is_text and not data.startswith(PNG_ORIENTATION, position + 8):
            parts.append(data[start:position])
            start = end
        position = end
    return b"".join((*parts, data[start:]))


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is if that cannot be read."""
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # of broken metadata, beside a picture that is whole
        return image
    return image if turn is None else image.transpose(turn)


def fit_image(image: Image.Image, image_size: tuple[int, int], channels: int) -> Tensor:
    """An image of any kind and size as a tensor (c h w) with values in [0, 1]."""
    return fit_pixels(image, image_size, channels).float() / 255


def fit_pixels(image: Image.Image, image_size: tuple[int, int], channels: int) -> Tensor:
    """An image of any kind, scaled to cover the size and cropped: 8 bits, (c h w)."""
    height, width = image_size
    image = convert_channels(image, channels)
    return pil_to_tensor(ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS))


def convert_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of any kind that Pillow reads, with 8 bits in each of `channels`."""
    image = _to_8_bit(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA" and channels in (1, 3):
        # merely dropping the opacity would show whatever colour lies hidden under transparent parts
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert(MODES[channels])


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits or floats, scaled to 8 bits: Pillow would clip them at 255."""
    if image.mode.startswith("I"):
        top = 65535
    elif image.mode == "F":
        top = 1
    else:
        return image
    values = np.asarray(image, dtype=np.float64) / top
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        found = f"values from {low * top:g} to {high * top:g}"
        raise ValueRangeError(f"{found} in mode {image.mode}, expected 0 … {top}")
    grey = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:  # a single value of grey
        opacity = np.where(values == transparent / top, 0, 255)
        grey.putalpha(Image.fromarray(opacity.astype(np.uint8)))
    return grey
