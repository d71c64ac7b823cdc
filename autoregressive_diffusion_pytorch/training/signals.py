"""SIGINT and SIGTERM as a request to stop, which a loop can fulfil when it suits it."""

from __future__ import annotations

import signal
import threading
import time


class StopSignals:
    """Inside a `with` block SIGINT and SIGTERM are noted in `received`, by name, and end nothing.

    Ctrl-C pressed again, 2 seconds later or more, ends at once. (Launchers forward a signal to
    processes that have got it already: a second one right after the first requests nothing new.)
    Only a process's main thread gets signals: in others none is noted.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    PATIENCE = 2.0  # seconds

    def __init__(self):
        self.received: str | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal ends; SIGTERM's, if another process got it."""
        return 128 + signal.Signals[self.received or "SIGTERM"]

    def __enter__(self) -> StopSignals:
        self.received = None
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            self._since = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > self.PATIENCE:
            raise KeyboardInterrupt
