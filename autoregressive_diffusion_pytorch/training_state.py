"""The state of a training as the files of a checkpoint: what a run needs to go on as if it had never stopped.

`model.safetensors` holds the averaged weights, with `config.json` all that it takes to sample, `online.safetensors` those that are
trained, and `training.pt` the rest, tensors and plain values.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from huggingface_hub import save_torch_state_dict
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

AVERAGED, ONLINE, REST = "model.safetensors", "online.safetensors", "training.pt"


class TrainingState:
    """Collects and puts back the state of a training. With several processes each must call each method.

    Args:
        accelerator: of the training.
        prepared: the model as the accelerator gave it, distributed and compiled.
        model: the model itself.
        optimizer: of the model's parameters.
        ema: the average of the model.
        config: the model's arguments, None if it has none.
    """

    def __init__(
        self, accelerator: Accelerator, prepared: Module, model: Module, optimizer: Optimizer, ema: EMA, config: dict | None
    ):
        self.accelerator = accelerator
        self.prepared = prepared
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.config = config

    def collect(self, **progress) -> Callable[[Path], None]:
        """A function that writes the state into a folder, for the main process to call.

        Args:
            progress: further tensors and plain values.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # gathered where the processes hold parts of it
        online = get_model_state_dict(self.model, options=options)
        averaged = get_model_state_dict(self.ema.ema_model, options=options)
        rest = dict(
            progress,
            ema=dict(step=self.ema.step.item(), initted=self.ema.initted.item()),
            optimizer=get_optimizer_state_dict(self.prepared, self.optimizer, options=options),
            scaler=self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        )

        def write(folder: Path) -> None:
            _save_weights(averaged, folder / AVERAGED)
            _save_weights(online, folder / ONLINE)
            with (folder / REST).open("wb") as file:  # whose errors say more than those of torch's own
                torch.save(rest, file)
            if self.config is not None:
                (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True))

        return write

    def load(self, folder: Path) -> dict:
        """Puts the state of a folder back, and gives the `progress` that was saved with it.

        Raises:
            ValueError: if it holds anything but tensors and plain values, or the weights of another model.
        """
        try:
            rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{folder / REST} is refused: it holds more than tensors and plain values, and loading that might run code"
            ) from error
        self._load_weights(self.model, folder / ONLINE)
        self._load_weights(self.ema.ema_model, folder / AVERAGED)
        self.ema.step.fill_(rest["ema"]["step"])
        self.ema.initted.fill_(rest["ema"]["initted"])
        # the moments of the gradients; rates and the like stay this training's own, which may be others than when it was saved
        own = [{name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups]
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.prepared, self.optimizer, rest["optimizer"], options=options)
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.accelerator.scaler is not None and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        return rest

    def _load_weights(self, model: Module, path: Path) -> None:
        try:
            if self.accelerator.is_fsdp2:
                set_model_state_dict(model, load_file(path), options=StateDictOptions(full_state_dict=True))
            else:
                load_model(model, str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} holds the weights of another model than the trainer's: {error}") from error


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    save_torch_state_dict(weights, path.parent, filename_pattern=pattern, max_shard_size=2**62)  # one file, however large
