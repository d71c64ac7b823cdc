"""Training an autoencoder of diffusers on images, whose latents a model of tokens can learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.image_grids import save_image_grid
from ..data.items import TrainingItems
from ..data.order import batches_of
from ..models.latents import need_diffusers
from ..utils.modes import evaluating
from ..utils.validation import check_choice, check_positive_int
from .loop import TrainingLoop
from .samples import Results
from .together import by_main
from .trainer import Trainer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MEASURED_IMAGES = 1024  # for the scale of the latents
SHOWN_IMAGES = 12
FACTORS = (2, 4, 8, 16, 32)
WIDEST = 8  # times the width of the first level
GROUP_NORMS = 8


def make_autoencoder(
    *, image_size: int, channels: int, latent_channels: int, factor: int, width: int
) -> AutoencoderKL:
    """An untrained `AutoencoderKL` without attention, of a size for one machine.

    Args:
        image_size: height and width of the images to train on; it must be a multiple of `factor`.
            Without attention the result takes others, too.
        channels, latent_channels: of images and latents.
        factor: how many times smaller latents are than images, along each side.
        width: channels at the size of the image; each halving doubles them, up to `WIDEST` times.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
        ValueError: of an argument.
    """
    check_positive_int(channels=channels, latent_channels=latent_channels, width=width)
    check_choice("factor", factor, FACTORS)
    if image_size % factor:
        raise ValueError(f"image_size must be a multiple of factor {factor}, got {image_size}")
    need_diffusers()
    from diffusers import AutoencoderKL

    levels = factor.bit_length()
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=tuple(width * min(2**i, WIDEST) for i in range(levels)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=math.gcd(width, GROUP_NORMS),
        mid_block_add_attention=False,
        sample_size=image_size,
    )


class AutoencoderLoss(Module):
    """The loss of an autoencoder: the mean absolute error, and a weight times the KL divergence.

    The KL divergence of the posterior from a standard Gaussian is in nats per value of the image:
    so its weight is that of Rombach et al. 2022 (https://arxiv.org/abs/2112.10752, appendix G),
    who sum both over the image.

    Args:
        autoencoder: its images have values in [-1, 1].
        kl_weight: of the divergence.
    """

    def __init__(self, autoencoder: AutoencoderKL, kl_weight: float):
        super().__init__()
        self.autoencoder = autoencoder
        self.kl_weight = kl_weight
        self._metrics: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The loss of images (b c h w) with values in [0, 1]."""
        images = images * 2 - 1
        posterior = self.autoencoder.encode(images).latent_dist
        # in single precision: of bfloat16 the sum over the latents would lose digits
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        decoded = self.autoencoder.decode(latents.to(posterior.mean.dtype)).sample.float()
        error = (decoded - images).abs().mean()
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        nats = nats / images.numel()
        self._metrics = dict(absolute_error=error.detach(), kl_per_value=nats.detach())
        return error + self.kl_weight * nats

    def metrics(self) -> dict[str, Tensor]:
        """The two parts of the last loss."""
        return self._metrics


@torch.no_grad()
def reconstruct(autoencoder: Module, images: Tensor) -> Tensor:
    """Images (b c h w) in [0, 1] through the mean of their posterior."""
    latents = autoencoder.encode(images * 2 - 1).latent_dist.mode()
    return (autoencoder.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of each pair of images (b c h w) in [0, 1]: (b)."""
    return -10 * (images - others).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()


class ReconstructionGrids(Results):
    """Writes grids of images every some steps and at the end, and below each what it decodes to.

    Args:
        folder, every: as of `Results`.
        dataset: whose first images are shown, spread evenly.
    """

    what, ending = "the grid", ".png"

    def __init__(self, folder: Path, every: int, dataset: TrainingItems):
        super().__init__(folder, every)
        count = min(SHOWN_IMAGES, len(dataset))
        self.dataset = dataset
        self.shown = [i * len(dataset) // count for i in range(count)]

    def save(self, trainer: TrainingLoop) -> None:
        """Writes the grid of the averaged weights, and logs its peak signal-to-noise ratio."""
        (batch,) = batches_of(self.dataset, self.shown, len(self.shown))
        images = trainer.to_device(batch)["images"]
        with trainer.averaged_model() as model:
            made = reconstruct(model.autoencoder, images)
        trainer.log_values(dict(psnr=psnr(images, made).mean().item()))
        both = torch.cat((images, made))
        names = ["image", "decoded"]
        path, columns = self.path(trainer.step), len(images)
        by_main(trainer.accelerator, lambda: save_image_grid(both, path, columns, names))


class AutoencoderTrainer(Trainer):
    """Trains an autoencoder on images; `trainer()` runs it, `save_autoencoder` writes the result.

    Args:
        autoencoder: as of `make_autoencoder`.
        dataset, validation_dataset: of images, as of `ImageTrainer`; labels are not read.
        kl_weight: as of `AutoencoderLoss`.
        results_folder: holds grids of images and what they are decoded to, `results.STEP.png`.
        save_results_every: steps between grids.
        kwargs: as of `Trainer`.
    """

    item = "image"

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        dataset: Dataset,
        validation_dataset: Dataset | None = None,
        kl_weight: float = 1e-6,
        results_folder: str | Path = "./results",
        save_results_every: int = 500,
        **kwargs: Any,
    ):
        size = autoencoder.config.sample_size, autoencoder.config.in_channels
        items = ImagesAlone(dataset, *size)
        held_out = None if validation_dataset is None else ImagesAlone(validation_dataset, *size)
        shown = items if held_out is None else held_out
        self.grids = ReconstructionGrids(Path(results_folder), save_results_every, shown)
        super().__init__(
            AutoencoderLoss(autoencoder, kl_weight),
            dataset=items,
            validation_dataset=held_out,
            **kwargs | dict(parts=[self.grids, *kwargs.get("parts", ())]),
        )

    @torch.no_grad()
    def psnr(self) -> float:
        """The mean peak signal-to-noise ratio in dB of the validation dataset."""
        found = []
        with self.averaged_model() as model:
            for images in self._images(self.validation.dataset, len(self.validation.dataset)):
                found.append(psnr(images, reconstruct(model.autoencoder, images)))
        return torch.cat(found).mean().item()

    def save_autoencoder(self, folder: str | Path) -> None:
        """Writes the averaged autoencoder as diffusers does: config.json and safetensors.

        `shift_factor` and `scaling_factor` are the mean, and one over the std, of the latents of
        training images: with them latents are of unit scale.
        """
        with self.averaged_model() as model:
            autoencoder = model.autoencoder
            shift, scale = self._measure_latents(autoencoder)
            autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
            save = autoencoder.save_pretrained
            by_main(self.accelerator, lambda: save(folder, safe_serialization=True))

    def _measure_latents(self, autoencoder: Module) -> tuple[float, float]:
        means, variances = [], []
        with evaluating(list(autoencoder.modules())):
            for images in self._images(self.dataset, MEASURED_IMAGES):
                posterior = autoencoder.encode(images * 2 - 1).latent_dist
                means.append(posterior.mean.float())
                variances.append(posterior.var.float())
        means, variances = torch.cat(means), torch.cat(variances)
        variance = means.var() + variances.mean()
        return means.mean().item(), variance.rsqrt().item()

    def _images(self, dataset: Dataset, count: int):
        """Batches of `count` images of a dataset, spread evenly."""
        count = min(count, len(dataset))
        indices = [i * len(dataset) // count for i in range(count)]
        for batch in batches_of(dataset, indices, self.batch_size):
            yield self.to_device(batch)["images"]


class ImagesAlone(TrainingItems):
    """The images of a dataset, as dictionaries."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(images=super().__getitem__(index)["images"])
