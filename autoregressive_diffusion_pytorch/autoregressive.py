"""Autoregression over continuous tokens: a causal transformer conditions a generative head, token by token.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization" (https://arxiv.org/abs/2406.11838), the causal
variant: p(x) is the product over i of p(x_i | z_i), z_i = f(x_1 … x_{i-1}) (their eq. 3 for one token at a time).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Module
from tqdm import tqdm

from autoregressive_diffusion_pytorch.backbone import AxialPositions, Backbone, State
from autoregressive_diffusion_pytorch.checks import as_tensor, as_whole_numbers, check_choice, check_positive_int
from autoregressive_diffusion_pytorch.compilation import compiled
from autoregressive_diffusion_pytorch.conditioning import Conditioning, GuidanceSchedule
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.generation import GenerationSettings
from autoregressive_diffusion_pytorch.heads import ElucidatedDiffusion, Guidance, Head, RectifiedFlow
from autoregressive_diffusion_pytorch.heads.guidance import check_context_guidance
from autoregressive_diffusion_pytorch.modes import evaluating, inference
from autoregressive_diffusion_pytorch.pretrained import Pretrained
from autoregressive_diffusion_pytorch.solvers import SOLVERS

PRECISIONS = ("no", "bf16")


@dataclass
class SamplingPlan:
    """The arguments of `Autoregressive.sample`, checked, and the functions that draw."""

    batch_size: int
    contexts: int  # how many different beginnings are read: each serves as many sequences
    seq_len: int
    prompt: Tensor  # one or `contexts` of them, as of the conditions
    conditions: dict[str, Tensor]
    guidance: GuidanceSchedule
    context_guidance: float
    step: Callable
    draw: Callable


class Autoregressive(Module, Pretrained):
    """A causal transformer over tokens with a generative head: the model behind `AutoregressiveDiffusion` and its siblings.

    Args:
        dim: width of the transformer, and of the condition it gives the head.
        max_seq_len: longest sequence, in tokens; or a tuple of axis lengths (rows and columns, say) for axial positions.
        depth, dim_head, heads: layers, head width and number of heads of the transformer.
        mlp_depth, mlp_width: blocks and width of the head's denoiser; the width is `dim` by default.
        dim_input: width of a token, `dim` by default.
        num_classes: number of labels to tell it what to draw, none by default.
        dim_cond: width of vectors to tell it what to draw, none by default. They are best of order 1, and a set: where their order
            matters, they must hold it.
        num_cond_tokens: learned embeddings of each label, read before the tokens.
        cross_attend: vectors are read by cross-attention, and not before the tokens.
        cond_drop_prob: share of the sequences in training that go without labels and vectors; guidance needs some.
        context_drop_prob: share of the tokens in training, at least 0 and below 1, that the head learns without context: all it is
            told is the token's place. `context_guidance` of `sample` needs some.
        decoder_kwargs: further arguments of the x-transformers `Decoder`.
        mlp_kwargs: further arguments of the denoiser, `MLP`.
        head: class of the head.
        head_kwargs: arguments of the head.
    """

    head_argument: str  # the name under which a subclass takes the head's arguments
    generation = GenerationSettings()  # how it draws unless `sample` is told otherwise

    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int | tuple[int, ...],
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 8,
        mlp_depth: int = 3,
        mlp_width: int | None = None,
        dim_input: int | None = None,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        num_cond_tokens: int = 4,
        cross_attend: bool = False,
        cond_drop_prob: float = 0.1,
        context_drop_prob: float = 0.0,
        decoder_kwargs: dict | None = None,
        mlp_kwargs: dict | None = None,
        head: type[Head],
        head_kwargs: dict | None,
    ):
        super().__init__()
        self.dim_input = dim if dim_input is None else dim_input
        width = dim if mlp_width is None else mlp_width
        check_positive_int(
            dim=dim, depth=depth, dim_head=dim_head, heads=heads, mlp_depth=mlp_depth, mlp_width=width, dim_input=self.dim_input
        )
        self.backbone = Backbone(
            dim,
            max_seq_len=max_seq_len,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            cross_attend=cross_attend,
            decoder_kwargs=decoder_kwargs,
        )
        self.max_seq_len = self.backbone.max_seq_len
        self.start_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.proj_in = nn.Linear(self.dim_input, dim)
        self.conditioning = Conditioning(
            dim,
            num_classes=num_classes,
            dim_cond=dim_cond,
            num_cond_tokens=num_cond_tokens,
            cross_attend=cross_attend,
            cond_drop_prob=cond_drop_prob,
        )
        if not 0 <= context_drop_prob < 1:
            raise ValueError(f"context_drop_prob must be at least 0 and below 1, got {context_drop_prob}")
        self.context_drop_prob = context_drop_prob
        if context_drop_prob > 0:
            self.no_context = AxialPositions(dim, self.backbone.positions.axis_lengths)
        denoiser = MLP(dim, self.dim_input, depth=mlp_depth, width=width, **(mlp_kwargs or {}))
        self.head = head(denoiser, **(head_kwargs or {}))

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the transformer's layers and the head's blocks, and computes them again."""
        self.backbone.checkpoint_gradients()
        self.head.net.checkpoint_gradients()

    def _resolved_arguments(self) -> dict:
        return {self.head_argument: self.head.config}

    @classmethod
    def _from_pretrained(cls, **kwargs):
        return super()._from_pretrained(**without_sampling_of_1_0(kwargs, cls.head_argument))

    def forward(
        self,
        seq: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        lens: Tensor | None = None,
        mask: Tensor | None = None,
        noised_seq: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The loss of sequences.

        Args:
            seq: tokens (b n d), n at most `max_seq_len`.
            labels: (b,), from 0 to `num_classes` - 1, of a model with classes.
            cond: vectors (b dim_cond), or sequences of them (b m dim_cond), of a model with `dim_cond`.
            cond_mask: (b m), False for vectors that are padding.
            lens: (b,), the number of tokens of each sequence; what follows them is padding, of any value, and changes nothing.
            mask: (b n), the same as `lens`: True for the tokens, False for the padding after them.
            noised_seq: what the transformer reads instead of `seq`, of the same shape; the tokens to predict stay those of `seq`.
            loss_reduction: "mean" over all tokens for one loss, "none" for one a token, (b n), 0 for padding.
        """
        check_choice("loss_reduction", loss_reduction, ("mean", "none"))
        self._check_tokens("seq", seq)
        if noised_seq is not None and noised_seq.shape != seq.shape:
            raise ValueError(f"noised_seq must have the shape of seq, {tuple(seq.shape)}, got {tuple(noised_seq.shape)}")
        mask = _token_mask(seq, lens, mask)
        read = seq if noised_seq is None else noised_seq
        losses = self._over_tokens(self.head, seq, read, mask, labels=labels, cond=cond, cond_mask=cond_mask)
        return losses.mean() if loss_reduction == "mean" else _padded(losses, mask)

    @torch.no_grad()
    def log_prob(
        self,
        seq: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        lens: Tensor | None = None,
        mask: Tensor | None = None,
        **solver_kwargs,
    ) -> Tensor:
        """The log-density in nats of each token of sequences (b n d) given those before it, (b n); 0 for padding.

        The sum over the tokens is the log-density of the sequence. One pass through the transformer serves all of them.

        Args:
            seq, labels, cond, cond_mask, lens, mask: as of `forward`.
            solver_kwargs: how to integrate, as of `Head.log_prob`.
        """
        self._check_tokens("seq", seq)
        mask = _token_mask(seq, lens, mask)
        with evaluating(list(self.modules())):
            log_prob = partial(self.head.log_prob, **solver_kwargs)
            return _padded(self._over_tokens(log_prob, seq, seq, mask, labels=labels, cond=cond, cond_mask=cond_mask), mask)

    def _over_tokens(self, function: Callable, seq: Tensor, read: Tensor, mask: Tensor | None, **conditions) -> Tensor:
        """`function(tokens, conds)`, one number for each token, of sequences of which the transformer reads `read`.

        For all tokens, (b n); with a mask for those alone that are no padding.
        """
        if mask is not None:
            # a token never reads a later one, so padding needs no mask in the transformer; but a weight of 0 does not undo NaN
            read = read.masked_fill(~mask.unsqueeze(-1), 0)
        conds = self.conditions(read, **conditions)
        places = None
        if self.training and self.context_drop_prob > 0:
            places = self.no_context(0, conds.shape[1]).to(conds.dtype).expand_as(conds)
        if mask is not None:
            # from here on there are the tokens alone: padding costs nothing, and what is random does not depend on it
            seq, conds, places = seq[mask], conds[mask], None if places is None else places[mask]
        if places is not None:
            dropped = torch.rand(conds.shape[:-1], device=conds.device) < self.context_drop_prob
            conds = torch.where(dropped.unsqueeze(-1), places, conds)
        return function(seq, conds)

    def conditions(
        self, seq: Tensor, *, labels: Tensor | None = None, cond: Tensor | None = None, cond_mask: Tensor | None = None
    ) -> Tensor:
        """The vectors (b n dim) that the head draws the tokens of `seq` (b n d) from: the i-th reads the tokens before the i-th.

        Labels and vectors as of `forward`; in training mode they are left out with `cond_drop_prob`.
        """
        conditions = self.conditioning.check(labels, cond, cond_mask)
        for name, given in conditions.items():
            if len(given) != len(seq):
                raise ValueError(f"{name} must be given for each of the {len(seq)} sequences, got {len(given)}")
        condition = self.conditioning(**conditions, dropped=self.conditioning.draw_dropped(len(seq)))
        return self.backbone(torch.cat((self._start(len(seq)), self._embed(seq[:, :-1])), dim=1), **condition)

    def sample(
        self,
        batch_size: int = 1,
        prompt: Tensor | None = None,
        *,
        precision: Literal["no", "bf16"] | None = None,
        progress: bool = False,
        **kwargs,
    ) -> Tensor:
        """Draws sequences, one token after the other.

        Args:
            batch_size: how many sequences. Where m prompts, labels or vectors are given, a multiple of m: each serves as many
                sequences, one after the other, that share the work of reading it. A single one serves all.
            prompt: first tokens (m n d), n at most `seq_len`: they come back untouched, at the start of the result.
            progress: show a progress bar over the tokens.
            labels: what to draw, of a model with classes: (m,), or one number.
            cond: vectors (m dim_cond), or sequences of them (m l dim_cond), of a model with `dim_cond`.
            cond_mask: (m l), False for vectors that are padding.
            guidance_scale: of classifier-free guidance: 0 for the unconditional model (which needs neither labels nor vectors), 1
                for the conditional one, more to follow labels and vectors more closely. One number, or one a sequence, (b,).
            guidance_schedule: "constant", or "linear": growing evenly along the sequence, from about 1 to the scale.
            guidance_interval: two noise levels between which to guide; by default at all.
            context_guidance: of a model with a `context_drop_prob`, at least 0: 1 for the distribution that was learned, more to
                follow more closely all that is drawn already, and labels and vectors too. What the head says of a token is moved
                away from what it says of its place alone. It starts from the result of the other guidance.
            seq_len: tokens to draw, the prompt's included; by default `max_seq_len`.
            precision: "bf16" to draw with weights rounded to bfloat16, faster where there are instructions for it: the solver's
                state stays in single precision. "no", or by default, as the weights are.
            compile: compile the transformer's step and the head's loop with `torch.compile`: minutes at first, faster then. What
                cannot be compiled runs as without, after one warning.
            num_steps, solver, temperature, generator: as of `DenoisingHead.sampler`. The same seed gives the same result.

        Guidance, `num_steps`, `solver` and `temperature` that are not given are those of `generation`, by default those that draw
        from the distribution that was learned.

        Returns:
            Tokens (b n d), the prompt's first, in single precision or the weights', whichever is higher.
        """
        model = self._in_precision(precision)
        plan = model._plan(batch_size, prompt, **kwargs)
        prompt_length = plan.prompt.shape[1]
        seq = plan.prompt.new_empty(plan.batch_size, plan.seq_len, self.dim_input)
        seq[:, :prompt_length] = _repeated(plan.prompt, plan.batch_size)
        total = plan.seq_len - prompt_length
        for i, token in enumerate(tqdm(model._stream(plan), desc="tokens", total=total, disable=not progress), start=prompt_length):
            seq[:, i] = token
        return seq

    def stream(
        self,
        batch_size: int = 1,
        prompt: Tensor | None = None,
        *,
        precision: Literal["no", "bf16"] | None = None,
        **kwargs,
    ) -> Iterator[Tensor]:
        """The tokens that `sample` draws after the prompt, each (b d), as soon as it is drawn. Arguments as of `sample`, but for
        `progress`."""
        model = self._in_precision(precision)
        return model._stream(model._plan(batch_size, prompt, **kwargs))

    def _in_precision(self, precision: str | None) -> Autoregressive:
        """This model, or a copy of it with rounded weights."""
        check_choice("precision", precision, (None, *PRECISIONS))
        if precision != "bf16" or self.proj_in.weight.dtype == torch.bfloat16:
            return self
        return copy.deepcopy(self).bfloat16()

    def _plan(
        self,
        batch_size: int,
        prompt: Tensor | None,
        *,
        labels: Tensor | Sequence[int] | int | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        guidance_scale: float | Sequence[float] | Tensor | None = None,
        guidance_schedule: Literal["constant", "linear"] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        context_guidance: float | None = None,
        num_steps: int | None = None,
        solver: str | None = None,
        temperature: float | None = None,
        seq_len: int | None = None,
        compile: bool = False,
        **sampler_kwargs,
    ) -> SamplingPlan:
        own = self.generation
        num_steps, solver = own.steps_and_solver(num_steps, solver, self.head.solver)
        sampler_kwargs |= dict(
            num_steps=num_steps,
            solver=solver,
            temperature=own.temperature if temperature is None else temperature,
            compile=compile,
        )
        seq_len = self.max_seq_len if seq_len is None else seq_len
        check_positive_int(batch_size=batch_size, seq_len=seq_len)
        if seq_len > self.max_seq_len:
            raise ValueError(f"seq_len must be at most max_seq_len = {self.max_seq_len}, got {seq_len}")
        weight = self.proj_in.weight
        if prompt is None:
            prompt = weight.new_empty(1, 0, self.dim_input)
        self._check_tokens("prompt", prompt, shortest=0, longest=seq_len)
        prompt = prompt.detach().to(weight.device, torch.promote_types(weight.dtype, torch.float32))

        guidance = GuidanceSchedule(
            own.guidance_scale if guidance_scale is None else guidance_scale,
            own.guidance_schedule if guidance_schedule is None else guidance_schedule,
            own.guidance_interval if guidance_interval is None else guidance_interval,
        )
        context_guidance = check_context_guidance(own.context_guidance if context_guidance is None else context_guidance)
        if context_guidance != 1 and self.context_drop_prob == 0:
            raise ValueError(
                "context_guidance other than 1 needs a model that is trained with a context_drop_prob above 0, "
                f"got {context_guidance}"
            )
        draw = self.head.sampler(**sampler_kwargs)
        if not guidance.is_conditional and not self.conditioning.is_conditional:
            raise ValueError("guidance_scale other than 1 needs a model with num_classes or dim_cond")
        if not guidance.is_conditional and self.conditioning.cond_drop_prob == 0:
            raise ValueError("guidance_scale other than 1 needs a model that is trained with a cond_drop_prob above 0")
        conditions = {}
        if not (guidance.is_unconditional and labels is None and cond is None and cond_mask is None):
            conditions = self.conditioning.check(labels, cond, cond_mask)

        given = dict(prompt=prompt, **conditions)
        contexts = max(map(len, given.values()))
        scales = guidance.scale.numel()
        if batch_size == 1:
            batch_size = scales if scales % contexts == 0 else contexts
        for name, tensor in given.items():
            if len(tensor) not in (1, contexts):
                raise ValueError(f"{name} must hold one entry or {contexts}, as another argument does, got {len(tensor)}")
        if batch_size % contexts:
            raise ValueError(
                f"batch_size must be a multiple of {contexts}, the number of prompts, labels or vectors, got {batch_size}"
            )
        if scales not in (1, batch_size):
            raise ValueError(f"guidance_scale must be one number or one for each of {batch_size} sequences, got {scales}")

        # the cache grows from step to step: one program for all lengths
        step = compiled(self.backbone.step, dynamic=True) if compile else self.backbone.step
        return SamplingPlan(batch_size, contexts, seq_len, prompt, conditions, guidance, context_guidance, step, draw)

    def _stream(self, plan: SamplingPlan) -> Iterator[Tensor]:
        modules = list(self.modules())
        guided = not (plan.guidance.is_conditional or plan.guidance.is_unconditional)
        scales = plan.guidance.scales(plan.seq_len)
        places = self.no_context(0, plan.seq_len).detach() if plan.context_guidance != 1 else None
        token, state = None, None
        for i in range(plan.prompt.shape[1], plan.seq_len):
            with inference(modules):
                if token is None:
                    z, state = self._first_step(plan, guided)
                else:
                    embeds = self._embed(token.unsqueeze(1))
                    z, state = plan.step(torch.cat((embeds, embeds)) if guided else embeds, state)
                guidance = []
                if guided:
                    z, unconditional = z.chunk(2)
                    guidance.append(Guidance(unconditional, scales[i], plan.guidance.interval))
                # before an unconditional first token there is no context: its place is all that there is to know
                if places is not None and (i > 0 or self.conditioning.is_conditional):
                    guidance.append(Guidance(places[i], plan.context_guidance))
                token = plan.draw(z, guidance)
            yield token.clone()  # no tensor of this block's inference mode: it can be trained on

    def _first_step(self, plan: SamplingPlan, guided: bool) -> tuple[Tensor, State]:
        """Reads conditions and prompts, each only once, and gives what follows for all sequences.

        If guided, first all sequences with their condition, then all of them without.
        """
        prompt = _repeated(plan.prompt, plan.contexts)
        conditions = {name: _repeated(given, plan.contexts) for name, given in plan.conditions.items()}
        device = prompt.device
        dropped = None
        if guided:
            prompt = torch.cat((prompt, prompt))
            conditions = {name: torch.cat((given, given)) for name, given in conditions.items()}
            dropped = torch.arange(len(prompt), device=device) >= plan.contexts
        elif plan.guidance.is_unconditional:
            conditions = {}
            dropped = torch.ones(plan.contexts, dtype=torch.bool, device=device)
        condition = self.conditioning(**conditions, dropped=dropped)
        embeds = torch.cat((self._start(len(prompt)), self._embed(prompt)), dim=1)
        cond, state = self.backbone.step(embeds, **condition)
        times = plan.batch_size // plan.contexts
        return (cond, state) if times == 1 else (cond.repeat_interleave(times, dim=0), state.repeat(times))

    def _start(self, batch_size: int) -> Tensor:
        return self.start_token.expand(batch_size, 1, -1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.proj_in(tokens.to(self.proj_in.weight.dtype))

    def _check_tokens(self, name: str, tokens: Tensor, shortest: int = 1, longest: int | None = None) -> None:
        longest = self.max_seq_len if longest is None else longest
        if not tokens.is_floating_point():
            raise TypeError(f"{name} must hold real numbers, got {tokens.dtype}")
        shape = tuple(tokens.shape)
        if len(shape) != 3 or shape[0] < 1 or not shortest <= shape[1] <= longest or shape[2] != self.dim_input:
            raise ValueError(
                f"{name} must be of shape (b n {self.dim_input}) with b >= 1 and {shortest} <= n <= {longest}, got {shape}"
            )


def _repeated(tensor: Tensor, batch_size: int) -> Tensor:
    """(m …) to (b …): each of the m as often as it takes, one after the other."""
    return tensor.repeat_interleave(batch_size // len(tensor), dim=0)


def _padded(values: Tensor, mask: Tensor | None) -> Tensor:
    """What `Autoregressive._over_tokens` gives, (b n), with 0 for padding."""
    return values if mask is None else values.new_zeros(mask.shape).masked_scatter(mask, values)


def _token_mask(seq: Tensor, lens: Tensor | Sequence[int] | None, mask: Tensor | None) -> Tensor | None:
    """The mask (b n) of tokens of sequences (b n d), given as lengths or as such a mask."""
    batch_size, length = seq.shape[:2]
    if lens is not None and mask is not None:
        raise ValueError("lens and mask say the same: expected one of them, got both")
    if lens is not None:
        lens = as_whole_numbers("lens", lens, 1, length).to(seq.device)
        if lens.shape != (batch_size,):
            raise ValueError(f"lens must be of shape ({batch_size},), got {tuple(lens.shape)}")
        return torch.arange(length, device=seq.device) < lens.unsqueeze(1)
    if mask is not None:
        mask = as_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must hold booleans, True for tokens, got {mask.dtype}")
        if mask.shape != (batch_size, length):
            raise ValueError(f"mask must be of shape ({batch_size}, {length}), got {tuple(mask.shape)}")
        mask = mask.to(seq.device)
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "mask must be True for the first tokens of each sequence, at least one, and False for the padding after them"
            )
    return mask


class AutoregressiveDiffusion(Autoregressive):
    """Autoregression with a diffusion head. Arguments as of `Autoregressive`; `diffusion_kwargs` go to `ElucidatedDiffusion`."""

    head_argument = "diffusion_kwargs"

    def __init__(self, dim: int, *, diffusion_kwargs: dict | None = None, **kwargs):
        super().__init__(dim, head=ElucidatedDiffusion, head_kwargs=diffusion_kwargs, **kwargs)


class AutoregressiveFlow(Autoregressive):
    """Autoregression with a flow head. Arguments as of `Autoregressive`; `flow_kwargs` go to `RectifiedFlow`."""

    head_argument = "flow_kwargs"

    def __init__(self, dim: int, *, flow_kwargs: dict | None = None, model_output_clean: bool = True, **kwargs):
        super().__init__(
            dim, head=RectifiedFlow, head_kwargs=dict(model_output_clean=model_output_clean) | (flow_kwargs or {}), **kwargs
        )


def without_sampling_of_1_0(arguments: dict, head_argument: str) -> dict:
    """Arguments of a saved sequence model, without those of the sampler that version 1.0.0 stored among them."""
    arguments = {name: value for name, value in arguments.items() if name != "context_guidance"}
    head = dict(arguments.get(head_argument) or {})
    if isinstance(head.get("num_sample_steps"), dict):
        head |= dict(num_sample_steps=None, clamp_during_sampling=bool(head["clamp_during_sampling"]))
        head["solver"] = head["solver"] if head["solver"] in SOLVERS else None
    return arguments | {head_argument: head}
