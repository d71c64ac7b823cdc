"""Sequences of different lengths: items of any dataset in one form, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from ..utils.validation import as_tensor
from .items import class_names, parts_of


class SequenceItems(Dataset):
    """Items of a dataset as dictionaries: `seq` (n d), and any `labels`, `cond`, `cond_mask`.

    Args:
        dataset: gives sequences (n d) of real numbers, tensors or arrays; pairs (sequence, label);
            or mappings with a sequence under one of `SEQUENCE_KEYS`, a label under one of
            `LABEL_KEYS`, and vectors under "cond" and "cond_mask".
        name: of the argument that gives the dataset, for messages.
    """

    SEQUENCE_KEYS = ("seq", "sequence", "tokens")

    def __init__(self, dataset: Dataset, name: str = "dataset"):
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = self.dataset[index]
        parts = parts_of(item, self._refusal, seq=self.SEQUENCE_KEYS)
        if "seq" not in parts:
            raise self._refusal(f"an item with the keys {', '.join(map(repr, item))}")
        tensors = {name: as_tensor(name, part) for name, part in parts.items()}
        seq = tensors["seq"]
        if not seq.is_floating_point() or seq.ndim != 2 or 0 in seq.shape:
            raise self._refusal(f"{tuple(seq.shape)} of {seq.dtype}")
        return tensors

    def _refusal(self, got: str) -> TypeError:
        return TypeError(
            f"{self.name} must give sequences (n d) of real numbers, pairs (sequence, label) or "
            f"mappings with a sequence under one of {', '.join(map(repr, self.SEQUENCE_KEYS))}; "
            f"got {got}"
        )

    def lengths(self) -> list[int]:
        """The number of tokens of each sequence: the dataset's own `lengths`, or all are read."""
        known = _lengths_of(self.dataset)
        return [len(self[i]["seq"]) for i in range(len(self))] if known is None else known

    @property
    def classes(self) -> list[str] | None:
        """The names of the labels, where the dataset knows them."""
        return class_names(self.dataset)


def _lengths_of(dataset: Dataset) -> list[int] | None:
    if isinstance(dataset, Subset):
        known = _lengths_of(dataset.dataset)
        return known and [known[i] for i in dataset.indices]
    known = getattr(dataset, "lengths", None)
    return None if known is None else list(known)


def pad_sequences(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of items of `SequenceItems`: `seq` (b n d), with zeros after the shorter ones.

    With `lens` (b,) if they differ. Vectors `cond` (m dim_cond) of different numbers get a
    `cond_mask`.
    """
    items = [dict(item) for item in items]
    batch = {}
    lens = [len(item["seq"]) for item in items]
    if len(set(lens)) > 1:
        batch["lens"] = torch.tensor(lens)
    vectors = [item["cond"] for item in items if "cond" in item]
    if len({len(one) for one in vectors if one.ndim == 2}) > 1:
        for item in items:
            item.setdefault("cond_mask", torch.ones(len(item["cond"]), dtype=torch.bool))
    for name in ("seq", "cond", "cond_mask"):
        if all(name in item and item[name].ndim > 0 for item in items):
            parts = [item.pop(name) for item in items]
            if name == "cond" and parts[0].ndim == 1:
                batch[name] = torch.stack(parts)
            else:
                batch[name] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return batch | default_collate(items)


def unpadded(seq: Tensor, lens: Sequence[int]) -> list[Tensor]:
    """The sequences (n d) of a padded batch (b n d)."""
    return [one[:length] for one, length in zip(seq, lens, strict=True)]
