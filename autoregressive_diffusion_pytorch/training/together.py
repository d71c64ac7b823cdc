"""What is made beside the steps and may fail: all processes learn of it, and none waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

if TYPE_CHECKING:
    from .loop import TrainingLoop

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def together(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """The result of a function that each process calls for itself.

    Where it fails in one, all raise: that process its error, the others one that tells of it. In
    the function no process may wait for another.
    """
    result = error = None
    try:
        result = function()
    except Exception as raised:
        if accelerator.num_processes == 1:
            raise
        error = raised
    faults = gather_object([error and (isinstance(error, OSError), one_line(error))])
    fault = next((fault for fault in faults if fault is not None), None)
    if fault is None:
        return result
    if error is None:
        is_system_error, text = fault
        error = OSError(text) if is_system_error else RuntimeError(text)
    error.is_known_to_all = True
    raise error


def by_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result | None:
    """The main process calls the function; where it fails, all raise."""
    return together(accelerator, lambda: function() if accelerator.is_main_process else None)


def attempt(trainer: TrainingLoop, what: str, function: Callable[[], object]) -> None:
    """Calls a function in all processes; where it fails, says so, and the training goes on."""
    try:
        function()
    except Exception as error:
        # an error of one process alone must end it: the others wait for its part of the work
        is_alone = trainer.accelerator.num_processes > 1
        if is_alone and not getattr(error, "is_known_to_all", False):
            raise
        if trainer.is_main:
            logger.warning("%s failed, the training goes on without: %s", what, one_line(error))


def one_line(error: Exception) -> str:
    """The message of an error; its kind too, where the message alone says little."""
    lines = str(error).strip().splitlines() or [""]
    # a worker process sends the traceback before its error
    is_of_worker = any(line.startswith("Original Traceback") for line in lines)
    if is_of_worker:
        return lines[-1]
    is_plain = isinstance(error, (ValueError, TypeError, OSError)) and lines[0]
    return lines[0] if is_plain else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
