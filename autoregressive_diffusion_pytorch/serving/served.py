"""What a page draws with: a model, its classes, and the run that it is of. No browser here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from ..data.image_files import read_pixels
from ..evaluation.drawing import batch_of
from ..evaluation.report import surprise
from ..models.generation import Generation
from ..models.orders import repeated
from ..utils.modes import in_precision
from ..utils.validation import check_int

if TYPE_CHECKING:
    from ..data.sequence_files import SequenceFormat
    from ..runs.record import RunRecord

MAX_SAMPLES = 256  # drawn at once
MAX_PIXELS = 50_000_000  # of a picture that is uploaded
KEPT_MODELS = 2  # of the checkpoints that are drawn with


@dataclass
class Request:
    """What is to be drawn.

    Attributes:
        count: samples in all, rounded up to a multiple of the labels; or completions of each label.
        seed: sample i of a seed is that of `ardiff sample`.
        labels: numbers of classes; None for none.
        step: of the checkpoint to draw with; None for the best one.
        options: further arguments of `sample`.
    """

    count: int
    seed: int = 0
    labels: list[int] | None = None
    step: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_int("count", self.count, 1, MAX_SAMPLES)
        check_int("seed", self.seed, 0, 2**31 - 1)

    @property
    def rows(self) -> int:
        return len(self.labels or [None])


@dataclass
class Served:
    """A model that is served.

    Attributes:
        name: of the run or of the model's folder.
        load: gives the model of a checkpoint's step, of None the best one.
        classes: names by label; None of a model without.
        format: of the files of sequences; None of a model of images.
        record: of the run; None of a model alone.
        command: the command line that draws a request again.
        precision: to draw in.
    """

    name: str
    load: Callable[[int | None], Module]
    classes: list[str] | None = None
    format: SequenceFormat | None = None
    record: RunRecord | None = None
    command: Callable[[Request], str] | None = None
    precision: str = "no"

    def __post_init__(self):
        self._models: dict[int | None, Module] = {}
        self.model()

    def model(self, step: int | None = None) -> Module:
        """The model of a checkpoint; the last few stay in memory."""
        model = self._models.pop(step, None)
        if model is None:
            model = in_precision(self.load(step).eval(), self.precision)
        self._models[step] = model
        while len(self._models) > KEPT_MODELS:
            del self._models[next(iter(self._models))]
        return model

    def images(self, request: Request) -> Iterator[Tensor]:
        """Images (b c h w) as they grow, with labels a row of each."""
        model = self.model(request.step)
        return model.stream(**self._batch(model, request), **request.options)

    def completions(
        self, image: Tensor, region: int | Tensor, request: Request
    ) -> Iterator[Tensor]:
        """Completions (b c h w) of an image (c h w) as they grow, with labels a row of each.

        Args:
            region: rows to keep, or a mask (h w) of what to draw.
        """
        model, device = self._model_and_device(request.step)
        draw = model.stream_complete
        if isinstance(region, Tensor):
            draw, region = model.stream_fill, region.to(device)
        return draw(
            image.unsqueeze(0).to(device),
            region,
            num_completions=request.count,
            labels=request.labels,
            generator=self._batch(model, request, of_each=True)["generator"],
            **request.options,
        )

    def sequences(self, request: Request, prompt: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Sequences (n d) as they grow, of each label as many; after the prompt (n d), if given."""
        model, device = self._model_and_device(request.step)
        options = self._batch(model, request, of_each=prompt is not None) | request.options
        names = ("batch_size", "seq_len", "min_seq_len")
        size, length, shortest = (options.pop(name, None) for name in names)
        lengths = dict(seq_len=length, min_seq_len=shortest)
        if prompt is not None:
            lengths |= dict(prompt=prompt.unsqueeze(0).to(device))
        generation = Generation(model, size, options, **lengths)
        return self._growing(generation)

    def _growing(self, generation: Generation) -> Iterator[list[Tensor]]:
        known = generation.prompt.shape[1]
        seq = repeated(generation.prompt, generation.batch_size)  # all may end after it
        sizes = iter(generation.order.sizes)
        for seq in generation.growing():
            known += next(sizes)
            known_part = generation.seq_len if generation.model.draws_any_order else known
            lens = generation.lens.clamp(max=known_part).tolist()
            yield [one[:n].cpu() for one, n in zip(seq, lens, strict=True)]
        lens = generation.lens.tolist()  # the last step may have ended some without a token
        yield [one[:n].cpu() for one, n in zip(seq, lens, strict=True)]

    def surprise(self, image: Tensor, label: int | None, step: int | None = None) -> Tensor:
        """The nats of each patch of an image (c h w): (rows columns)."""
        return surprise(self.model(step), image, label)

    def read_image(self, file: str | Path) -> Tensor:
        """An uploaded image (c h w), scaled and cropped to the model."""
        model = self.model()
        return read_pixels(Path(file), model.image_size, model.channels, MAX_PIXELS).float() / 255

    def read_sequence(self, file: str | Path) -> Tensor:
        """An uploaded sequence (n d)."""
        return self.format.read(Path(file))

    def names_of(self, labels: Sequence[int] | None) -> list[str] | None:
        return labels and [self.classes[label] for label in labels]

    def _batch(self, model: Module, request: Request, of_each: bool = False) -> dict[str, Any]:
        """The arguments of `sample` for what a request counts: in all, or of each label."""
        labels, count = None, request.count
        if request.labels is not None:
            columns = count if of_each else -(-count // len(request.labels))
            labels = torch.tensor(request.labels).repeat_interleave(columns)
            count = len(labels)
        check_int("count", count, 1, MAX_SAMPLES)
        return batch_of(model, range(count), seed=request.seed, labels=labels)

    def _model_and_device(self, step: int | None) -> tuple[Module, torch.device]:
        model = self.model(step)
        return model, next(model.parameters()).device
