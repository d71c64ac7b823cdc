"""The sampling loop: one token after the other, each drawn by the head from its condition z.

The sampling of Li et al. 2024 (https://arxiv.org/abs/2406.11838), section 3.3, for the causal
variant: p(x) is the product over i of p(x_i | z_i), z_i = f(x_1 … x_{i-1}).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..heads.guidance import Guidance, check_context_guidance, check_guidance_target
from ..utils.modes import compiled, in_precision, inference
from ..utils.validation import check_choice, check_generator, check_positive_int
from .backbone import BackboneState
from .settings import GuidanceSchedule


class Generation:
    """One call of `Autoregressive.sample`: its arguments, checked at once, and the loop.

    Iterating over it draws the tokens after the prompt, each (b d). Arguments as of `sample`, with
    the `Autoregressive` model first.
    """

    def __init__(
        self,
        model: Module,
        batch_size: int | None,
        prompt: Tensor | None,
        seq_len: int | None,
        options: dict[str, Any],
    ):
        options = model.generation.with_given(options, model.head)
        self.model = model = in_precision(model, options.pop("precision", "no"))
        self.seq_len = model.max_seq_len if seq_len is None else seq_len
        check_positive_int(seq_len=self.seq_len)
        if self.seq_len > model.max_seq_len:
            raise ValueError(
                f"seq_len must be at most max_seq_len = {model.max_seq_len}, got {seq_len}"
            )
        weight = model.proj_in.weight
        if prompt is None:
            prompt = weight.new_empty(1, 0, model.dim_input)
        model.check_tokens("prompt", prompt, shortest=0, longest=self.seq_len)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.prompt = prompt.detach().to(weight.device, dtype)

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
        check_generator(options.get("generator"), self.batch_size)

        self.step = model.backbone.step
        known = model.head.sampling_options()
        if options.pop("compile", False):
            # the cache grows from step to step: one program for all lengths
            self.step = compiled(self.step, model.backbone, dynamic=True)
            options |= dict(compile=True) if "compile" in known else {}
        for name in options:
            check_choice(f"an option of {type(model.head).__name__}", name, known)
        self.draw = model.head.sampler(**options)

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

    def __iter__(self) -> Iterator[Tensor]:
        modules = list(self.model.modules())
        token, state = None, None
        for i in range(self.prompt.shape[1], self.seq_len):
            with inference(modules):
                # z_i = f(x_1 … x_{i-1}): the transformer reads x_{i-1}, its cache holds the others
                z, state = self._read_prompt() if token is None else self._read(token, state)
                # x_i ~ p(x_i | z_i)
                z, guidance = self._guidance_at(i, z)
                token = self.draw(z, guidance=guidance)
            yield token.clone()  # no tensor of inference mode: it can be trained on

    @property
    def _is_guided(self) -> bool:
        """Each sequence is read twice: with its condition and with the null condition."""
        return not (self.cfg.is_conditional or self.cfg.is_unconditional)

    def _read(self, token: Tensor, state: BackboneState) -> tuple[Tensor, BackboneState]:
        embeds = self.model.embed(token.unsqueeze(1))
        return self.step(torch.cat((embeds, embeds)) if self._is_guided else embeds, state)

    def _read_prompt(self) -> tuple[Tensor, BackboneState]:
        """Reads each prompt with its condition once, and gives what follows for all sequences."""
        model, count = self.model, self.num_prompts
        prompt = repeated(self.prompt, count)
        conditions = {name: repeated(given, count) for name, given in self.conditions.items()}
        dropped = None
        if self._is_guided:
            prompt = torch.cat((prompt, prompt))
            conditions = {name: torch.cat((given, given)) for name, given in conditions.items()}
            dropped = torch.arange(len(prompt), device=prompt.device) >= count
        elif self.cfg.is_unconditional:
            conditions = {}
            dropped = torch.ones(count, dtype=torch.bool, device=prompt.device)
        condition = model.conditioning(**conditions, dropped=dropped)
        embeds = torch.cat((model.start(len(prompt)), model.embed(prompt)), dim=1)
        z, state = model.backbone.step(embeds, **condition)
        times = self.batch_size // count
        return (z, state) if times == 1 else (repeated(z, times * len(z)), state.repeat(times))

    def _guidance_at(self, i: int, z: Tensor) -> tuple[Tensor, list[Guidance]]:
        """The conditions (b dim) at position i, and what they are guided away from."""
        guidance = []
        if self._is_guided:
            z, unconditional = z.chunk(2)
            scale = self.cfg.scales(self.seq_len)[i]
            interval = self.cfg.interval
            guidance.append(Guidance(unconditional, scale, interval, self.guidance_target))
        # before an unconditional first token there is no context to drop
        has_context = i > 0 or self.model.conditioning.is_conditional
        if self.context_guidance != 1 and has_context:
            null_z = self.model.no_context(i, i + 1).squeeze(0)
            guidance.append(Guidance(null_z, self.context_guidance, target=self.guidance_target))
        return z, guidance


def repeated(tensor: Tensor, batch_size: int) -> Tensor:
    """(m …) to (b …): each of the m as often as it takes, one after the other."""
    return tensor.repeat_interleave(batch_size // len(tensor), dim=0)
