"""Images as tensors, with their labels: those of a folder, or the built-in digits."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes
from torchvision.transforms.functional import hflip, pil_to_tensor

from autoregressive_diffusion_pytorch.checks import as_height_and_width, check_choice

EXTENSIONS = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names of the pixel formats, by number of channels


class DamagedImageError(ValueError):
    """A file with the ending of an image that cannot be read as one."""


class ImageDataset(Dataset):
    """The images of a folder and all folders in it, each as a tensor (c h w) with values in [0, 1], if asked with a label.

    An image is turned upright as its EXIF orientation says, brought to the wanted number of channels, scaled to cover
    `image_size` and cropped around its centre. Transparent parts show white where the channels hold no transparency.

    Args:
        folder: the folder.
        image_size: height and width of the tensors, one number for square ones.
        channels: 1 (grey), 2 (grey and opacity), 3 (RGB) or 4 (RGB and opacity).
        exts: endings of the files to read, in any case.
        labels_from_folders: each folder in `folder` holds a class, and an item is a pair (image, label). As in torchvision's
            `ImageFolder`, `classes` are their names, sorted, `class_to_idx` has the label of each, `targets` that of each image.
        augment_horizontal_flip: mirror each image with probability 1/2, anew each time it is read.
        cache_in_memory: keep each image once it is read and fitted, a byte a pixel and channel, shared with the processes that read
            for a `DataLoader`. The tensors are the same as without.
        skip_damaged: read every file once now, and leave out those that cannot be read, with one warning that lists them.
            Otherwise a damaged file raises a `DamagedImageError`, a ValueError that names it, when its turn comes.

    Raises:
        FileNotFoundError: if the folder is missing.
        NotADirectoryError: if it is a file.
        ValueError: if it holds no image, or with `labels_from_folders` no folder, or a folder without images.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int | tuple[int, int],
        *,
        channels: int = 3,
        exts: Sequence[str] = EXTENSIONS,
        labels_from_folders: bool = False,
        augment_horizontal_flip: bool = False,
        cache_in_memory: bool = False,
        skip_damaged: bool = False,
    ):
        check_choice("channels", channels, MODES)
        self.folder = Path(folder)
        self.image_size = as_height_and_width("image_size", image_size)
        self.channels = channels
        self.augment_horizontal_flip = augment_horizontal_flip

        self.paths = find_images(self.folder, exts)
        self.labels_from_folders = labels_from_folders
        if labels_from_folders:
            self._find_classes()
        if skip_damaged:
            self._leave_out_damaged()
        self._cache = PixelCache((len(self.paths), channels, *self.image_size)) if cache_in_memory else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        path = self.paths[index]
        if self._cache is None:
            image = read_image(path, self.image_size, self.channels)
        else:
            image = self._cache.get(index, lambda: read_pixels(path, self.image_size, self.channels)).float() / 255
        if self.augment_horizontal_flip and torch.rand(()) < 0.5:
            image = hflip(image)
        return (image, self._label_of(path)) if self.labels_from_folders else image

    @property
    def targets(self) -> list[int]:
        """The label of each image, made anew from the files' names."""
        if not self.labels_from_folders:
            raise AttributeError("targets needs labels_from_folders = True, got False")
        return [self._label_of(path) for path in self.paths]

    def _label_of(self, path: Path) -> int:
        return self.class_to_idx[self._class_of(path)]

    def _class_of(self, path: Path) -> str:
        return path.relative_to(self.folder).parts[0]

    def _find_classes(self) -> None:
        if all(path.parent == self.folder for path in self.paths):
            raise ValueError(f"folder {self.folder} holds no folder of images: labels_from_folders = True takes one for each class")
        self.classes, self.class_to_idx = find_classes(self.folder)
        loose = [path for path in self.paths if path.parent == self.folder]
        if loose:
            warnings.warn(f"{len(loose)} images are in no class's folder and left out, such as {loose[0]}", stacklevel=3)
        self.paths = [path for path in self.paths if path.parent != self.folder]
        empty = sorted(set(self.classes) - {self._class_of(path) for path in self.paths})
        if empty:
            raise ValueError(f"folder {self.folder} has classes without images: {', '.join(empty)}")

    def _leave_out_damaged(self) -> None:
        def fault(path: Path) -> str | None:
            try:
                read_image(path, self.image_size, self.channels)
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


class PixelCache:
    """Images of 8 bits (n c h w), each made at its first use. Processes forked from the one that made it share it."""

    def __init__(self, shape: tuple[int, ...]):
        # memory that forked processes share, taken only as it is filled, and not limited as /dev/shm often is in containers
        self.pixels = torch.frombuffer(mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
        self.is_there = torch.frombuffer(mmap(-1, shape[0]), dtype=torch.bool)

    def get(self, index: int, make: Callable[[], Tensor]) -> Tensor:
        """The image; where two processes make it at the same time, both write the same."""
        if not self.is_there[index]:
            self.pixels[index] = make()
            self.is_there[index] = True
        return self.pixels[index]


def find_images(folder: Path, exts: Sequence[str] = EXTENSIONS) -> list[Path]:
    """All files below `folder` with one of the endings, in any case, in the order of their names. Errors as of `ImageDataset`."""
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder {folder} is a file; expected a folder of images")
    suffixes = tuple(f".{ext.lower().lstrip('.')}" for ext in exts)
    paths = list(map(Path, _files(str(folder), suffixes)))
    if not paths:
        raise ValueError(f"folder {folder} holds no image: looked for the endings {', '.join(sorted(set(suffixes)))}")
    return sorted(paths)


def _files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files below a folder with one of the endings. A folder's own listing tells what is a file: no file is looked at."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, suffixes)
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                yield entry.path


def read_image(path: Path, image_size: tuple[int, int], channels: int) -> Tensor:
    """The image of a file as `ImageDataset` gives it: (c h w) with values in [0, 1]. Errors as of `read_pixels`."""
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
            # a JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size; twice the wanted size is enough to scale down from
            image.draft(None, (2 * max(image_size),) * 2)
            return fit_pixels(ImageOps.exif_transpose(image), image_size, channels)
    except Exception as error:  # damaged files raise all kinds of errors in Pillow's decoders
        raise DamagedImageError(f"{path} cannot be read as an image: {error}") from error


def _check_jpeg(data: bytes) -> None:
    """Raises a ValueError where the decoder warns. Pillow passes over its warnings, and gives noise for data that was changed."""
    colorspace = simplejpeg.decode_jpeg_header(data)[2]
    colorspace = "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB" if colorspace == "RGB" else "GRAY"
    simplejpeg.decode_jpeg(data, colorspace, min_height=1, min_width=1, min_factor=8, strict=True)  # at 1/8, the fastest


def fit_image(image: Image.Image, image_size: tuple[int, int], channels: int) -> Tensor:
    """An image of any kind and size as a tensor (c h w) with values in [0, 1]."""
    return fit_pixels(image, image_size, channels).float() / 255


def fit_pixels(image: Image.Image, image_size: tuple[int, int], channels: int) -> Tensor:
    """An image of any kind, scaled to cover the size and cropped around its centre, with 8 bits in each channel (c h w)."""
    height, width = image_size
    image = ImageOps.fit(convert_channels(image, channels), (width, height), method=Image.Resampling.LANCZOS)
    return pil_to_tensor(image)


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


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that come with scikit-learn: images (1797 1 8 8) with values in [0, 1], and labels (1797,).

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
    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target).long()
