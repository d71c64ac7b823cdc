"""One step of the sampling loop of a raster model, as a function of tensors alone."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..heads.sampler import Sampler
from ..utils.measured import MeasuredModule
from .autoregressive import Autoregressive
from .backbone import map_cache
from .settings import GuidanceSchedule
from .tokenizers import Patches


class SamplingStep(Module):
    """`step(inputs) -> outputs` of a raster model: what its sampling loop does for one token.

    The places of a sequence are those of the `num_start` embeddings that every sequence starts
    with, of the label and of the start, and those of its tokens. A call reads some more of them: at
    first all of the start, and of a prompt; then one token each time. The numbers are those of
    `Generation`: the layers are run by x-transformers itself, on a cache that is empty at first.

    Args:
        model: with the generation settings that become part of the program: solver, steps and
            guidance. The temperature does not: it is a factor on the noise.
    """

    def __init__(self, model: Autoregressive):
        super().__init__()
        options = model.generation.with_given({}, model.head)
        names = ("guidance_scale", "guidance_schedule", "guidance_interval")
        self.guidance = GuidanceSchedule(*(options.get(name) for name in names))
        self.context_guidance = options["context_guidance"]
        self.guidance_target = options["guidance_target"]
        self.temperature = options["temperature"]
        self.model = model
        own = {name: options[name] for name in ("num_steps", "solver") if name in options}
        self.sampler = model.head.sampler(**own)
        dim = len(model.start_token)
        self.sampler(torch.zeros(1, dim))  # its modulations by sigma become constants
        _, state = model.backbone.step(torch.zeros(1, 1, dim))
        self.cache = state.cache
        cached = [part for layer in self.cache.attn_intermediates for part in layer.cached_kv]
        cached = [part for part in cached if part is not None]
        self.cached = {f"cache_{i}": part for i, part in enumerate(cached)}
        classes = model.conditioning.num_classes
        self.num_start = 1 + (0 if classes is None else model.conditioning.label_embeds.shape[1])
        self.num_readings = 1 if self.guidance.is_conditional else 2  # with labels, and without

    def inputs(self) -> dict[str, dict[str, Any]]:
        """The inputs by name: `shape`, numbers or names of axes, `type` and `initial` value.

        The axis "count" is of the places to read, at first `num_start`; "length" of those in the
        cache, at first 0.
        """
        model, width, real = self.model, self.model.dim_input, dict(type="float32", initial=0)
        inputs = dict(
            tokens=dict(shape=["batch", "count", width], **real),
            noise=dict(shape=["batch", self.sampler.num_noises, width], **real),
        )
        if model.conditioning.num_classes is not None:
            inputs["labels"] = dict(shape=["batch"], type="int64", initial=0)
        if self.num_readings == 2:
            scale = self.guidance.scale.item()
            inputs["guidance_scale"] = dict(shape=["batch"], type="float32", initial=scale)
        for name, part in self.cached.items():
            shape = ["batch", self.num_readings, *part.shape[1:-2], "length", part.shape[-1]]
            inputs[name] = dict(shape=shape, **real)
        if model.recent is not None:
            inputs["recent"] = dict(shape=["batch", model.recent.count, width], **real)
        return inputs

    @property
    def state(self) -> list[str]:
        """Inputs of which a call gives the next ones."""
        return [*self.cached, *([] if self.model.recent is None else ["recent"])]

    @property
    def outputs(self) -> list[str]:
        """The outputs' names: the token (b d); where sequences end, the probability that this one
        has ended before it, (b,); and what the next call reads."""
        ends = [] if self.model.end_head is None else ["end_probability"]
        return ["token", *ends, *(f"next_{name}" for name in self.state)]

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        model, tokens = self.model, inputs["tokens"]
        length, num_labels = inputs["cache_0"].shape[-2], self.num_start - 1
        places = torch.arange(length, length + tokens.shape[1])
        is_token = (places > num_labels).unsqueeze(-1)
        # what is given at the places of the start is not read
        tokens = torch.where(is_token, model.normalization(tokens), 0.0)
        start = self._start(inputs, tokens.shape[0])[:, :, places.clamp(max=num_labels)]
        embeds = torch.where(is_token, model.embed(tokens).unsqueeze(1), start)
        positions = places - num_labels  # labels have none
        located = model.backbone.positions(positions.clamp(min=0))
        embeds = embeds + located.masked_fill((positions < 0).unsqueeze(-1), 0)

        parts = (inputs[name].flatten(0, 1) for name in self.cached)
        cache = replace(map_cache(lambda _: next(parts), self.cache), cache_length=length)
        options = dict(cache=cache, cache_age=0, return_hiddens=True)  # 0: all that are given
        outputs, cache = model.backbone.decoder(embeds.flatten(0, 1), **options)
        z = outputs[:, -1].unflatten(0, (-1, self.num_readings))
        state = []
        map_cache(lambda part: state.append(part.unflatten(0, (-1, self.num_readings))), cache)
        if model.recent is not None:
            last = torch.cat((inputs["recent"], tokens), dim=1)[:, -model.recent.count :]
            z = z + model.recent.after(last).unsqueeze(1)
            state.append(last)
        ends = [] if model.end_head is None else [model.end_head.log_odds(z[:, 0]).sigmoid()]
        return self._token(z, positions[-1:], inputs), *ends, *state

    def _start(self, inputs: dict[str, Tensor], batch: int) -> Tensor:
        """The embeddings before the first token, (b r n dim), of r readings."""
        start = self.model.start(batch).unsqueeze(1).expand(-1, self.num_readings, -1, -1)
        if "labels" not in inputs:
            return start
        labels = inputs["labels"].unsqueeze(1)
        if self.num_readings == 2:
            null = torch.full_like(labels, self.model.conditioning.num_classes)
            labels = torch.cat((labels, null), dim=1)
        return torch.cat((self.model.conditioning.label_embeds[labels], start), dim=2)

    def _token(self, z: Tensor, index: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The token (b d) after `index` others, (1,), from its conditions (b r dim)."""
        model, guidance = self.model, []
        if self.num_readings == 2:
            scale = inputs["guidance_scale"].unsqueeze(-1)
            if self.guidance.schedule == "linear":
                progress = (index + 1) / model.max_seq_len
                scale = torch.lerp(torch.ones_like(scale), scale, progress.to(scale.dtype))
            guidance.append((z[:, 1], scale, self.guidance.interval))
        if self.context_guidance != 1:
            scale = torch.tensor(self.context_guidance)
            if not model.conditioning.is_conditional:
                # before the first token there is no context; a scale of 1 changes nothing
                scale = torch.where(index > 0, scale, 1.0)
            guidance.append((model.no_context(index)[0], scale, (0.0, inf)))
        z = z[:, 0]
        if self.guidance_target == "conditions":
            for other, scale, _ in guidance:
                z = torch.lerp(other.expand_as(z), z, scale)
            guidance = []
        others, scales, intervals = ([entry[i] for entry in guidance] for i in range(3))
        noises = iter(inputs["noise"].unbind(1))
        modulations = self.sampler.modulations(z, others)
        tokens = self.sampler.draw(modulations, scales, intervals, lambda: next(noises))
        return model.normalization.inverse(model.normalization.constrain(tokens))


def check_model(model: Module, tokenizer: Module | None) -> None:
    """Whether there can be a program of a model.

    Raises:
        ValueError: there cannot; says which models there can be one of.
    """
    can = "a program can be of models in raster order"
    if not isinstance(model, Autoregressive) or model.order != "raster":
        order = getattr(model, "order", type(model).__name__)
        raise ValueError(f"{can}, this one draws in {order} order")
    if tokenizer is not None and not isinstance(tokenizer, Patches):
        raise ValueError(f"{can}, of pixels or of sequences; this one needs its autoencoder")
    if model.conditioning.dim_cond is not None:
        raise ValueError(f"{can}, with labels or without; this one takes vectors, dim_cond")
    if not model.backbone.can_cache:
        raise ValueError(f"{can} with a key/value cache; decoder_kwargs make this one without")
    for name in ("normalization", "end_head"):
        part = getattr(model, name)
        if isinstance(part, MeasuredModule) and not part.is_measured:
            raise ValueError(f"{can} that are trained; {name} of this one has measured no data")
    if not isinstance(model.head.sampler(), Sampler):
        able = "diffusion, flow, flow_map and energy, and others that draw by a Sampler"
        raise ValueError(f"{can} and heads {able}; this one has {type(model.head).__name__}")
