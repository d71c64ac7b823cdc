"""Saving and loading a model as its constructor's arguments and its weights."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from huggingface_hub import PyTorchModelHubMixin


class Pretrained(PyTorchModelHubMixin):
    """`save_pretrained(folder)`, `from_pretrained(folder or hub name)` and `push_to_hub(name)` of huggingface_hub.

    A model remembers the arguments it was made with. A saved one is `config.json`, which holds them, and
    `model.safetensors`: loading runs no code from the files.
    """

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls, *args, **kwargs)
        config = instance._hub_mixin_config or {}
        instance._not_in_config = sorted(kwargs.keys() - config.keys())  # the mixin leaves out what is not JSON
        # a copy: the caller may use a dictionary of arguments again, changed, for the next model
        instance._hub_mixin_config = json.loads(json.dumps(config))
        return instance

    @property
    def config(self) -> dict:
        """The constructor's arguments, as JSON values; a ValueError where one of them is no such value."""
        if self._not_in_config:
            raise ValueError(
                f"{type(self).__name__} cannot be saved: its argument {', '.join(self._not_in_config)} holds something "
                "other than numbers, strings, lists and dictionaries"
            )
        return self._hub_mixin_config

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True))
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs):
        # the mixin prints where it loads from, and by default passes over weights that are missing
        with contextlib.redirect_stdout(io.StringIO()):
            return super()._from_pretrained(strict=strict, **kwargs)
