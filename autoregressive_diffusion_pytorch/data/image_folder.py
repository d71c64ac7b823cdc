"""Images in a folder as tensors, with labels by folder."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import hflip

from ..utils.text import counted, printable
from ..utils.validation import as_height_and_width, check_choice, check_positive_int
from .folder_listing import LOOSE, Listing, list_folder
from .image_files import MAX_PIXELS, MODES, DamagedImageError, read_pixels
from .image_formats import readable_endings, suffixes


class ImageDataset(Dataset):
    """The images of a folder and its subfolders: tensors (c h w) in [0, 1], labels if asked.

    An image is turned upright as its EXIF orientation says, brought to the wanted number of
    channels, scaled to cover `image_size` and cropped around its centre. Transparent parts show
    white where the channels hold no transparency. Of an animation the first frame is read.

    Links are followed. Hidden files and folders, and what file managers, archives and notebooks
    leave behind, are no images and no classes; one warning counts what is left out.

    Args:
        folder: the folder.
        image_size: height and width of the tensors, one number for square ones.
        channels: 1 (grey), 2 (grey and opacity), 3 (RGB) or 4 (RGB and opacity).
        exts: endings of the files to read, in any case; by default those of all formats that the
            installed Pillow reads.
        labels_from_folders: each folder in `folder` holds a class, and an item is a pair (image,
            label). As in torchvision's `ImageFolder`, `classes` are their names, sorted,
            `class_to_idx` has the label of each, `targets` that of each image. Folders without
            images are no classes: one warning names them.
        augment_horizontal_flip: mirror each image with probability 1/2, anew each time it is read.
        cache_in_memory: keep each image once it is read and fitted, one byte per pixel and channel,
            shared with the processes that read for a `DataLoader`. The tensors are the same as
            without.
        skip_damaged: read every file once now, and leave out those that cannot be read, with one
            warning that lists them. Otherwise a damaged file raises a `DamagedImageError`, a
            ValueError that names it, when its turn comes.
        max_pixels: the largest image to read, width times height; a larger one counts as damaged.

    Raises:
        FileNotFoundError: if the folder is missing.
        NotADirectoryError: if it is a file.
        ValueError: if it holds no image, or with `labels_from_folders` no folder of images.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int | tuple[int, int],
        *,
        channels: int = 3,
        exts: Sequence[str] | None = None,
        labels_from_folders: bool = False,
        augment_horizontal_flip: bool = False,
        cache_in_memory: bool = False,
        skip_damaged: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        check_choice("channels", channels, MODES)
        check_positive_int(max_pixels=max_pixels)
        self.folder = Path(folder)
        self.image_size = as_height_and_width("image_size", image_size)
        self.channels = channels
        self.max_pixels = max_pixels
        self.augment_horizontal_flip = augment_horizontal_flip
        self.labels_from_folders = labels_from_folders

        listing = list_folder(self.folder, exts, by_class=labels_from_folders)
        check_any(listing, exts)
        if left_out := listing.summary():
            lines = "\n  ".join(left_out)
            warnings.warn(f"left out of {printable(str(folder))}:\n  {lines}", stacklevel=2)
        self.paths = listing.images
        self.damaged: list[Path] = []  # files that are left out
        if skip_damaged:
            self._leave_out_damaged()
        if labels_from_folders:
            self._find_classes(listing.classes)
        shape = (len(self.paths), channels, *self.image_size)
        self._cache = PixelCache(shape) if cache_in_memory else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        path = self.paths[index]

        def read() -> Tensor:
            return read_pixels(path, self.image_size, self.channels, self.max_pixels)

        pixels = read() if self._cache is None else self._cache.get(index, read)
        image = pixels.float() / 255
        if self.augment_horizontal_flip and torch.rand(()) < 0.5:
            image = hflip(image)
        return (image, self._label_of(path)) if self.labels_from_folders else image

    def without_augmentation(self) -> ImageDataset:
        """The same images as they are, to validate on; they share the cache."""
        plain = copy.copy(self)
        plain.augment_horizontal_flip = False
        return plain

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

    def _find_classes(self, folders: list[str]) -> None:
        self.classes = sorted({self._class_of(path) for path in self.paths})
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        if empty := [printable(name) for name in folders if name not in self.class_to_idx]:
            what = counted(
                len(empty),
                "folder without images is no class",
                "folders without images are no classes",
            )
            warnings.warn(f"{what}: {', '.join(empty)}", stacklevel=3)

    def _leave_out_damaged(self) -> None:
        def fault(path: Path) -> str | None:
            try:
                read_pixels(path, self.image_size, self.channels, self.max_pixels)
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
        found = list(zip(self.paths, faults, strict=True))
        self.damaged = [path for path, error in found if error is not None]
        self.paths = [path for path, error in found if error is None]


def check_any(listing: Listing, exts: Sequence[str] | None = None) -> None:
    """Raises a ValueError, which says what is there instead, for a folder without images."""
    if listing.images:
        return
    if LOOSE in listing.left_out:
        how = "labels need a folder for each class in it"
        raise ValueError(f"folder {listing.folder} holds no folder of images: {how}")
    endings = ", ".join(sorted(suffixes(readable_endings() if exts is None else exts)))
    message = f"folder {listing.folder} holds no image: looked for the endings {endings}"
    raise ValueError("; left out: ".join((message, *listing.summary())))


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
