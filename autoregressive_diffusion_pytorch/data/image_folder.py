"""Images in a folder as tensors, with labels by folder."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes
from torchvision.transforms.functional import hflip

from ..utils.validation import as_height_and_width, check_choice
from .image_files import MODES, DamagedImageError, read_pixels

EXTENSIONS = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp")


class ImageDataset(Dataset):
    """The images of a folder and its subfolders: tensors (c h w) in [0, 1], labels if asked.

    An image is turned upright as its EXIF orientation says, brought to the wanted number of
    channels, scaled to cover `image_size` and cropped around its centre. Transparent parts show
    white where the channels hold no transparency.

    Args:
        folder: the folder.
        image_size: height and width of the tensors, one number for square ones.
        channels: 1 (grey), 2 (grey and opacity), 3 (RGB) or 4 (RGB and opacity).
        exts: endings of the files to read, in any case.
        labels_from_folders: each folder in `folder` holds a class, and an item is a pair (image,
            label). As in torchvision's `ImageFolder`, `classes` are their names, sorted,
            `class_to_idx` has the label of each, `targets` that of each image.
        augment_horizontal_flip: mirror each image with probability 1/2, anew each time it is read.
        cache_in_memory: keep each image once it is read and fitted, one byte per pixel and channel,
            shared with the processes that read for a `DataLoader`. The tensors are the same as
            without.
        skip_damaged: read every file once now, and leave out those that cannot be read, with one
            warning that lists them. Otherwise a damaged file raises a `DamagedImageError`, a
            ValueError that names it, when its turn comes.

    Raises:
        FileNotFoundError: if the folder is missing.
        NotADirectoryError: if it is a file.
        ValueError: if it holds no image, or with `labels_from_folders` no folder, or a folder
            without images.
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
        shape = (len(self.paths), channels, *self.image_size)
        self._cache = PixelCache(shape) if cache_in_memory else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        path = self.paths[index]

        def read() -> Tensor:
            return read_pixels(path, self.image_size, self.channels)

        pixels = read() if self._cache is None else self._cache.get(index, read)
        image = pixels.float() / 255
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
            how = "labels_from_folders = True takes one for each class"
            raise ValueError(f"folder {self.folder} holds no folder of images: {how}")
        self.classes, self.class_to_idx = find_classes(self.folder)
        loose = [path for path in self.paths if path.parent == self.folder]
        if loose:
            warnings.warn(
                f"{len(loose)} images are in no class's folder and left out, such as {loose[0]}",
                stacklevel=3,
            )
        self.paths = [path for path in self.paths if path.parent != self.folder]
        empty = sorted(set(self.classes) - {self._class_of(path) for path in self.paths})
        if empty:
            raise ValueError(f"folder {self.folder} has classes without images: {', '.join(empty)}")

    def _leave_out_damaged(self) -> None:
        def fault(path: Path) -> str | None:
            try:
                read_pixels(path, self.image_size, self.channels)
            except DamagedImageError as error:
                return str(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(pool.map(fault, self.paths))
        damaged = [error for error in faults if error is not None]
        if len(damaged) == len(self.paths):
            what = f"none of its {len(damaged)} image files can be read"
            raise ValueError(f"{self.folder}: {what}; the first: {damaged[0]}")
        if damaged:
            listing = "\n  ".join(damaged)
            warnings.warn(
                f"{len(damaged)} of {len(self.paths)} image files are left out:\n  {listing}",
                stacklevel=3,
            )
        self.paths = [path for path, error in zip(self.paths, faults, strict=True) if error is None]


class PixelCache:
    """Images of 8 bits (n c h w), each made at its first use, shared with forked processes."""

    def __init__(self, shape: tuple[int, ...]):
        # memory that forked processes share, taken only as it is filled, and not limited as
        # /dev/shm often is in containers
        self.pixels = torch.frombuffer(mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
        self.is_there = torch.frombuffer(mmap(-1, shape[0]), dtype=torch.bool)

    def get(self, index: int, make: Callable[[], Tensor]) -> Tensor:
        """The image; where two processes make it at the same time, both write the same."""
        if not self.is_there[index]:
            self.pixels[index] = make()
            self.is_there[index] = True
        return self.pixels[index]


def find_images(folder: Path, exts: Sequence[str] = EXTENSIONS) -> list[Path]:
    """All files below `folder` with one of the endings, sorted. Errors as of `ImageDataset`."""
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder {folder} is a file; expected a folder of images")
    suffixes = tuple(f".{ext.lower().lstrip('.')}" for ext in exts)
    paths = list(map(Path, _files(str(folder), suffixes)))
    if not paths:
        endings = ", ".join(sorted(set(suffixes)))
        raise ValueError(f"folder {folder} holds no image: looked for the endings {endings}")
    return sorted(paths)


def _files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files below a folder with one of the endings, by listing folders alone."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, suffixes)
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                yield entry.path
