"""Sequences in a folder as tensors, with labels by folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .folder_listing import list_folder
from .sequence_files import ENDINGS, format_of


class SequenceFolder(Dataset):
    """The sequences of a folder and its subfolders: tensors (n d), and labels if asked.

    All files are of one kind (see `SequenceFormat`) and width d. Hidden files are left out.

    Args:
        folder: the folder.
        labels_from_folders: each folder in `folder` holds a class, and an item is a pair (sequence,
            label); `classes` are their names, sorted.
        frame: of audio, samples per token.
        codec: of audio, instead: tokens are latents of a codec (see `codec_of`). They are computed
            once and kept in memory.
        max_length: of longer sequences a part of so many tokens is taken, another one at random
            each time it is read.

    Attributes:
        format: of the files.
        lengths: in tokens, of each sequence.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no sequences, or some that do not fit together; the file is named.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        labels_from_folders: bool = False,
        frame: int | None = None,
        codec: str | None = None,
        max_length: int | None = None,
    ):
        self.folder = Path(folder)
        self.labels_from_folders = labels_from_folders
        self.max_length = max_length
        self.is_cropped_at_random = True
        self.paths = list_folder(self.folder, ENDINGS, by_class=labels_from_folders).images
        if not self.paths:
            where = "a folder of sequences for each class" if labels_from_folders else "sequences"
            raise ValueError(f"{folder} must hold {where}, files that end in {', '.join(ENDINGS)}")
        for path in self.paths:
            if path.suffix.lower() != self.paths[0].suffix.lower():
                raise ValueError(
                    f"{folder} must hold files of one kind, got {self.paths[0].name} and "
                    f"{path.name}"
                )
        self.format = format_of(self.paths[0], frame, codec)
        self._kept: dict[int, Tensor] = {}  # of a codec
        shapes = [self.format.shape(path) for path in self.paths]
        self.dim = shapes[0][1]
        for path, (_, dim) in zip(self.paths, shapes, strict=True):
            if dim != self.dim:
                raise ValueError(
                    f"{path} must have tokens of width {self.dim}, as {self.paths[0]}, got {dim}"
                )
        self.whole_lengths = [length for length, _ in shapes]
        self.lengths = [min(length, max_length or length) for length in self.whole_lengths]
        self.classes = None
        if labels_from_folders:
            self.classes = sorted({self._class_of(path) for path in self.paths})
            self.class_to_idx = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        path, length = self.paths[index], self.lengths[index]
        seq = self._read(index)
        if len(seq) > length:
            spare = len(seq) - length + 1
            start = int(torch.randint(spare, ())) if self.is_cropped_at_random else 0
            seq = seq[start : start + length]
        return (seq, self.class_to_idx[self._class_of(path)]) if self.classes else seq

    def _read(self, index: int) -> Tensor:
        if self.format.codec is None:
            return self.format.read(self.paths[index])
        if index not in self._kept:
            self._kept[index] = self.format.read(self.paths[index])
        return self._kept[index]

    def without_augmentation(self) -> SequenceFolder:
        """The same sequences, of longer ones always their beginning, to validate on."""
        plain = copy.copy(self)
        plain.is_cropped_at_random = False
        return plain

    def _class_of(self, path: Path) -> str:
        return path.relative_to(self.folder).parts[0]
