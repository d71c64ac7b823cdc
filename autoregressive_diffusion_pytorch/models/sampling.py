"""What models of sequences offer to draw with: `sample`, `stream` and `fill`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from .ends import EndHead
from .generation import Generation
from .orders import Order, OrderLike
from .readings import Reading
from .regions import Regions
from .settings import GenerationSettings, with_sampling_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import SamplingOptions


class GenerationMixin(ABC):
    """Draws sequences with what a subclass has learned."""

    generation = GenerationSettings()
    draws_any_order: bool  # or else one token after the other, in raster order
    end_head: EndHead | None  # of a model that predicts where sequences end

    @with_sampling_options
    def sample(
        self,
        batch_size: int | None = None,
        prompt: Tensor | None = None,
        *,
        seq_len: int | None = None,
        min_seq_len: int | None = None,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws sequences, one token after the other, or several at a time.

        Args:
            batch_size: how many sequences; by default as many as there are prompts, labels, vectors
                or guidance scales. Where m prompts, labels or vectors are given, a multiple of m:
                each serves as many sequences, one after the other, that share the work of reading
                it. A single one serves all.
            prompt: first tokens (m n d), n at most `seq_len`: they come back untouched, at the
                start of the result.
            seq_len: tokens to draw, with the prompt; by default `max_seq_len`. Of a model that
                predicts ends, at most so many.
            min_seq_len: of such a model, the least number of tokens, with the prompt; by default 1.
            progress: show a progress bar over the iterations.
            options: as of `SamplingOptions`, and further ones of the head. What is not given is as
                of `generation`, by default as learned.

        Returns:
            Tokens (b n d), the prompt's first, in single precision or the weights', whichever is
            higher. Of a model that predicts ends, a pair: tokens, n the longest length, with zeros
            after the end; and the lengths (b,).
        """
        lengths = dict(seq_len=seq_len, min_seq_len=min_seq_len)
        tokens = Generation(self, batch_size, options, prompt=prompt, **lengths)
        seq = tokens.run(progress)
        return seq if self.end_head is None else (seq[:, : int(tokens.lens.max())], tokens.lens)

    @with_sampling_options
    def stream(
        self,
        batch_size: int | None = None,
        prompt: Tensor | None = None,
        *,
        seq_len: int | None = None,
        min_seq_len: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor] | Iterator[tuple[Tensor, Tensor]]:
        """What `sample` draws after the prompt, as soon as it is drawn.

        In raster order the tokens, each (b d). Of a model that predicts ends, pairs of the tokens
        and which sequences have ended before them, (b,); it stops when all have. Of models that
        draw in any order, pairs of positions (b k) and their tokens (b k d), one pair an iteration.
        Arguments as of `sample`.
        """
        lengths = dict(seq_len=seq_len, min_seq_len=min_seq_len)
        tokens = Generation(self, batch_size, options, prompt=prompt, **lengths)
        if self.draws_any_order:
            return iter(tokens)
        if self.end_head is None:
            return (one.squeeze(1) for _, one in tokens)
        return ((one.squeeze(1), tokens.lens <= at[:, 0]) for at, one in tokens)

    @with_sampling_options
    def fill(
        self,
        seq: Tensor,
        mask: Tensor,
        *,
        num_completions: int = 1,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws anew the tokens that a mask marks; the others come back untouched.

        Args:
            seq: tokens (b n d); those under the mask are not read.
            mask: True for the tokens to draw, (b n), or (n,) for all sequences.
            num_completions: of each sequence, one after the other.
            progress: show a progress bar over the iterations.
            options: as of `sample`; labels and vectors are one for all or one for each sequence.

        Returns:
            Tokens (b · num_completions, n d).

        Raises:
            TypeError: the model draws in raster order alone.
        """
        self.check_tokens("seq", seq)
        return Regions(self, seq, mask, num_completions, options).run(progress)

    @abstractmethod
    def reading(
        self,
        order: Tensor,
        prompt: Tensor,
        condition: dict[str, Tensor],
        times: int,
        transformer: Callable,
    ) -> Reading:
        """What gives a `Generation` its conditions. Arguments as of `Reading`."""

    @property
    @abstractmethod
    def transformer(self) -> Callable:
        """The function of the backbone that a `Reading` calls; it may be compiled."""

    @abstractmethod
    def order_of(
        self, length: int, known: Tensor, order: OrderLike | None, num_iterations: int | None
    ) -> Order:
        """How `length` tokens are drawn. Arguments as of `Order`, None for the model's own."""
