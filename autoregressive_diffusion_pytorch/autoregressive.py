"""Autoregression over continuous tokens: a causal transformer conditions a generative head, token by token.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization" (https://arxiv.org/abs/2406.11838), the causal
variant: p(x) is the product over i of p(x_i | z_i), z_i = f(x_1 … x_{i-1}) (their eq. 3 for one token at a time).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import Module
from tqdm import tqdm

from autoregressive_diffusion_pytorch.backbone import Backbone
from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads import ElucidatedDiffusion, Head, RectifiedFlow
from autoregressive_diffusion_pytorch.pretrained import Pretrained


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode inside the block; each submodule's own mode after it."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


class Autoregressive(Module, Pretrained):
    """A causal transformer over tokens with a generative head: the model behind `AutoregressiveDiffusion` and its siblings.

    Args:
        dim: width of the transformer, and of the condition it gives the head.
        max_seq_len: longest sequence, in tokens; or a tuple of axis lengths (rows and columns, say) for axial positions.
        depth, dim_head, heads: layers, head width and number of heads of the transformer.
        mlp_depth, mlp_width: blocks and width of the head's denoiser; the width is `dim` by default.
        dim_input: width of a token, `dim` by default.
        decoder_kwargs: further arguments of the x-transformers `Decoder`.
        mlp_kwargs: further arguments of the denoiser, `MLP`.
        head: class of the head.
        head_kwargs: arguments of the head.
    """

    head_argument: str  # the name under which a subclass takes the head's arguments

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
            dim, max_seq_len=max_seq_len, depth=depth, dim_head=dim_head, heads=heads, decoder_kwargs=decoder_kwargs
        )
        self.max_seq_len = self.backbone.max_seq_len
        self.start_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.proj_in = nn.Linear(self.dim_input, dim)
        denoiser = MLP(dim, self.dim_input, depth=mlp_depth, width=width, **(mlp_kwargs or {}))
        self.head = head(denoiser, **(head_kwargs or {}))

    def _resolved_arguments(self) -> dict:
        return {self.head_argument: self.head.config}

    def forward(self, seq: Tensor, *, noised_seq: Tensor | None = None, loss_reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """The loss of sequences.

        Args:
            seq: tokens (b n d), n at most `max_seq_len`.
            noised_seq: what the transformer reads instead of `seq`, of the same shape; the tokens to predict stay those of `seq`.
            loss_reduction: "mean" for one loss, "none" for one a token, (b n).
        """
        check_choice("loss_reduction", loss_reduction, ("mean", "none"))
        self._check_tokens("seq", seq)
        if noised_seq is not None and noised_seq.shape != seq.shape:
            raise ValueError(f"noised_seq must have the shape of seq, {tuple(seq.shape)}, got {tuple(noised_seq.shape)}")
        losses = self.head(seq, self.conditions(seq if noised_seq is None else noised_seq))
        return losses.mean() if loss_reduction == "mean" else losses

    def conditions(self, seq: Tensor) -> Tensor:
        """The vectors (b n dim) that the head draws the tokens of `seq` (b n d) from: the i-th reads the tokens before the i-th."""
        return self.backbone(torch.cat((self._start(len(seq)), self._embed(seq[:, :-1])), dim=1))

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        prompt: Tensor | None = None,
        *,
        num_steps: int | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draws sequences of `max_seq_len` tokens, one token after the other.

        Args:
            batch_size: how many. A single prompt serves them all.
            prompt: first tokens (b m d), m at most `max_seq_len`: they come back untouched, at the start of the result.
            num_steps: steps of the head's sampler for each token; by default the head's own number.
            temperature: factor on the standard deviation of the noise that the head draws; 0 is deterministic.
            generator: source of randomness; by default torch's global one. The same seed gives the same result.
            progress: show a progress bar over the tokens.

        Returns:
            Tokens (b n d), in single precision or the weights', whichever is higher.
        """
        check_positive_int(batch_size=batch_size)
        weight = self.proj_in.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        prompt_length = 0
        if prompt is not None:
            self._check_tokens("prompt", prompt, shortest=0)
            if batch_size != len(prompt) and 1 not in (batch_size, len(prompt)):
                raise ValueError(f"prompt must hold one sequence or batch_size = {batch_size} of them, got {len(prompt)}")
            batch_size = max(batch_size, len(prompt))
            prompt_length = prompt.shape[1]

        seq = torch.empty(batch_size, self.max_seq_len, self.dim_input, device=weight.device, dtype=dtype)
        embeds = self._start(batch_size)
        if prompt_length:
            seq[:, :prompt_length] = prompt
            embeds = torch.cat((embeds, self._embed(seq[:, :prompt_length])), dim=1)

        state = None
        with evaluating(self):
            for i in tqdm(range(prompt_length, self.max_seq_len), desc="tokens", disable=not progress):
                cond, state = self.backbone.step(embeds, state)
                seq[:, i] = self.head.sample(cond, num_steps=num_steps, temperature=temperature, generator=generator)
                embeds = self._embed(seq[:, i : i + 1])
        return seq

    def _start(self, batch_size: int) -> Tensor:
        return self.start_token.expand(batch_size, 1, -1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.proj_in(tokens.to(self.proj_in.weight.dtype))

    def _check_tokens(self, name: str, tokens: Tensor, shortest: int = 1) -> None:
        if not tokens.is_floating_point():
            raise TypeError(f"{name} must hold real numbers, got {tokens.dtype}")
        shape = tuple(tokens.shape)
        if len(shape) != 3 or shape[0] < 1 or not shortest <= shape[1] <= self.max_seq_len or shape[2] != self.dim_input:
            raise ValueError(
                f"{name} must be of shape (b n {self.dim_input}) with b >= 1 and {shortest} <= n <= {self.max_seq_len}, got {shape}"
            )


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
