"""Autoregression over continuous tokens: a causal transformer conditions a generative head, token by token.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization" (https://arxiv.org/abs/2406.11838), the causal
variant: p(x) is the product over i of p(x_i | z_i), z_i = f(x_1 … x_{i-1}) (their eq. 3 for one token at a time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Module
from tqdm import tqdm

from autoregressive_diffusion_pytorch.backbone import Backbone
from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.compilation import compiled
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads import ElucidatedDiffusion, Head, RectifiedFlow
from autoregressive_diffusion_pytorch.modes import inference
from autoregressive_diffusion_pytorch.pretrained import Pretrained


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

    def sample(
        self, batch_size: int = 1, prompt: Tensor | None = None, *, compile: bool = False, progress: bool = False, **sampler_kwargs
    ) -> Tensor:
        """Draws sequences of `max_seq_len` tokens, one token after the other.

        Args:
            batch_size: how many. A single prompt serves them all.
            prompt: first tokens (b m d), m at most `max_seq_len`: they come back untouched, at the start of the result.
            compile: compile the transformer's step and the head's loop with `torch.compile`: minutes at first, faster then. What
                cannot be compiled runs as without, after one warning.
            progress: show a progress bar over the tokens.
            sampler_kwargs: `num_steps`, `solver`, `temperature` and `generator`, as of `Head.sampler`. The same seed gives the same
                result.

        Returns:
            Tokens (b n d), in single precision or the weights', whichever is higher.
        """
        prompt, batch_size = self._check_prompt(prompt, batch_size)
        prompt_length = prompt.shape[1]
        seq = prompt.new_empty(batch_size, self.max_seq_len, self.dim_input)
        seq[:, :prompt_length] = prompt
        tokens = self.stream(batch_size, prompt, compile=compile, **sampler_kwargs)
        total = self.max_seq_len - prompt_length
        for i, token in enumerate(tqdm(tokens, desc="tokens", total=total, disable=not progress), start=prompt_length):
            seq[:, i] = token
        return seq

    def stream(
        self, batch_size: int = 1, prompt: Tensor | None = None, *, compile: bool = False, **sampler_kwargs
    ) -> Iterator[Tensor]:
        """The tokens that `sample` draws after the prompt, each (b d), as soon as it is drawn.

        Arguments as of `sample`, but for `progress`.
        """
        prompt, batch_size = self._check_prompt(prompt, batch_size)
        draw = self.head.sampler(compile=compile, **sampler_kwargs)
        step = self.backbone.step
        if compile:
            # the cache grows from step to step: one program for all lengths
            step = compiled(step, dynamic=True)
        return self._stream(batch_size, prompt, step, draw)

    def _stream(self, batch_size: int, prompt: Tensor, step: Callable, draw: Callable) -> Iterator[Tensor]:
        modules = list(self.modules())
        state = None
        with inference(modules):
            embeds = torch.cat((self._start(batch_size), self._embed(prompt).expand(batch_size, -1, -1)), dim=1)
        for _ in range(prompt.shape[1], self.max_seq_len):
            with inference(modules):
                cond, state = step(embeds, state)
                token = draw(cond)
                embeds = self._embed(token.unsqueeze(1))
            yield token.clone()  # no tensor of this block's inference mode: it can be trained on

    def _check_prompt(self, prompt: Tensor | None, batch_size: int) -> tuple[Tensor, int]:
        """The prompt, an empty one for none, in the type of the result, and the number of sequences."""
        check_positive_int(batch_size=batch_size)
        weight = self.proj_in.weight
        if prompt is None:
            prompt = weight.new_empty(1, 0, self.dim_input)
        self._check_tokens("prompt", prompt, shortest=0)
        if batch_size != len(prompt) and 1 not in (batch_size, len(prompt)):
            raise ValueError(f"prompt must hold one sequence or batch_size = {batch_size} of them, got {len(prompt)}")
        prompt = prompt.detach().to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        return prompt, max(batch_size, len(prompt))

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
