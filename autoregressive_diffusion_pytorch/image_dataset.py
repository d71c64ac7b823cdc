"""Images as tensors: a folder of them, or the built-in digits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import hflip, pil_to_tensor

from autoregressive_diffusion_pytorch.checks import as_height_and_width, check_choice

EXTENSIONS = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names of the pixel formats, by number of channels


class DamagedImageError(ValueError):
    """A file with the ending of an image that cannot be read as one."""


class ImageDataset(Dataset):
    """The images of a folder and all folders in it, each as a tensor (c h w) with values in [0, 1].

    An image is turned upright as its EXIF orientation says, brought to the wanted number of channels, scaled to cover
    `image_size` and cropped around its centre. Transparent parts show white where the channels hold no transparency.

    Args:
        folder: the folder.
        image_size: height and width of the tensors, one number for square ones.
        channels: 1 (grey), 2 (grey and opacity), 3 (RGB) or 4 (RGB and opacity).
        exts: endings of the files to read, in any case.
        augment_horizontal_flip: mirror each image with probability 1/2, anew each time it is read.
        skip_damaged: read every file once now, and leave out those that cannot be read, with one warning that lists them.
            Otherwise a damaged file raises a `DamagedImageError`, a ValueError that names it, when its turn comes.

    Raises:
        FileNotFoundError: if the folder is missing.
        NotADirectoryError: if it is a file.
        ValueError: if it holds no image.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int | tuple[int, int],
        *,
        channels: int = 3,
        exts: Sequence[str] = EXTENSIONS,
        augment_horizontal_flip: bool = False,
        skip_damaged: bool = False,
    ):
        check_choice("channels", channels, MODES)
        self.folder = Path(folder)
        self.image_size = as_height_and_width("image_size", image_size)
        self.channels = channels
        self.augment_horizontal_flip = augment_horizontal_flip

        self.paths = find_images(self.folder, exts)
        if skip_damaged:
            self._leave_out_damaged()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = pil_to_tensor(self._read(self.paths[index])).float() / 255
        if self.augment_horizontal_flip and torch.rand(()) < 0.5:
            image = hflip(image)
        return image

    def _read(self, path: Path) -> Image.Image:
        try:
            with Image.open(path) as image:
                # a JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size; twice the wanted size is enough to scale down from
                image.draft(None, (2 * max(self.image_size),) * 2)
                image = convert_channels(ImageOps.exif_transpose(image), self.channels)
        except Exception as error:  # damaged files raise all kinds of errors in Pillow's decoders
            raise DamagedImageError(f"{path} cannot be read as an image: {error}") from error
        height, width = self.image_size
        return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)

    def _leave_out_damaged(self) -> None:
        def fault(path: Path) -> str | None:
            try:
                self._read(path)
            except DamagedImageError as error:
                return str(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(pool.map(fault, self.paths))
        damaged = [error for error in faults if error is not None]
        if len(damaged) == len(self.paths):
            raise ValueError(f"{self.folder}: none of its {len(damaged)} image files can be read; the first: {damaged[0]}")
        if damaged:
            listing = "\n  ".join(damaged)
            warnings.warn(f"{len(damaged)} of {len(self.paths)} image files are left out:\n  {listing}", stacklevel=3)
        self.paths = [path for path, error in zip(self.paths, faults, strict=True) if error is None]


def find_images(folder: Path, exts: Sequence[str] = EXTENSIONS) -> list[Path]:
    """All files below `folder` with one of the endings, in any case, in the order of their names. Errors as of `ImageDataset`."""
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder {folder} is a file; expected a folder of images")
    suffixes = {f".{ext.lower().lstrip('.')}" for ext in exts}
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    if not paths:
        raise ValueError(f"folder {folder} holds no image: looked for the endings {', '.join(sorted(suffixes))}")
    return sorted(paths)


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
    """Grey images of 16 bits or floating point brought to 8 bits by scale: Pillow's own conversion cuts them off at 255."""
    if image.mode.startswith("I"):
        top = 65535
    elif image.mode == "F":
        top = 1
    else:
        return image
    values = np.asarray(image, dtype=np.float64) / top
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"mode {image.mode} with values from {values.min() * top:g} to {values.max() * top:g}, above 0 … {top}")
    grey = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:  # a single value of grey
        grey.putalpha(Image.fromarray(np.where(values == transparent / top, 0, 255).astype(np.uint8)))
    return grey


def digits() -> Tensor:
    """The 1,797 handwritten digits that come with scikit-learn, as a tensor (1797 1 8 8) with values in [0, 1].

    The test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin & Kaynak 1998): 17 levels of grey.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed: pip install 'autoregressive-diffusion-pytorch[demo]'"
        ) from error
    return torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
