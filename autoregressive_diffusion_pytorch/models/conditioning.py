"""Conditioning on labels and vectors: embeddings for the transformer, and their dropout.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Module

from ..utils.validation import as_mask, as_tensor, as_whole_numbers, check_positive_int, check_share


class Conditioning(Module):
    """Embeddings of labels and vectors, read before the tokens or by cross-attention.

    In training, the condition of a sequence is dropped with a probability, all of it at once, so
    that one model learns the conditional and the unconditional distribution.

    Args:
        dim: width of the transformer.
        num_classes: number of labels, none by default.
        dim_cond: width of the vectors, none by default. They get no positional encoding: where
            their order matters, the vectors must hold it, as those of a text encoder do.
        num_cond_tokens: learned embeddings of each label.
        cross_attend: vectors are read by cross-attention; by default before the tokens, as labels
            always are.
        cond_drop_prob: probability, at least 0 and below 1, of dropping a sequence's condition.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        num_cond_tokens: int = 4,
        cross_attend: bool = False,
        cond_drop_prob: float = 0.1,
    ):
        super().__init__()
        sizes = dict(num_cond_tokens=num_cond_tokens, num_classes=num_classes, dim_cond=dim_cond)
        check_positive_int(**{name: size for name, size in sizes.items() if size is not None})
        check_share(cond_drop_prob=cond_drop_prob)
        if cross_attend and dim_cond is None:
            raise ValueError(
                "cross_attend = True needs dim_cond, the width of the vectors to attend to"
            )
        self.num_classes = num_classes
        self.dim_cond = dim_cond
        self.cross_attend = cross_attend
        self.cond_drop_prob = cond_drop_prob
        # all with the std of embedded tokens, as the positions are
        if num_classes is not None:
            # the last is the null condition
            shape = (num_classes + 1, num_cond_tokens, dim)
            self.label_embeds = nn.Parameter(torch.randn(shape) * 0.5)
        if dim_cond is not None:
            self.proj_cond = nn.Linear(dim_cond, dim)
            self.no_cond = nn.Parameter(torch.randn(dim) * 0.5)

    @property
    def is_conditional(self) -> bool:
        return self.num_classes is not None or self.dim_cond is not None

    def check(
        self,
        labels: Tensor | Sequence[int] | int | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is given, as tensors (m …) on the device of the weights, ready for `forward`.

        Raises:
            ValueError, TypeError: if something is missing, of a wrong shape or range, or nothing
                that this model takes.
        """
        conditions = {}
        if self.num_classes is not None:
            conditions["labels"] = self._check_labels(labels)
        elif labels is not None:
            raise ValueError(
                "labels are given to a model without classes: num_classes makes one with them"
            )
        if self.dim_cond is not None:
            conditions |= self._check_vectors(cond, cond_mask)
        elif cond is not None or cond_mask is not None:
            raise ValueError(
                "cond is given to a model that takes no vectors: dim_cond makes one that does"
            )
        return conditions

    def _check_labels(self, labels: Tensor | Sequence[int] | int | None) -> Tensor:
        if labels is None:
            raise ValueError(
                f"labels are missing: the model was made with num_classes = {self.num_classes}"
            )
        labels = torch.atleast_1d(as_whole_numbers("labels", labels, 0, self.num_classes - 1))
        if labels.ndim != 1 or len(labels) < 1:
            raise ValueError(f"labels must be of shape (b,) with b >= 1, got {tuple(labels.shape)}")
        return labels.to(self.label_embeds.device)

    def _check_vectors(self, cond: Tensor | None, cond_mask: Tensor | None) -> dict[str, Tensor]:
        if cond is None:
            raise ValueError(f"cond is missing: the model was made with dim_cond = {self.dim_cond}")
        cond = as_tensor("cond", cond)
        if not cond.is_floating_point():
            raise TypeError(f"cond must hold real numbers, got {cond.dtype}")
        if cond.ndim not in (2, 3) or cond.shape[-1] != self.dim_cond or 0 in cond.shape:
            raise ValueError(
                f"cond must be of shape (b {self.dim_cond}) or (b m {self.dim_cond}), "
                f"got {tuple(cond.shape)}"
            )
        weight = self.proj_cond.weight
        conditions = dict(cond=cond.to(weight.device, weight.dtype))
        if cond_mask is not None:
            cond_mask = as_mask("cond_mask", cond_mask, "vectors to read")
            if cond_mask.shape != cond.shape[:-1] or cond_mask.ndim != 2:
                raise ValueError(
                    f"cond_mask must be of shape (b m) for a cond of shape (b m {self.dim_cond}), "
                    f"got {tuple(cond_mask.shape)} for {tuple(cond.shape)}"
                )
            conditions["cond_mask"] = cond_mask.to(weight.device)
        return conditions

    def draw_dropped(self, batch_size: int) -> Tensor | None:
        """Which sequences (b,) of a training batch lose their condition; None for none."""
        if not (self.training and self.is_conditional and self.cond_drop_prob > 0):
            return None
        device = next(self.parameters()).device
        return torch.rand(batch_size, device=device) < self.cond_drop_prob

    def forward(
        self,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Embeddings for the transformer.

        Args:
            labels: (b,), if the model has classes; may be None where all are dropped.
            cond: vectors (b dim_cond), or sequences of them (b m dim_cond), if the model takes
                them; None as of `labels`.
            cond_mask: (b m), True for the vectors to read. A sequence without any is as if dropped.
            dropped: (b,), True for sequences that get the null condition.

        Returns:
            Of `prefix` (b p dim), `prefix_mask` (b p), `memory` (b m dim) and `memory_mask` (b m)
            those that there are. The masks are True for what to read; without one it is all.
        """
        embeds, mask = None, None
        if self.dim_cond is not None:
            embeds, mask = self._embed_vectors(cond, cond_mask, dropped)
        condition = {}
        if embeds is not None and self.cross_attend:
            condition = dict(memory=embeds, memory_mask=mask)
        elif embeds is not None:
            condition = dict(prefix=embeds, prefix_mask=mask)
        if self.num_classes is not None:
            label_embeds = self._embed_labels(labels, dropped)
            if "prefix" in condition:
                condition["prefix"] = torch.cat((embeds, label_embeds), dim=1)
                if mask is not None:
                    label_mask = mask.new_ones(label_embeds.shape[:2])
                    condition["prefix_mask"] = torch.cat((mask, label_mask), dim=1)
            else:
                condition["prefix"] = label_embeds
        return {name: value for name, value in condition.items() if value is not None}

    def _embed_labels(self, labels: Tensor | None, dropped: Tensor | None) -> Tensor:
        if labels is None:
            labels = dropped.new_zeros(len(dropped), dtype=torch.long)
        if dropped is not None:
            labels = labels.masked_fill(dropped, self.num_classes)
        return self.label_embeds[labels]

    def _embed_vectors(
        self, cond: Tensor | None, cond_mask: Tensor | None, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if cond is None:
            cond = self.no_cond.new_zeros(len(dropped), 1, self.dim_cond)
        cond = cond.unsqueeze(1) if cond.ndim == 2 else cond
        masked = cond.shape[1] > 1 and not (cond_mask is None and dropped is None)
        mask = cond_mask
        if mask is None:
            mask = cond.new_ones(cond.shape[:2], dtype=torch.bool)
        if dropped is not None:
            mask = mask & ~dropped.unsqueeze(1)
        # those to read come last, next to the tokens: padding must not move them away
        order = mask.byte().argsort(dim=1, stable=True)
        mask = mask.gather(1, order)
        cond = cond.gather(1, order.unsqueeze(-1).expand_as(cond))
        embeds = self.proj_cond(cond.masked_fill(~mask.unsqueeze(-1), 0))
        # where there is nothing to read, the last is the null condition. (It is in the graph of
        # every batch: distributed training waits for the gradients of all parameters)
        nothing = torch.zeros_like(mask)
        nothing[:, -1] = ~mask.any(dim=1)
        embeds = torch.where(nothing.unsqueeze(-1), self.no_cond, embeds)
        return embeds, mask | nothing if masked else None
