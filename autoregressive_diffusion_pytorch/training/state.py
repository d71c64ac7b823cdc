"""The state of a training as the files of a checkpoint.

`model.safetensors` holds the averaged weights, with `config.json` all that it takes to sample,
`online.safetensors` those that are trained, and `training.pt` the rest, tensors and plain values.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Module
from torch.optim import Optimizer

from ..utils.files import utf8_path

AVERAGED, ONLINE, REST = "model.safetensors", "online.safetensors", "training.pt"


@dataclass
class TrainingState:
    """Collects and restores the state of a training; all processes must call each method.

    Attributes:
        accelerator: of the training.
        model: the unwrapped model, after the accelerator has prepared it.
        optimizer: of the model's parameters.
        ema: the average of the model.
        config: the model's arguments, None if it has none.
    """

    accelerator: Accelerator
    model: Module
    optimizer: Optimizer
    ema: EMA
    config: dict | None

    def collect(self, **progress) -> Callable[[Path], None]:
        """A function that writes the state into a folder, for the main process to call.

        Args:
            progress: further tensors and plain values.
        """
        # gathered where the processes hold parts of it
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        online = get_model_state_dict(self.model, options=options)
        averaged = get_model_state_dict(self.ema.ema_model, options=options)
        rest = dict(
            progress,
            optimizer=self._moments(options),
            ema=dict(step=self.ema.step.item(), initted=self.ema.initted.item()),
            scaler=self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        )

        def write(folder: Path) -> None:
            _save_weights(averaged, folder / AVERAGED)
            _save_weights(online, folder / ONLINE)
            # errors of Python's own files say more than those of torch's
            with (folder / REST).open("wb") as file:
                torch.save(rest, file)
            if self.config is not None:
                config = json.dumps(self.config, indent=2, sort_keys=True)
                (folder / "config.json").write_text(config)

        return write

    def load(self, folder: Path) -> dict:
        """Puts the state of a folder back, and gives the `progress` that was saved with it.

        Raises:
            ValueError: if it holds anything but tensors and plain values, or the weights of another
                model.
        """
        try:
            rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{folder / REST} is refused: it holds more than tensors and plain values, and "
                "loading that might run code"
            ) from error
        self._load_weights(self.model, folder / ONLINE)
        self._load_weights(self.ema.ema_model, folder / AVERAGED)
        self.ema.step.fill_(rest["ema"]["step"])
        self.ema.initted.fill_(rest["ema"]["initted"])
        self._load_moments(rest["optimizer"])
        if self.accelerator.scaler is not None and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        return rest

    def _moments(self, options: StateDictOptions) -> dict[str, dict]:
        """The optimizer's state by the name of the parameter; none before its first gradient."""
        if self.accelerator.is_fsdp2:
            # torch's own function would make a first step to have some
            if not self.optimizer.state:
                return {}
            # empty but for the main process
            state = get_optimizer_state_dict(self.model, self.optimizer, options=options)
            return state.get("state", {})
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {names[parameter]: state for parameter, state in self.optimizer.state.items()}

    def _load_moments(self, moments: dict[str, dict]) -> None:
        """Restores `_moments`. Rates and the like stay those of this run."""
        if not moments:
            return
        if self.accelerator.is_fsdp2:
            options = StateDictOptions(full_state_dict=True, strict=False)
            state = get_optimizer_state_dict(self.model, self.optimizer, options=options)
            state |= dict(state=moments)
            set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
            return
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = self.optimizer.param_groups
        order = [names[parameter] for group in groups for parameter in group["params"]]
        state = {i: moments[name] for i, name in enumerate(order) if name in moments}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | dict(state=state))

    def _load_weights(self, model: Module, path: Path) -> None:
        file = utf8_path(path.parent) / path.name
        try:
            if self.accelerator.is_fsdp2:
                options = StateDictOptions(full_state_dict=True)
                set_model_state_dict(model, load_file(file), options=options)
            else:
                load_model(model, str(file))
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds the weights of another model than the trainer's: {error}"
            ) from error


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    one_file = dict(filename_pattern=pattern, max_shard_size=2**62)
    try:
        save_torch_state_dict(weights, path.parent, **one_file)
    except SafetensorError as error:  # of the system's, when it writes
        raise OSError(str(error)) from error
