"""Reading and converting single image files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's pixel formats, by number of channels


class DamagedImageError(ValueError):
    """A file with the ending of an image that cannot be read as one."""


def read_image(path: Path, image_size: tuple[int, int], channels: int) -> Tensor:
    """The image of a file, (c h w) with values in [0, 1]. Errors as of `read_pixels`."""
    return read_pixels(path, image_size, channels).float() / 255


def read_pixels(path: Path, image_size: tuple[int, int], channels: int) -> Tensor:
    """The image of a file, fitted, with 8 bits in each channel (c h w).

    Raises:
        DamagedImageError: if the file cannot be read as an image.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO"):
                _check_jpeg(data)
            # a JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size; twice the wanted size is
            # enough to scale down from
            image.draft(None, (2 * max(image_size),) * 2)
            return fit_pixels(ImageOps.exif_transpose(image), image_size, channels)
    except Exception as error:  # damaged files raise all kinds of errors in Pillow's decoders
        raise DamagedImageError(f"{path} cannot be read as an image: {error}") from error


def _check_jpeg(data: bytes) -> None:
    """Raises a ValueError where the decoder warns.

    Pillow ignores its warnings, and gives noise for data that was changed.
    """
    colorspace = simplejpeg.decode_jpeg_header(data)[2]
    colorspace = dict(CMYK="CMYK", YCCK="CMYK", RGB="RGB").get(colorspace, "GRAY")
    fastest = dict(min_height=1, min_width=1, min_factor=8)  # at an eighth of the size
    simplejpeg.decode_jpeg(data, colorspace, **fastest, strict=True)


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
        raise ValueError(f"mode {image.mode} with {found}, above 0 … {top}")
    grey = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:  # a single value of grey
        opacity = np.where(values == transparent / top, 0, 255)
        grey.putalpha(Image.fromarray(opacity.astype(np.uint8)))
    return grey
