"""Where a training is, in a file of its run's folder, for who looks at it from outside."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from datetime import datetime, timezone
from pathlib import Path

from ..utils.files import atomic_write_text
from .loop import Part, Step, TrainingLoop
from .together import one_line

SECONDS_BETWEEN = 2.0

logger = logging.getLogger(__name__)


class Progress(Part):
    """Keeps `progress.json`, at the start, every two seconds at most, and at the end.

    It holds `state`, "running", "ended" after the last step or the last minute, or "stopped" after
    a signal or an error; `step` and `num_train_steps`; `items_per_second` of the steps alone;
    `item`, what these are; `loss`, its running average; `pid` and `host` of the main process; and
    when the training was `started`, and this `updated` (ISO 8601, UTC). A file that cannot be
    written ends no training.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.file = folder / "progress.json"
        self._started: str | None = None
        self._speed: float | None = None
        self._steps, self._seconds = 0, 0.0  # since the speed was measured
        self._written_at = 0.0
        self._is_finished = self._has_failed = False

    def start(self, trainer: TrainingLoop) -> None:
        self._started, self._is_finished = _now(), trainer.step >= trainer.num_train_steps
        self._write(trainer, "running")

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        self._steps += 1
        self._seconds += step.seconds
        self._is_finished = step.finished
        if time.monotonic() >= self._written_at + SECONDS_BETWEEN:
            self._write(trainer, "running")

    def end(self, trainer: TrainingLoop) -> None:
        if self._started is not None:
            self._write(trainer, "ended" if self._is_finished else "stopped")
        self._started = None

    def _write(self, trainer: TrainingLoop, state: str) -> None:
        if not trainer.is_main:
            return
        self._written_at = time.monotonic()
        if self._seconds > 0:
            self._speed = self._steps * trainer.effective_batch_size / self._seconds
            self._steps, self._seconds = 0, 0.0
        losses = trainer.log.losses
        progress = dict(
            state=state,
            step=trainer.step,
            num_train_steps=trainer.num_train_steps,
            items_per_second=self._speed,
            item=trainer.item,
            loss=losses.average if losses.count else None,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self._started,
            updated=_now(),
        )
        try:
            atomic_write_text(self.file, json.dumps(progress, indent=2))
        except OSError as error:  # of a full disk
            if not self._has_failed:
                logger.warning("the progress is not written: %s", one_line(error))
            self._has_failed = True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
