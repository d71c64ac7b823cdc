"""The items of any dataset of images in one form: dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..utils.validation import as_height_and_width, as_tensor
from .image_files import fit_image


class TrainingItems(Dataset):
    """Items of a dataset as dictionaries: `images` (c h w), and any `labels`, `cond`, `cond_mask`.

    Args:
        dataset: gives images, tuples (image, label), or mappings with an image under one of
            `IMAGE_KEYS`, a label under one of `LABEL_KEYS`, and vectors under "cond" and
            "cond_mask". An image is a tensor (c h w), 8-bit or with values in [0, 1], or a Pillow
            image.
        image_size, channels: what Pillow images are brought to; without them there may be none.
    """

    IMAGE_KEYS = ("image", "images", "img", "pixel_values")
    LABEL_KEYS = ("label", "labels")

    def __init__(
        self,
        dataset: Dataset,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
    ):
        self.dataset = dataset
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            names = dict(images=self.IMAGE_KEYS, labels=self.LABEL_KEYS)
            names |= {name: (name,) for name in ("cond", "cond_mask")}
            parts = {}
            for name, keys in names.items():
                parts[name] = next((item[key] for key in keys if key in item), None)
        elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
            parts = dict(zip(("images", "labels"), item, strict=False))
        else:
            parts = dict(images=item)
        parts["images"] = self._to_tensor(parts["images"], item)
        return {name: as_tensor(name, part) for name, part in parts.items() if part is not None}

    def _to_tensor(self, image: Any, item: Any) -> Tensor:
        if isinstance(image, Image.Image) and None not in (self.image_size, self.channels):
            size = as_height_and_width("image_size", self.image_size)
            return fit_image(image, size, self.channels)
        if isinstance(image, Tensor):
            return image / 255 if image.dtype == torch.uint8 else image
        kind = f"of type {type(item).__name__}"
        if isinstance(item, Mapping):
            kind = f"with the keys {', '.join(map(repr, item))}"
        raise TypeError(
            "dataset must give images (tensors c h w, or Pillow images), pairs (image, label) or "
            f"mappings with an image under one of {', '.join(map(repr, self.IMAGE_KEYS))}; "
            f"got an item {kind}"
        )

    @property
    def classes(self) -> list[str] | None:
        """The names of the labels, where a torchvision or Hugging Face dataset knows them."""
        dataset = self.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        classes = getattr(dataset, "classes", None)
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            found = (getattr(features.get(key), "names", None) for key in self.LABEL_KEYS)
            classes = next((names for names in found if names is not None), None)
        return list(map(str, classes)) if isinstance(classes, (list, tuple)) else None
