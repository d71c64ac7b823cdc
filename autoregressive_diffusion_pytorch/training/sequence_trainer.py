"""Training a model of sequences: of different lengths, with statistics of samples beside real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.order import batches_of
from ..data.sequence_plots import can_plot, plot_sequences
from ..data.sequence_statistics import compare
from ..data.sequences import SequenceItems, pad_sequences, unpadded
from ..utils.files import atomic_write_text
from .loop import TrainingLoop
from .samples import Samples
from .trainer import Trainer
from .trial import check_dataset, try_folders


class SequenceTrainer(Trainer):
    """Trains a model of sequences, such as `AutoregressiveFlow`; `trainer()` runs it.

    Sequences may have different lengths: batches are padded, and made of sequences of similar
    lengths. Each token counts the same, whatever its batch. The validation loss is the negative
    log-density in nats per token, where the model has one (`log_prob`), and else its loss.

    Args:
        model: needs `model(seq, lens=…) -> loss`, the mean over all tokens, and
            `model.sample(batch_size=…, generator=…)`, which gives tokens (b n d), or a pair of them
            and the lengths.
        dataset: any dataset with a length, of sequences (n d), pairs (sequence, label) or
            dictionaries (see `SequenceItems`). Its attribute `lengths`, if it has one, gives the
            number of tokens of each; else all sequences are read for it once.
        validation_dataset: another of the same kind, as of `Trainer`.
        results_folder: holds `results.STEP.json`, statistics of samples beside those of real
            sequences (see `sequence_statistics.compare`), and, where matplotlib is installed,
            `results.STEP.png`, a plot of both. They are in TensorBoard too.
        save_results_every: steps between them; there is one after the last step, too.
        num_samples: sequences to draw for them, always with the same seed. The real ones are as
            many of the validation dataset, evenly spread, or else of the dataset; the samples get
            their labels and vectors. One that cannot be drawn or written ends no training.
        sample_kwargs: further arguments of `model.sample` for them.
        kwargs: as of `Trainer`.
    """

    item = "sequence"

    def __init__(
        self,
        model: Module,
        *,
        dataset: Dataset,
        validation_dataset: Dataset | None = None,
        results_folder: str | Path = "./results",
        save_results_every: int = 500,
        num_samples: int = 64,
        sample_kwargs: dict | None = None,
        dataloader_kwargs: dict | None = None,
        **kwargs,
    ):
        folder = Path(results_folder)
        check_dataset("dataset", dataset, self.item)
        items = SequenceItems(dataset)
        self.lengths = _check_lengths("dataset", items, model)
        real = items
        if validation_dataset is not None:
            check_dataset("validation_dataset", validation_dataset, self.item)
            validation_dataset = SequenceItems(validation_dataset, "validation_dataset")
            _check_lengths("validation_dataset", validation_dataset, model)
            if getattr(model, "has_density", False):
                model.head.density_settings()  # whether it can be computed at all
            real = validation_dataset
        self.mean_length = sum(self.lengths) / len(self.lengths)
        self.samples = SequenceResults(real, folder, save_results_every, num_samples, sample_kwargs)
        super().__init__(
            model,
            dataset=items,
            validation_dataset=validation_dataset,
            dataloader_kwargs=dict(collate_fn=pad_sequences) | (dataloader_kwargs or {}),
            **kwargs | dict(parts=[self.samples, *kwargs.get("parts", ())]),
        )
        self.samples.try_out(self)
        try_folders(self, dict(results_folder=folder))

    def loss(self, model: Module, batch: dict[str, Tensor]) -> Tensor:
        """The sum over the tokens of a batch, over how many a batch has on average."""
        average = len(batch["seq"]) * self.mean_length
        return self.call(model, batch) * (_tokens_of(batch) / average)

    def validation_sums(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        count = _tokens_of(batch)
        if getattr(model, "has_density", False):
            # a solver's tolerance is finer than bfloat16
            with torch.autocast(self.accelerator.device.type, enabled=False):
                return -self.call(model.log_prob, batch).sum(), count
        return count * self.call(model, batch).float(), count

    def save_results(self) -> None:
        """Draws samples with the averaged weights. All processes must call it."""
        self.samples.save(self)


def _tokens_of(batch: dict[str, Tensor]) -> float:
    if "lens" in batch:
        return batch["lens"].sum()
    return batch["seq"].shape[0] * batch["seq"].shape[1]


def _check_lengths(name: str, items: SequenceItems, model: Module) -> list[int]:
    """The lengths of all sequences, each of which fits the model."""
    lengths, longest = items.lengths(), getattr(model, "max_seq_len", None)
    if longest is not None and max(lengths) > longest:
        index = lengths.index(max(lengths))
        raise ValueError(
            f"{name} must hold sequences of at most max_seq_len = {longest} tokens, got "
            f"{lengths[index]} at index {index}"
        )
    return lengths


class SequenceResults(Samples):
    """Statistics and plots of samples beside real sequences. Arguments as of `SequenceTrainer`."""

    what, ending = "the plot", ".json"

    def __init__(self, items: SequenceItems, *args: Any):
        super().__init__(*args)
        count = min(self.num_samples, len(items))
        self.num_samples = count
        self.items, self.indices = items, [i * len(items) // count for i in range(count)]
        self._real: dict[str, Tensor] | None = None

    def files(self, step: int) -> list[Path]:
        return [self.path(step), self.path(step).with_suffix(".png")]

    def real(self) -> dict[str, Tensor]:
        """The real sequences, as a batch, the same in a resumed run."""
        if self._real is None:
            options = dict(collate_fn=pad_sequences)
            (self._real,) = batches_of(self.items, self.indices, len(self.indices), **options)
        return self._real

    def make_conditions(self, trainer: TrainingLoop) -> dict[str, Tensor]:
        real = self.real()
        return {name: real[name] for name in ("labels", "cond", "cond_mask") if name in real}

    def draw(self, model: Module, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        drawn = model.sample(**arguments)
        seq, lens = drawn if isinstance(drawn, tuple) else (drawn, None)
        if lens is None:
            lens = torch.full(seq.shape[:1], seq.shape[1], device=seq.device)
        longest = getattr(model, "max_seq_len", seq.shape[1])
        return F.pad(seq, (0, 0, 0, longest - seq.shape[1])), lens

    def write(self, trainer: TrainingLoop, drawn: tuple[Tensor, ...], path: Path) -> None:
        real = self.real()
        lens = real.get("lens", torch.full(real["seq"].shape[:1], real["seq"].shape[1]))
        real = unpadded(real["seq"], lens.tolist())
        sampled = unpadded(drawn[0].cpu(), drawn[1].tolist())
        found = compare(real, sampled)
        atomic_write_text(path, json.dumps(dict(step=trainer.step, **found), indent=2))
        trainer.log_values({name: x for name, x in found.items() if isinstance(x, float)})
        if can_plot():
            picture = plot_sequences(real, sampled, path.with_suffix(".png"))
            for tracker in trainer.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.add_image("sequences", picture, trainer.step, dataformats="HWC")
