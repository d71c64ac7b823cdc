"""Buffers that are measured on the data, and stored with the weights."""

from __future__ import annotations

from typing import ClassVar

from torch.nn import Module


class MeasuredModule(Module):
    """A module with buffers that are NaN until they are known: given, measured or loaded.

    They follow the weights to their device, but are never rounded with them.
    """

    measured_buffers: ClassVar[tuple[str, ...]]

    _is_measured = False  # for torch.compile, which cannot ask the buffers

    @property
    def is_measured(self) -> bool:
        """Whether the buffers are known."""
        if not self._is_measured:
            self._is_measured = self._are_known()
        return self._is_measured

    def _are_known(self) -> bool:
        buffers = [getattr(self, name) for name in self.measured_buffers]
        return not any(buffer.is_meta or buffer.isnan().any().item() for buffer in buffers)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in self.measured_buffers:
            own, key = getattr(self, name), f"{prefix}{name}"
            # what was saved before it was known is no reason to forget it
            if key in state_dict and not own.is_meta and state_dict[key].isnan().any():
                state_dict[key] = own
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._is_measured = self._are_known()

    def _apply(self, *args, **kwargs) -> MeasuredModule:
        before = {name: getattr(self, name) for name in self.measured_buffers}
        super()._apply(*args, **kwargs)
        for name, buffer in before.items():
            now = getattr(self, name)
            if not (buffer.is_meta or now.is_meta):
                setattr(self, name, buffer.to(now.device))
        return self
