"""What was tried and left out of the library, for `configurations.py`.

Functions of an image model and its dataset that give a changed model, and `muon`, which changes a
trainer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.optim import AdamW

from autoregressive_diffusion_pytorch import MLP, ImageTrainer
from autoregressive_diffusion_pytorch.models.image import ImageAutoregressive
from autoregressive_diffusion_pytorch.models.positions import AxialPositions
from autoregressive_diffusion_pytorch.models.tokenizers import patchify


def plain_positions(model: ImageAutoregressive, dataset) -> Module:
    """One learned embedding for each token, instead of a row's and a column's."""
    backbone = model.model.backbone
    backbone.positions = AxialPositions(model.model.start_token.shape[-1], (backbone.max_seq_len,))
    return model


class RotaryByAxis(Module):
    """Rotations of one half of the pairs of features by the row, and of the other by the column."""

    def __init__(self, dim: int, columns: int):
        super().__init__()
        self.columns = columns
        # a few rows and columns: the slowest turns a little over them
        self.register_buffer("frequencies", 100 ** -(torch.arange(dim // 4) / (dim // 4)))

    def forward(self, positions: Tensor) -> tuple[Tensor, float]:
        positions = positions.reshape(-1, positions.shape[-1])
        by_axis = [
            axis.unsqueeze(-1) * self.frequencies
            for axis in (positions // self.columns, positions % self.columns)
        ]
        return torch.cat(by_axis, dim=-1).repeat_interleave(2, dim=-1), 1.0


def rotary_2d(model: ImageAutoregressive, dataset) -> Module:
    """Rotary positions by rows and columns, of a model whose decoder has those along the
    sequence."""
    decoder = model.model.backbone.decoder
    columns = model.image_size[1] // model.patch_size[1]
    decoder.rotary_pos_emb = RotaryByAxis(2 * len(decoder.rotary_pos_emb.inv_freq), columns)
    return model


class WithPositions(Module):
    """A backbone whose outputs are told their position once more, as before the denoiser of Li et
    al. 2024."""

    def __init__(self, backbone: Module, dim: int):
        super().__init__()
        self.backbone = backbone
        self.positions = AxialPositions(dim, backbone.positions.axis_lengths)
        self.max_seq_len = backbone.max_seq_len

    def forward(self, embeds: Tensor, **kwargs) -> Tensor:
        return self.backbone(embeds, **kwargs) + self.positions(0, embeds.shape[1])

    def step(self, embeds: Tensor, state=None, **kwargs):
        output, state = self.backbone.step(embeds, state, **kwargs)
        return output + self.positions(state.length - 1, state.length), state


def positions_before_head(model: ImageAutoregressive, dataset) -> Module:
    model.model.backbone = WithPositions(model.model.backbone, model.model.start_token.shape[-1])
    return model


class Rescaled(Module):
    """A model of tokens in their principal axes, each divided by a power of its standard deviation;
    1 makes all of one variance."""

    def __init__(self, inner: ImageAutoregressive, dataset, power: float):
        super().__init__()
        self.inner = inner
        self.image_size, self.channels = inner.image_size, inner.channels
        images = torch.stack([dataset[i] for i in range(0, len(dataset), 4)])
        tokens = patchify(images * 2 - 1, inner.patch_size).flatten(0, 1)
        variances, axes = torch.linalg.eigh(tokens.T.cov())
        scales = variances.clamp(min=1e-6) ** (-power / 2)
        # of the standard deviation that the heads are made for, on average
        scales = scales * 0.5 / (scales**2 * variances).mean().sqrt()
        self.register_buffer("mean", tokens.mean(dim=0))
        self.register_buffer("rescale", axes * scales)
        self.register_buffer("restore", (axes / scales).T)

    @property
    def model(self) -> Module:
        return self.inner.model

    def forward(self, images: Tensor) -> Tensor:
        return self.inner.model(
            (patchify(images * 2 - 1, self.inner.patch_size) - self.mean) @ self.rescale
        )

    def sample(self, batch_size: int, **kwargs) -> Tensor:
        tokens = self.inner.model.sample(batch_size, None, seq_len=None, **kwargs)
        return self.inner.tokenizer.decode(tokens @ self.restore + self.mean)


def whitened(model: ImageAutoregressive, dataset) -> Module:
    return Rescaled(model, dataset, power=1.0)


def half_whitened(model: ImageAutoregressive, dataset) -> Module:
    return Rescaled(model, dataset, power=0.5)


class ModulatedByBlock(MLP):
    """A denoiser of three blocks, each with a modulation of its own."""

    NUM_MODULATIONS = 3 * 3 + 2

    def __init__(self, *args, **kwargs):
        super().__init__(*args, depth=3, **kwargs)
        with torch.no_grad():  # scales start at one
            bias = self.cond_modulation[-1].bias.view(self.NUM_MODULATIONS, -1)
            bias.zero_()
            bias[[1, 4, 7, 10]] = 1

    def denoise(self, noised: Tensor, modulation: Tensor) -> Tensor:
        *of_blocks, last_shift, last_scale = modulation.unbind(dim=-2)
        x = self.proj_in(noised.to(self.dtype))
        for i, block in enumerate(self.blocks):
            x = block(x, *of_blocks[3 * i : 3 * i + 3])
        return self.proj_out(torch.addcmul(last_shift, self.norm_out(x), last_scale))


def modulation_by_block(model: ImageAutoregressive, dataset) -> Module:
    head = model.model.head
    width = head.net.proj_in.out_features
    head.net = ModulatedByBlock(head.dim_z, head.dim_token, width=width)
    return model


class Muon(AdamW):
    """AdamW, but for groups with `orthogonal`: their momentum is made orthogonal by Newton and
    Schulz (Jordan et al. 2024).

    torch's own Muon multiplies in bfloat16, which takes seconds a step on processors without
    instructions for it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group.get("orthogonal"):
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = orthogonalized(weight.grad.lerp(momentum, 0.95))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                # an update of the size of Adam's
                weight.add_(update, alpha=-0.2 * group["lr"] * max(weight.shape) ** 0.5)
                weight.grad = None  # AdamW passes over it
        super().step()


def orthogonalized(matrix: Tensor) -> Tensor:
    x = matrix / matrix.norm().clamp(min=1e-7)
    x = x.T if len(matrix) > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def muon(trainer: ImageTrainer) -> None:
    """Muon for the matrices of layers between others, AdamW for the rest."""
    model = trainer.unwrapped_model
    ends = ("model.proj_in.", "net.proj_in.", "net.proj_out.", "net.time_modulation.0.")
    inner = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(end in f"{name}." for end in ends)
    ]
    others = [
        parameter
        for parameter in model.parameters()
        if all(parameter is not weight for weight in inner)
    ]
    groups = [
        dict(params=inner, orthogonal=True, weight_decay=0.02),
        dict(params=others, weight_decay=0.0),
    ]
    optimizer = Muon(groups, lr=1e-3, betas=(0.9, 0.99))
    trainer.optimizer = trainer.accelerator.prepare_optimizer(optimizer)


def few_time_features(model: ImageAutoregressive, dataset) -> Module:
    head = model.model.head
    sizes = dict(depth=len(head.net.blocks), width=head.net.proj_in.out_features)

    class Few(MLP):
        NUM_TIME_FEATURES = 64

    head.net = Few(head.dim_z, head.dim_token, **sizes)
    return model


def stratified_times(model: ImageAutoregressive, dataset) -> Module:
    """The draws of a token at times of as many parts of the distribution."""
    head = model.model.head

    class Stratified(type(head)):
        def draw_times(self, like: Tensor) -> Tensor:
            parts = torch.arange(len(like)).view(-1, *(1,) * (like.ndim - 1))
            uniform = (torch.rand_like(like) + parts) / len(like)
            return torch.sigmoid(
                self.logit_mean
                + self.logit_std * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
            )

    head.__class__ = Stratified
    return model
