"""Latents of images on disk: encoded once, and read by a training many times.

A cache is a folder with `cache.json` and shards of safetensors, each with the mean and the std of
the posteriors of some images, as float16. Shards are written one after the other, whole or not at
all, and are listed in `cache.json` with their hashes: a run that is killed goes on with the first
that is missing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..utils.files import atomic_write
from ..utils.manifests import sha256
from ..utils.rng import generator_for
from ..utils.validation import check_choice, check_positive_int
from .image_folder import ImageDataset
from .items import TrainingItems
from .order import batches_of

CACHE_FILE = "cache.json"
VERSION = 1
FLIPS = ("none", "both")
MIRRORED = "_mirrored"  # ends the names of what mirrored images are encoded to
# what a cache is made of, none of which may change before it is whole
FACTS = (
    *("version", "autoencoder", "autoencoder_sha256", "source", "listing_sha256", "num_images"),
    *("image_size", "channels", "latent_shape", "classes", "flip", "batch_size", "shard_size"),
    "dataset",  # further arguments of `ImageDataset`
)

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def is_cache(folder: str | Path) -> bool:
    return (Path(folder) / CACHE_FILE).is_file()


def listing_hash(dataset: Dataset) -> str:
    """The SHA-256 hash of the names and sizes of the files of a folder, or of images in memory."""
    digest = hashlib.sha256()
    if isinstance(dataset, ImageDataset):
        for path in dataset.paths:
            digest.update(os.fsencode(path.relative_to(dataset.folder)))
            digest.update(f"\0{path.stat().st_size}\0".encode())
    else:
        for i in range(len(dataset)):
            digest.update(TrainingItems(dataset)[i]["images"].numpy().tobytes())
    return digest.hexdigest()


def write_cache(
    folder: str | Path,
    dataset: Dataset,
    encode: Encode,
    facts: dict[str, Any],
    *,
    flip: str = "none",
    batch_size: int = 32,
    shard_size: int = 4096,
    num_workers: int = 0,
    progress: bool = False,
) -> int:
    """Encodes images into a folder; one that was begun there is gone on with.

    The same images make the same batches wherever it was stopped, and the bytes are the same.

    Args:
        folder: of the cache.
        dataset: of images, or of pairs of an image and its label, as of `ImageDataset`.
        encode: the mean and std (or None) of the latents (b c h w) of images (b c h w) in [0, 1].
        facts: what `FACTS` names, but for what follows from the other arguments.
        flip: "both" encodes each image mirrored too.
        batch_size, shard_size: images encoded at a time, and in a file.
        num_workers: processes that read images in advance.
        progress: show a progress bar.

    Returns:
        How many images were encoded now.

    Raises:
        ValueError: what is there was begun with other facts; it names them.
        DamagedImageError: of a file, as of `ImageDataset`.
        OSError: if it cannot be written; the shards before are untouched.
    """
    check_choice("flip", flip, FLIPS)
    check_positive_int(batch_size=batch_size, shard_size=shard_size)
    folder, count = Path(folder), len(dataset)
    facts = facts | dict(
        version=VERSION,
        num_images=count,
        listing_sha256=listing_hash(dataset),
        flip=flip,
        batch_size=batch_size,
        shard_size=shard_size,
    )
    facts = json.loads(json.dumps({name: facts[name] for name in FACTS}))
    shards = _shards_so_far(folder, facts)
    items = TrainingItems(dataset)
    starts = range(0, count, shard_size)
    done = sum(shard["images"] for shard in shards)
    with tqdm(total=count, initial=done, desc="encoding", disable=not progress) as bar:
        for number in range(len(shards), len(starts)):
            start = starts[number]
            indices = range(start, min(start + shard_size, count))
            batches = []
            for batch in batches_of(items, indices, batch_size, num_workers=num_workers):
                batches.append(_encoded(batch, encode, flip))
                bar.update(len(batch["images"]))
            shards.append(_write_shard(folder, number, batches))
            _write_json(folder, facts | dict(complete=number == len(starts) - 1, shards=shards))
    return count - done


def _shards_so_far(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole shards that are there, as `cache.json` lists them."""
    if not is_cache(folder):
        _write_json(folder, facts | dict(complete=False, shards=[]))
        return []
    there = read_cache(folder)
    changed = [
        f"{name} {there.get(name)!r}, and not {facts[name]!r}"
        for name in FACTS
        if there.get(name) != facts[name]
    ]
    if changed:
        raise ValueError(
            f"{folder} was begun with {'; '.join(changed)}: another folder takes another cache"
        )
    shards = []
    for shard in there["shards"]:  # those after a damaged one are written again
        if fault_of_shard(folder, shard) is not None:
            break
        shards.append(shard)
    return shards


def _encoded(batch: dict[str, Tensor], encode: Encode, flip: str) -> dict[str, Tensor]:
    tensors = {}
    views = {"": batch["images"]}
    if flip == "both":
        views[MIRRORED] = batch["images"].flip(-1)
    for ending, images in views.items():
        for name, tensor in zip(("mean", "std"), encode(images), strict=True):
            if tensor is not None:
                tensors[name + ending] = tensor.half().cpu()
    if "labels" in batch:
        tensors["labels"] = batch["labels"]
    return tensors


def _write_shard(folder: Path, number: int, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    names = batches[0]
    tensors = {name: torch.cat([b[name] for b in batches]).contiguous() for name in names}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of the latents holds values that float16 cannot hold")
    path = folder / f"shard.{number:05}.safetensors"

    def write(partial: Path) -> None:
        partial.write_bytes(save(tensors))
        _sync(partial)

    atomic_write(path, write)
    images = len(tensors["mean"])
    facts = dict(file=path.name, images=images, bytes=path.stat().st_size)
    return facts | dict(sha256=sha256(path))


def _write_json(folder: Path, values: dict[str, Any]) -> None:
    def write(partial: Path) -> None:
        partial.write_text(json.dumps(values, indent=2))
        _sync(partial)

    atomic_write(folder / CACHE_FILE, write)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_cache(folder: str | Path) -> dict[str, Any]:
    """What `cache.json` of a folder holds.

    Raises:
        OSError: there is none.
        ValueError: it is damaged, or of another version.
    """
    path = Path(folder) / CACHE_FILE
    try:
        cache = json.loads(path.read_text())
        version, _ = cache["version"], [shard["sha256"] for shard in cache["shards"]]
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no {CACHE_FILE}: it is no cache") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version!r}, expected {VERSION}")
    return cache


def fault_of_shard(folder: Path, shard: dict[str, Any]) -> str | None:
    """What is wrong with a shard, None if it is as it was written."""
    path = folder / shard["file"]
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != shard["bytes"]:
        return f"{path} holds {path.stat().st_size} bytes instead of {shard['bytes']}"
    if sha256(path) != shard["sha256"]:
        return f"{path} is not what was written: its hash differs"
    return None


class LatentDataset(Dataset):
    """The latents of a cache: dictionaries of `latents` (c h w) and, if it has any, `labels`.

    Each time an item is read, latents are drawn from the posterior of its image, and where the
    cache has mirrored images too, of that or of its mirror. The files are mapped into memory.

    Args:
        folder: of the cache.

    Attributes:
        facts: what `cache.json` says of it.
        classes: names of the labels, None if there are none.

    Raises:
        OSError: there is no cache.
        ValueError: it is not whole, or a shard is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.facts = read_cache(folder)
        if not self.facts["complete"]:
            done = sum(shard["images"] for shard in self.facts["shards"])
            raise ValueError(
                f"{folder} is not whole, {done} of {self.facts['num_images']} images are encoded: "
                "`ardiff encode` with the same options goes on"
            )
        for shard in self.facts["shards"]:
            if (fault := fault_of_shard(self.folder, shard)) is not None:
                raise ValueError(f"{fault}; `ardiff encode` with the same options writes it again")
        self.classes: list[str] | None = self.facts["classes"]
        self.is_augmented = True
        self._opened: dict[int, dict[str, Any]] = {}  # in this process

    def __len__(self) -> int:
        return self.facts["num_images"]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} latents")
        index %= len(self)
        number, row = divmod(index, self.facts["shard_size"])
        shard, ending = self._shard(number), ""
        generator = None if self.is_augmented else generator_for(index)
        if self.is_augmented and self.facts["flip"] == "both" and torch.rand(()) < 0.5:
            ending = MIRRORED
        latents = shard["mean" + ending][row].float()
        if "std" in shard:
            noise = torch.randn(latents.shape, generator=generator)
            latents += shard["std" + ending][row].float() * noise
        item = dict(latents=latents)
        if "labels" in shard:
            item["labels"] = shard["labels"][row]
        return item

    def without_augmentation(self) -> LatentDataset:
        """Never mirrored, and always the same draw from each posterior, to validate on."""
        plain = copy.copy(self)
        plain.is_augmented = False
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_opened={})

    def _shard(self, number: int) -> dict[str, Any]:
        """The tensors of a shard, of which only what is indexed is read."""
        if number not in self._opened:
            file = self.folder / self.facts["shards"][number]["file"]
            with safe_open(file, framework="pt") as opened:
                self._opened[number] = {
                    name: opened.get_slice(name) for name in sorted(opened.keys())
                }
        return self._opened[number]
