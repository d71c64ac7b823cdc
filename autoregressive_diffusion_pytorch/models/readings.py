"""How transformers read the tokens that are drawn, and give the conditions of the next ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .orders import repeat, repeat_all

if TYPE_CHECKING:
    from .autoregressive import Autoregressive
    from .backbone import BackboneState
    from .bidirectional import EncoderState
    from .masked import MaskedAutoregressive


class Reading(Protocol):
    """What a transformer has read of some sequences.

    It is made of the model; the order of all positions, (b n), or (1 n) if that is one for all; the
    first tokens in this order (r p d); what the transformer reads beside them; how many sequences
    go on from each prompt; and the model's `transformer`. Guidance reads all sequences twice: then
    r is twice the number of prompts, and there are 2 b conditions.
    """

    def conditions(self, tokens: Tensor | None, count: int) -> Tensor:
        """The conditions z (b k dim) of the next k = `count` tokens in the order.

        Args:
            tokens: those drawn since the last call, (b m d).
        """


class RasterReading:
    """By a causal transformer, whose cache holds all tokens but the last one."""

    def __init__(
        self,
        model: Autoregressive,
        order: Tensor,
        prompt: Tensor,
        condition: dict[str, Tensor],
        times: int,
        step: Callable,
    ):
        self.model, self.step = model, step
        self.prompt, self.condition, self.times = prompt, condition, times
        self.state: BackboneState | None = None
        self.last: Tensor | None = None  # tokens, as many as the model reads directly

    def conditions(self, tokens: Tensor | None, count: int) -> Tensor:
        model = self.model
        if self.state is not None:
            z, self.state = self.step(as_rows(model.embed(tokens), self.rows), self.state)
            return self._with_recent(z, as_rows(tokens, self.rows)).unsqueeze(1)
        # each prompt once, and what follows for all sequences
        embeds = torch.cat((model.start(len(self.prompt)), model.embed(self.prompt)), dim=1)
        z, state = model.backbone.step(embeds, **self.condition)
        self.state = state if self.times == 1 else state.repeat(self.times)
        self.rows = len(z) * self.times
        z = self._with_recent(repeat(z, self.times), repeat(self.prompt, self.times))
        return z.unsqueeze(1)

    def _with_recent(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Adds what the model reads of the last tokens, of which `tokens` (b m d) are new."""
        recent = self.model.recent
        if recent is None:
            return z
        self.last = torch.cat((self.last, tokens), dim=1) if self.last is not None else tokens
        self.last = self.last[:, -recent.count :]
        return z + recent.after(self.last)


class AnyOrderReading:
    """What the readings in any order share: the known tokens at their places."""

    def __init__(
        self,
        model: Autoregressive | MaskedAutoregressive,
        order: Tensor,
        prompt: Tensor,
        condition: dict[str, Tensor],
        times: int,
        transformer: Callable,
    ):
        self.model, self.transformer = model, transformer
        self.prompt, self.condition = repeat(prompt, times), repeat_all(condition, times)
        self.rows = len(self.prompt)
        self.order = as_rows(order, self.rows)
        self.rank = self.order.argsort(dim=1)
        self.canvas = prompt.new_zeros(*self.order.shape, prompt.shape[-1])
        self.num_known = 0

    def add(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """New tokens (b m d) with their positions (b m), those of the prompt at first."""
        tokens = self.prompt if tokens is None else as_rows(tokens, self.rows)
        stop = self.num_known + tokens.shape[1]
        positions = self.order[:, self.num_known : stop]
        write(self.canvas, positions, tokens)
        self.num_known = stop
        return tokens, positions

    def around(self, positions: Tensor, limit: Tensor) -> Tensor:
        """What is known around positions (b m), of the first `limit` (m,) tokens: (b m dim)."""
        limit = limit.expand_as(positions)
        return self.model.neighbours(self.canvas, self.rank, positions, limit)


class RandomReading(AnyOrderReading):
    """By a causal transformer. It reads each token with the position of the next one to be drawn.

    Where several are drawn at once, each has a branch of its own after the last token.
    """

    state: BackboneState | None = None

    def conditions(self, tokens: Tensor | None, count: int) -> Tensor:
        tokens, own = self.add(tokens)
        embeds = self.model.embed(tokens) + self.model.own_positions(own)
        if self.state is None:
            embeds = torch.cat((self.model.start(self.rows), embeds), dim=1)
        # each element tells the token after it: so many are known when that is drawn
        known = torch.arange(self.num_known - embeds.shape[1], self.num_known) + 1
        known = known.to(embeds.device)
        next_positions = self.order[:, known]
        if count == 1:
            embeds = embeds + self.around(next_positions, known)
            return self._step(embeds, next_positions).unsqueeze(1)
        before = embeds[:, :-1]
        if before.shape[1] > 0:
            before = before + self.around(next_positions[:, :-1], known[:-1])
            self._step(before, next_positions[:, :-1])
        branches = self.order[:, self.num_known : self.num_known + count]
        embeds = embeds[:, -1:] + self.around(branches, known[-1:])
        if self.state is None:
            self.condition = repeat_all(self.condition, count)
        else:
            self.state = self.state.repeat(count)
        z = self._step(embeds.flatten(0, 1).unsqueeze(1), branches.reshape(-1, 1))
        self.state = self.state.every(count)  # it goes on from the branch of the first token
        return z.view(self.rows, count, -1)

    def _step(self, embeds: Tensor, positions: Tensor) -> Tensor:
        if self.state is None:
            step = self.model.backbone.step  # the first one is never compiled: it is another one
            z, self.state = step(embeds, positions=positions, **self.condition)
        else:
            z, self.state = self.transformer(embeds, self.state, positions)
        return z


class MaskedReading(AnyOrderReading):
    """By a bidirectional transformer, whose cache holds the known tokens, with mask tokens."""

    state: EncoderState | None = None

    def conditions(self, tokens: Tensor | None, count: int) -> Tensor:
        model = self.model
        tokens, own = self.add(tokens)
        wanted = self.order[:, self.num_known : self.num_known + count]
        known = torch.tensor(self.num_known, device=wanted.device)
        masks = model.mask_token + self.around(wanted, known)
        embeds = torch.cat((model.embed(tokens), masks), dim=1)
        positions = torch.cat((own, wanted), dim=1)
        if self.state is None:
            step = model.backbone.step  # never compiled: it is another one
            condition = model.with_start(self.condition, self.rows)
            z, self.state = step(embeds, tokens.shape[1], positions, **condition)
        else:
            z, self.state = self.transformer(embeds, tokens.shape[1], positions, self.state)
        return z + model.head_positions(wanted)


def as_rows(tensor: Tensor, rows: int) -> Tensor:
    """Sequences (b …), all of them as often as guidance reads them: (rows …)."""
    times = rows // len(tensor)
    return tensor if times == 1 else torch.cat([tensor] * times)


def write(seq: Tensor, positions: Tensor, tokens: Tensor) -> None:
    """Writes tokens (b k d) to positions (b k) of sequences (b n d)."""
    seq.scatter_(1, positions.unsqueeze(-1).expand_as(tokens), tokens)


def take(seq: Tensor, positions: Tensor) -> Tensor:
    """The tokens (b k d) at positions (b k) of sequences (b n d)."""
    return seq.gather(1, positions.unsqueeze(-1).expand(-1, -1, seq.shape[-1]))
