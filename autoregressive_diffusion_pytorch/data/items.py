"""The items of any dataset of images in one form: dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..utils.validation import as_height_and_width, as_tensor
from .image_files import fit_image

LABEL_KEYS = ("label", "labels")


def parts_of(
    item: Any, refusal: Callable[[str], Exception], **content_keys: Sequence[str]
) -> dict[str, Any]:
    """The parts of a dataset's item by their names, as far as it has them.

    Args:
        item: the content alone, a tuple (content, label), or a mapping of all parts.
        refusal: the error for an item that is none of these, of what was got.
        content_keys: by the names of the contents, of which the first is that of the tuple, the
            keys under which a mapping may hold them.
    """
    if isinstance(item, Mapping):
        names = content_keys | dict(labels=LABEL_KEYS, cond=("cond",), cond_mask=("cond_mask",))
        parts = {
            name: next((item[key] for key in keys if key in item), None)
            for name, keys in names.items()
        }
    elif isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise refusal(f"a {type(item).__name__} of {len(item)}")
        parts = dict(zip((next(iter(content_keys)), "labels"), item, strict=False))
    else:
        parts = {next(iter(content_keys)): item}
    return {name: part for name, part in parts.items() if part is not None}


class TrainingItems(Dataset):
    """Items of a dataset as dictionaries: `images` (c h w), and any `labels`, `cond`, `cond_mask`.

    In place of images there may be `latents` (c h w), as a `LatentDataset` gives them.

    Args:
        dataset: gives images, tuples (image, label), or mappings with an image under one of
            `IMAGE_KEYS`, a label under one of `LABEL_KEYS`, and vectors under "cond" and
            "cond_mask". An image is a tensor (c h w) or an array (h w c), (c h w) or (h w), 8-bit
            or with values in [0, 1], or a Pillow image.
        image_size, channels: what Pillow images are brought to; without them there may be none.
        name: of the argument that gives the dataset, for messages.
    """

    IMAGE_KEYS = ("image", "images", "img", "pixel_values")

    def __init__(
        self,
        dataset: Dataset,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        name: str = "dataset",
    ):
        self.dataset = dataset
        self.image_size = image_size
        self.channels = channels
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        parts = parts_of(item, self._refusal, images=self.IMAGE_KEYS, latents=("latents",))
        if "latents" not in parts:
            parts["images"] = self._to_tensor(parts.get("images"), item)
        return {name: as_tensor(name, part) for name, part in parts.items()}

    def _to_tensor(self, image: Any, item: Any) -> Tensor:
        if isinstance(image, Image.Image) and None not in (self.image_size, self.channels):
            size = as_height_and_width("image_size", self.image_size)
            return fit_image(image, size, self.channels)
        if isinstance(image, np.ndarray):
            image = self._from_array(image)
        if isinstance(image, Tensor):
            return image / 255 if image.dtype == torch.uint8 else image
        if isinstance(item, Mapping) and image is None:
            raise self._refusal(f"an item with the keys {', '.join(map(repr, item))}")
        where = "" if image is item else " as an image"
        raise self._refusal(f"an item of type {type(image).__name__}{where}")

    def _from_array(self, array: np.ndarray) -> Tensor:
        """An array (h w c), (c h w) or (h w) as a tensor (c h w)."""
        shape, is_real = array.shape, np.issubdtype(array.dtype, np.floating)
        if array.ndim not in (2, 3) or not (is_real or array.dtype == np.uint8):
            raise self._refusal(f"an array {shape} of {array.dtype}")
        counts = range(1, 5) if self.channels is None else (self.channels,)
        first, last = array.ndim == 3 and shape[0] in counts, array.ndim == 3 and shape[2] in counts
        if first and last and self.image_size is not None:  # the model's size decides
            size = as_height_and_width("image_size", self.image_size)
            first, last = shape[1:] == size, shape[:2] == size
        if array.ndim == 3 and first == last:
            channels = "1 to 4" if self.channels is None else self.channels
            raise ValueError(
                f"{self.name} gives an array {shape}, whose axis of {channels} channels cannot be "
                "told: tensors (c h w) are taken as they are"
            )
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1) if last else array
        array = array.astype(np.float32 if is_real else np.uint8)  # a copy, which torch may own
        return torch.from_numpy(np.ascontiguousarray(array))

    def _refusal(self, got: str) -> TypeError:
        return TypeError(
            f"{self.name} must give images (tensors c h w, arrays of 8-bit or real numbers, or "
            "Pillow images), pairs (image, label) or mappings with an image under one of "
            f"{', '.join(map(repr, self.IMAGE_KEYS))}; got {got}"
        )

    @property
    def classes(self) -> list[str] | None:
        """The names of the labels, where a torchvision or Hugging Face dataset knows them."""
        return class_names(self.dataset)


def class_names(dataset: Dataset) -> list[str] | None:
    """The names of a dataset's labels, where it knows them as torchvision or Hugging Face do."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        found = (getattr(features.get(key), "names", None) for key in LABEL_KEYS)
        classes = next((names for names in found if names is not None), None)
    return list(map(str, classes)) if isinstance(classes, (list, tuple)) else None
