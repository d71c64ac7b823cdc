"""Drawing a part of images anew: below some rows, or in any region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..utils.validation import check_positive_int
from .generation import Generation
from .orders import repeated
from .regions import PixelRegion, Regions, fill_canvas, number_of_completed
from .settings import with_sampling_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .sequence_model import SequenceModel
    from .settings import SamplingOptions
    from .tokenizers import Tokenizer


class CompletionMixin:
    """`complete` and `fill` of a model of images."""

    tokenizer: Tokenizer
    model: SequenceModel
    image_size: tuple[int, int]

    @with_sampling_options
    def complete(
        self,
        images: Tensor,
        keep_rows: int,
        *,
        num_completions: int = 1,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws anew what lies below the first rows of images.

        Args:
            images: (b c h w) with values in [0, 1]; one serves several labels or vectors.
            keep_rows: rows of pixels to keep, from 0 to the height, a multiple of the height of a
                token in pixels. They come back untouched, and the others are not read.
            num_completions: of each image with its label and vectors, one after the other; they
                share the work of reading it.
            progress: show a progress bar over the tokens.
            options: as of `sample`; `labels` and `cond` are one for all images or one for each.

        Returns:
            Images (b · num_completions, c h w).
        """
        generation, finish = self._completion(images, keep_rows, num_completions, options)
        return finish(generation.run(progress))

    @with_sampling_options
    def stream_complete(
        self,
        images: Tensor,
        keep_rows: int,
        *,
        num_completions: int = 1,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor]:
        """The images of `complete` after each iteration; grey where nothing is drawn yet."""
        generation, finish = self._completion(images, keep_rows, num_completions, options)
        return map(finish, generation.growing())

    def _completion(
        self, images: Tensor, keep_rows: int, num_completions: int, options: dict[str, Any]
    ) -> tuple[Generation, Callable[[Tensor], Tensor]]:
        """What draws the tokens of `complete`, and makes images of them."""
        self.tokenizer.check_images(images)
        check_positive_int(num_completions=num_completions)
        height, cell = self.image_size[0], self.tokenizer.cell[0]
        if type(keep_rows) is not int or not 0 <= keep_rows <= height or keep_rows % cell:
            raise ValueError(
                f"keep_rows must be a multiple of the patch height {cell} from 0 to {height}, "
                f"got {keep_rows!r}"
            )
        count = number_of_completed(images, options)
        kept = images[:, :, :keep_rows].detach()
        self.tokenizer.check_range(kept)
        prompt = self.tokenizer.encode_rows(kept)
        count *= num_completions
        # one image serves several scales
        batch_size = None if count == 1 else count
        generation = Generation(self.model, batch_size, options, prompt=prompt)

        def finish(tokens: Tensor) -> Tensor:
            completed = self.tokenizer.decode(tokens)
            # as they were: to tokens and back is not exact
            completed[:, :, :keep_rows] = repeated(kept, len(completed))
            return completed

        return generation, finish

    @with_sampling_options
    def fill(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        num_completions: int = 1,
        whole_patches: bool = False,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws anew the region of images that a mask marks, by a model that draws in any order.

        Patches are drawn as a whole, those that the mask cuts too, without reading what it leaves
        of them.

        Args:
            images: (b c h w) with values in [0, 1]; one serves several labels or vectors. What the
                mask marks is not read. They may be larger than the model's, by whole tokens: then
                windows are filled one after the other, that first of which most is known.
            mask: True for the pixels to draw, (h w), or (b h w) of images of the model's size.
            num_completions: of each image with its label and vectors, one after the other.
            whole_patches: patches that the mask cuts are taken from the drawing as a whole; by
                default their other pixels come back untouched, as all others do. Of a model with an
                autoencoder, what a token shows.
            progress: show a progress bar over the iterations.
            options: as of `sample`; `labels` and `cond` are one for all images or one for each.

        Returns:
            Images (b · num_completions, c h w).

        Raises:
            TypeError: the model draws in raster order alone.
        """
        given = dict(num_completions=num_completions, whole_patches=whole_patches)
        if images.shape[-2:] != self.image_size and self.tokenizer.fits_on(images):
            given |= dict(progress=progress, **options)
            return fill_canvas(self.fill, self.tokenizer, images, mask, **given)
        regions, finish = self._filling(images, mask, options, **given)
        return finish(regions.run(progress))

    @with_sampling_options
    def stream_fill(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        num_completions: int = 1,
        whole_patches: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor]:
        """The images of `fill` after each iteration; grey where nothing is drawn yet.

        Of images of the model's size, whose masks mark as many tokens.
        """
        given = dict(num_completions=num_completions, whole_patches=whole_patches)
        regions, finish = self._filling(images, mask, options, **given)
        return map(finish, regions.growing())

    def _filling(
        self,
        images: Tensor,
        mask: Tensor,
        options: dict[str, Any],
        num_completions: int,
        whole_patches: bool,
    ) -> tuple[Regions, Callable[[Tensor], Tensor]]:
        """What draws the tokens of `fill`, and makes images of them."""
        self.tokenizer.check_images(images)
        region = PixelRegion(self.tokenizer, images, mask, whole_patches)
        count = number_of_completed(images, options)
        tokens, drawn = (repeated(x, count) for x in (region.tokens, region.drawn))
        regions = Regions(self.model, tokens, drawn, num_completions, options)
        return regions, lambda tokens: region.paste(self.tokenizer.decode(tokens))
