"""Files of sequences: arrays, tables and audio, read and written as tokens (n d)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..utils.files import atomic_write
from .codec import codec_of, decode, encode

ENDINGS = (".npy", ".safetensors", ".csv", ".wav")
KEY = "seq"  # of the tensor in a file of safetensors, where it holds several


@dataclass(frozen=True)
class SequenceFormat:
    """How sequences are kept in files.

    Attributes:
        ending: one of `ENDINGS`. An array of `.npy` and a tensor of `.safetensors` are (n d), or
            (n,) for one channel; a table of `.csv` has a row per token, and may have a header; of
            `.wav`, soundfile reads the samples, in [-1, 1].
        frame: of audio: samples per token; d is their number times that of the channels. The last
            frame is filled up with silence.
        sample_rate, channels: of audio.
        codec: of audio whose tokens are latents, instead of `frame`: a folder or Hub name, as of
            `codec_of`.
    """

    ending: str
    frame: int = 1
    sample_rate: int | None = None
    channels: int = 1
    codec: str | None = None

    def shape(self, file: Path) -> tuple[int, int]:
        """The shape (n, d) of a file's sequence; but for tables without reading it all.

        Raises:
            ValueError: the file cannot be read, or holds no such sequence; it is named.
        """
        with _named_errors(file):
            if self.ending == ".npy":
                return _two_axes(np.load(file, mmap_mode="r", allow_pickle=False).shape)
            if self.ending == ".safetensors":
                with safe_open(file, "pt") as opened:
                    return _two_axes(tuple(opened.get_slice(_key(opened.keys())).get_shape()))
            if self.ending == ".csv":
                return tuple(_read_table(file).shape)
            info = _soundfile().info(file)
            if (info.samplerate, info.channels) != (self.sample_rate, self.channels):
                raise ValueError(
                    f"{info.samplerate} Hz and {info.channels} channels, others have "
                    f"{self.sample_rate} Hz and {self.channels}"
                )
            if self.codec is not None:
                width = codec_of(self.codec).config.decoder_input_channels
                return -(-info.frames // codec_of(self.codec).hop_length), width
            return -(-info.frames // self.frame), self.frame * info.channels

    def read(self, file: Path) -> Tensor:
        """The sequence (n d) of a file, in single precision. Errors as of `shape`."""
        with _named_errors(file):
            if self.ending == ".npy":
                array = torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
            elif self.ending == ".safetensors":
                with safe_open(file, "pt") as opened:
                    array = opened.get_tensor(_key(opened.keys())).float()
            elif self.ending == ".csv":
                array = torch.from_numpy(_read_table(file))
            else:
                array = _soundfile().read(file, dtype="float32", always_2d=True)[0]
                if self.codec is None:
                    array = self._framed(array)
                else:
                    array = encode(self.codec, torch.from_numpy(array))
            seq = array.view(_two_axes(tuple(array.shape)))
            if not seq.isfinite().all():
                raise ValueError("some values are no finite numbers")
            return seq

    def _framed(self, samples: np.ndarray) -> Tensor:
        missing = -len(samples) % self.frame
        samples = np.pad(samples, ((0, missing), (0, 0)))
        return torch.from_numpy(samples.reshape(-1, self.frame * samples.shape[1]))

    def write(self, seq: Tensor, file: Path) -> None:
        """Writes a sequence (n d) as such a file, whole or not at all."""
        array = seq.detach().cpu().float().contiguous()

        def write(partial: Path) -> None:
            if self.ending == ".safetensors":
                save_file({KEY: array}, partial)
            elif self.ending == ".csv":
                np.savetxt(partial, array.numpy(), delimiter=",", fmt="%.9g")
            elif self.ending == ".npy":
                with partial.open("wb") as opened:  # numpy adds an ending to a name without it
                    np.save(opened, array.numpy())
            else:
                samples = array if self.codec is None else decode(self.codec, array)
                samples = samples.reshape(-1, self.channels).clamp(-1, 1).numpy()
                _soundfile().write(partial, samples, self.sample_rate, format="WAV")

        atomic_write(file, write)


def format_of(file: Path, frame: int | None = None, codec: str | None = None) -> SequenceFormat:
    """The format of a file, of audio with so many samples per token, or a codec.

    Raises:
        ValueError: it is none that can be read; or audio, and both are missing, or both given, or
            the codec is for other audio.
    """
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{file} must end in one of {', '.join(ENDINGS)}")
    if ending != ".wav":
        return SequenceFormat(ending)
    if (frame is None) == (codec is None):
        which = "is missing" if frame is None else "excludes a codec"
        raise ValueError(f"{file} is audio: frame, the number of samples per token, {which}")
    with _named_errors(file):
        info = _soundfile().info(file)
    found = SequenceFormat(ending, frame or 1, info.samplerate, info.channels, codec)
    if codec is not None:
        config = codec_of(codec).config
        expected = config.sampling_rate, config.audio_channels
        if expected != (info.samplerate, info.channels):
            raise ValueError(
                f"{file} must have {expected[0]} Hz and {expected[1]} channels for codec {codec}, "
                f"got {info.samplerate} and {info.channels}"
            )
    return found


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """Makes errors of reading ValueErrors that name the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RuntimeError, SafetensorError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a sequence: {error}") from error


def _two_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    shape = (*shape, 1) if len(shape) == 1 else shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"its shape must be (n d) or (n,), got {tuple(shape)}")
    return shape


def _key(keys: list[str]) -> str:
    if KEY in keys or len(keys) != 1:
        if KEY not in keys:
            raise ValueError(f"it must hold one tensor, or one named {KEY!r}, got {list(keys)}")
        return KEY
    return next(iter(keys))


def _read_table(file: Path) -> np.ndarray:
    with file.open(newline="") as opened:
        rows = [row for row in csv.reader(opened) if row]
    if rows and not all(map(_is_number, rows[0])):
        rows = rows[1:]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("its rows must have the same number of columns, at least one")
    return np.array(rows, dtype=np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _soundfile():
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "audio is read by soundfile, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[audio]'"
        ) from error
    return soundfile
