"""The sampling loop: tokens, one or several at a time, each drawn by the head from its condition z.

The sampling of Li et al. 2024 (https://arxiv.org/abs/2406.11838), section 3.3: p(x) is the product
over k of p(X_k | X_1 … X_{k-1}), of sets of tokens X_k in some order (eq. 3); the tokens of one set
are drawn independently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

from ..heads.guidance import Guidance, check_context_guidance, check_guidance_target
from ..utils.modes import compiled, in_precision, inference
from ..utils.validation import check_choice, check_generator, check_int, check_positive_int
from .orders import repeated
from .readings import Reading, write
from .settings import GuidanceSchedule, check_end_threshold


class Generation:
    """One call of `SequenceModel.sample`: its arguments, checked at once, and the loop.

    Iterating over it draws the tokens after the prompt: positions (b k) and their tokens (b k d).
    Of a model that predicts ends, `lens` (b,) are the lengths so far: sequences that have ended get
    zeros, and when all have, the loop ends.

    Args:
        model: the `SequenceModel`.
        batch_size, options, prompt, seq_len, min_seq_len: as of `sample`.
        known: positions (m p) of the prompt's tokens, by default the first ones.
    """

    def __init__(
        self,
        model: Module,
        batch_size: int | None,
        options: dict[str, Any],
        *,
        prompt: Tensor | None = None,
        seq_len: int | None = None,
        min_seq_len: int | None = None,
        known: Tensor | None = None,
    ):
        options = model.generation.with_given(options, model.head)
        self.model = model = in_precision(model, options.pop("precision", "no"))
        self.seq_len = model.max_seq_len if seq_len is None else seq_len
        check_positive_int(seq_len=self.seq_len)
        if self.seq_len > model.max_seq_len:
            raise ValueError(
                f"seq_len must be at most max_seq_len = {model.max_seq_len}, got {seq_len}"
            )
        self.min_seq_len = 1 if min_seq_len is None else min_seq_len
        self.end_threshold = options.pop("end_threshold", None)
        self._check_ends(min_seq_len)
        weight = model.proj_in.weight
        if prompt is None:
            prompt = weight.new_empty(1, 0, model.dim_input)
        model.check_tokens("prompt", prompt, shortest=0, longest=self.seq_len)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.prompt = prompt.detach().to(weight.device, dtype)
        if known is None:
            known = torch.arange(prompt.shape[1]).unsqueeze(0)
        known = known.to(weight.device)
        self.order = model.order_of(
            self.seq_len, known, options.pop("order", None), options.pop("num_iterations", None)
        )

        names = ("guidance_scale", "guidance_schedule", "guidance_interval")
        self.cfg = GuidanceSchedule(*(options.pop(name, None) for name in names))
        self.context_guidance = check_context_guidance(options.pop("context_guidance"))
        self.guidance_target = check_guidance_target(
            options.pop("guidance_target"), self.cfg.interval
        )
        self._check_guidance()
        given = {name: options.pop(name, None) for name in ("labels", "cond", "cond_mask")}
        self.conditions = {}
        if not (self.cfg.is_unconditional and all(v is None for v in given.values())):
            self.conditions = model.conditioning.check(**given)
        self._check_batch(batch_size)
        self.generator = options.get("generator")
        check_generator(self.generator, self.batch_size)

        self.transformer = model.transformer
        known_options = model.head.sampling_options()
        if options.pop("compile", False):
            # the cache grows from step to step: one program for all lengths
            self.transformer = compiled(self.transformer, model.backbone, dynamic=True)
            # the head's program is for one number of tokens
            if "compile" in known_options and len(set(self.order.sizes)) == 1:
                options |= dict(compile=True)
        for name in options:
            check_choice(f"an option of {type(model.head).__name__}", name, known_options)
        self.draw = model.head.sampler(**options)

    def _check_ends(self, min_seq_len: int | None) -> None:
        check_int("min_seq_len", self.min_seq_len, 1, self.seq_len)
        if self.model.end_head is None and (min_seq_len, self.end_threshold) != (None, None):
            name = "min_seq_len" if self.end_threshold is None else "end_threshold"
            raise ValueError(f"{name} needs a model that is made with predict_end = True")
        check_end_threshold(self.end_threshold)

    def _check_guidance(self) -> None:
        conditioning = self.model.conditioning
        if self.context_guidance != 1 and self.model.context_drop_prob == 0:
            raise ValueError(
                "context_guidance other than 1 needs a model that is trained with a "
                f"context_drop_prob above 0, got {self.context_guidance}"
            )
        if not self.cfg.is_conditional:
            needed = "guidance_scale other than 1 needs a model"
            if not conditioning.is_conditional:
                raise ValueError(f"{needed} with num_classes or dim_cond")
            if conditioning.cond_drop_prob == 0:
                raise ValueError(f"{needed} that is trained with a cond_drop_prob above 0")

    def _check_batch(self, batch_size: int | None) -> None:
        """`num_prompts` different prompts and conditions serve `batch_size` sequences evenly."""
        given = dict(prompt=self.prompt, **self.conditions)
        self.num_prompts = count = max(map(len, given.values()))
        scales = self.cfg.scale.numel()
        if batch_size is None:
            batch_size = scales if scales % count == 0 else count
        check_positive_int(batch_size=batch_size)
        self.batch_size = batch_size
        for name, tensor in given.items():
            if len(tensor) not in (1, count):
                raise ValueError(
                    f"{name} must hold one entry or {count}, as another argument does, "
                    f"got {len(tensor)}"
                )
        if batch_size % count:
            raise ValueError(
                f"batch_size must be a multiple of {count}, the number of prompts, labels or "
                f"vectors, got {batch_size}"
            )
        if scales not in (1, batch_size):
            raise ValueError(
                f"guidance_scale must be one number or one for each of {batch_size} sequences, "
                f"got {scales}"
            )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        modules, normalization = list(self.model.modules()), self.model.normalization
        order, reading, tokens = None, None, None
        ended = torch.zeros(self.batch_size, dtype=torch.bool, device=self.prompt.device)
        self.lens = torch.full_like(ended, self.seq_len, dtype=torch.long)
        start = self.prompt.shape[1]
        for count in self.order.sizes:
            with inference(modules):
                if reading is None:
                    order = self.order.positions(self.batch_size, self.generator)
                    reading = self._reading(order)
                stop = start + count
                positions = order[:, start:stop].expand(self.batch_size, -1)
                # the transformer reads X_1 … X_{k-1}
                z = reading.conditions(tokens, count)
                z, guidance = self._guidance_at(positions, stop, z)
                if self.model.end_head is not None and start >= self.min_seq_len:
                    ends = self.model.end_head.draw(z[:, 0], self.end_threshold, self.generator)
                    self.lens[ends & ~ended] = start
                    ended = ended | ends
                    if ended.all():
                        return
                # x ~ p(x | z), for each token of X_k
                tokens = normalization.constrain(self.draw(z, guidance=guidance))
                drawn = normalization.inverse(tokens)
                if self.model.end_head is not None:
                    drawn = drawn.masked_fill(ended[:, None, None], 0)
            # no tensors of inference mode: they can be trained on
            yield positions.clone(), drawn.clone()
            start = stop

    def run(self, progress: bool = False) -> Tensor:
        """All tokens, (b n d), those of the prompt untouched; zeros after the end."""
        seq, total = self._start(), len(self.order.sizes)
        for positions, tokens in tqdm(self, desc="tokens", total=total, disable=not progress):
            write(seq, positions, tokens)
        return seq

    def growing(self) -> Iterator[Tensor]:
        """The tokens of `run` after each iteration, one tensor that fills up; zeros at first."""
        seq = self._start()
        for positions, tokens in self:
            write(seq, positions, tokens)
            yield seq

    def _start(self) -> Tensor:
        """The tokens of the prompt at their places, and zeros."""
        seq = self.prompt.new_zeros(self.batch_size, self.seq_len, self.prompt.shape[-1])
        known = repeated(self.order.known.expand(len(self.prompt), -1), self.batch_size)
        write(seq, known, repeated(self.prompt, self.batch_size))
        return seq

    @property
    def _is_guided(self) -> bool:
        """Each sequence is read twice: with its condition and with the null condition."""
        return not (self.cfg.is_conditional or self.cfg.is_unconditional)

    def _reading(self, order: Tensor) -> Reading:
        """The reading of all sequences; each prompt with its condition is given once."""
        count = self.num_prompts
        prompt = repeated(self.model.normalization(self.prompt), count)
        conditions = {name: repeated(given, count) for name, given in self.conditions.items()}
        dropped = None
        if self._is_guided:
            prompt = torch.cat((prompt, prompt))
            conditions = {name: torch.cat((given, given)) for name, given in conditions.items()}
            dropped = torch.arange(len(prompt), device=prompt.device) >= count
        elif self.cfg.is_unconditional:
            conditions = {}
            dropped = torch.ones(count, dtype=torch.bool, device=prompt.device)
        condition = self.model.conditioning(**conditions, dropped=dropped)
        times = self.batch_size // count
        return self.model.reading(order, prompt, condition, times, self.transformer)

    def _guidance_at(
        self, positions: Tensor, stop: int, z: Tensor
    ) -> tuple[Tensor, list[Guidance]]:
        """The conditions (b k dim) at positions (b k), and what they are guided away from.

        `stop` tokens are known when these are drawn.
        """
        guidance = []
        if self._is_guided:
            z, unconditional = z.chunk(2)
            scale = self.cfg.scales(self.seq_len)[stop - 1]
            scale = scale if scale.ndim == 0 else scale.unsqueeze(1).expand(z.shape[:2])
            interval = self.cfg.interval
            guidance.append(Guidance(unconditional, scale, interval, self.guidance_target))
        # before unconditional first tokens there is no context to drop
        has_context = stop > positions.shape[1] or self.model.conditioning.is_conditional
        if self.context_guidance != 1 and has_context:
            null_z = self.model.no_context(positions)
            guidance.append(Guidance(null_z, self.context_guidance, target=self.guidance_target))
        return z, guidance
