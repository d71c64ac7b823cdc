"""The scalars of TensorBoard's event files, read without TensorFlow and without the pictures."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

Scalars = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class _Read:
    """A file up to byte `end`: (tag, step, value), or (None, step, _) where steps were purged."""

    end: int = 0
    entries: list[tuple[str | None, int, float]] = field(default_factory=list)


class EventFiles:
    """The event files below a folder, of which only what is new is read again.

    Args:
        folder: such as `logs/` of a run; it need not be there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[Path, _Read] = {}
        self._scalars: tuple[tuple, Scalars] = ((), {})

    def scalars(self) -> Scalars:
        """Steps and values by name, in order of the steps; only those that are finite.

        What a run logged after the checkpoint that it was resumed from is left out.
        """
        # their names begin with the time
        paths = sorted(self.folder.rglob("*tfevents*"), key=lambda path: path.name)
        self._files = {path: _read_on(path, self._files.get(path, _Read())) for path in paths}
        state = tuple((path, read.end) for path, read in self._files.items())
        if state != self._scalars[0]:
            self._scalars = (state, _merged(list(self._files.values())))
        return {name: list(values) for name, values in self._scalars[1].items()}


def _merged(files: list[_Read]) -> Scalars:
    found: dict[str, dict[int, float]] = {}
    for read in files:
        for tag, step, value in read.entries:
            if tag is not None:
                found.setdefault(tag, {})[step] = value
                continue
            for values in found.values():
                for purged in [other for other in values if other >= step]:
                    del values[purged]
    return {tag: sorted(values.items()) for tag, values in found.items() if values}


def _read_on(path: Path, before: _Read) -> _Read:
    """Reads what a file holds by now. A record that is cut off or damaged ends it."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    if path.stat().st_size == before.end:
        return before
    with path.open("rb") as file:
        file.seek(before.end)
        data = file.read()
    entries, start = [], 0
    # a record: its length (8 bytes), a checksum (4), the event, a checksum (4)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4
        if end > len(data):
            break
        try:
            event = Event.FromString(data[start + 12 : end - 4])
        except DecodeError:
            break
        start = end
        if event.session_log.status == SessionLog.START:
            entries.append((None, event.step, 0.0))
        for value in event.summary.value:
            is_scalar = value.WhichOneof("value") == "simple_value"
            if is_scalar and math.isfinite(value.simple_value):
                entries.append((value.tag, event.step, value.simple_value))
    return _Read(before.end + start, before.entries + entries)
