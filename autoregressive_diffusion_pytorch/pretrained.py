"""Saving and loading a model as its constructor's arguments and its weights."""

from __future__ import annotations

import contextlib
import inspect
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
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        # a copy: the caller may use a dictionary of arguments again, changed, for the next model
        instance._arguments = _copied(dict(zip(names, args, strict=False)) | kwargs)
        return instance

    @property
    def config(self) -> dict:
        """All the constructor's arguments as JSON values, defaults too: a later version may have others.

        Raises:
            ValueError: if an argument is no such value.
        """
        config = {}
        for base in reversed(type(self).__mro__):
            if issubclass(base, Pretrained) and "__init__" in vars(base):
                parameters = inspect.signature(base.__init__).parameters.values()
                config |= {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        config |= self._arguments
        config |= self._resolved_arguments()
        for name, value in config.items():
            try:
                config[name] = json.loads(json.dumps(value))
            except TypeError as error:
                raise ValueError(f"{type(self).__name__} cannot be saved, its argument {name} is no JSON value: {error}") from error
        return config

    def _resolved_arguments(self) -> dict:
        """Arguments that are dictionaries, with the defaults of what they are handed on to."""
        return {}

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True))
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs):
        # the mixin prints where it loads from, and by default passes over weights that are missing
        with contextlib.redirect_stdout(io.StringIO()):
            return super()._from_pretrained(strict=strict, **kwargs)


def _copied(value):
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
