"""The energy head: a generator of one evaluation, learned by a strictly proper score.

"Strictly Proper Scoring Rules, Prediction, and Estimation", Gneiting & Raftery 2007, section 4.3
(https://doi.org/10.1198/016214506000001437); for autoregression over continuous tokens Shao et al.
2025 (https://arxiv.org/abs/2505.07812).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, sqrt

import torch
from torch import Tensor, nn

from ..utils.rng import Generators
from ..utils.validation import check_choice, check_int, check_positive_int, check_share
from .guidance import Guidance
from .mlp import MLP
from .sampler import Sampler
from .scale import ScaledHead
from .solvers import Noise

BLOCK = 8  # principal components that are scored together


class EnergyScore(ScaledHead):
    """A network that turns noise and the condition into a token.

    The noise is normal, as wide as a token, and a few fair coins. A coin lets a token jump between
    two modes. A continuous function of normal noise is between them for a part of it, the more the
    less steep it is.

    Training draws some samples per token, and compares them with it by the energy score. That of
    wide tokens alone says little about their single directions: to it the spread of one of d counts
    as 1 / d. So it is mixed with the scores of small blocks of their principal components, which
    are measured once, as `sigma_data` is. Each is proper, and the mixture strictly so.

    The head has no density.

    Args:
        dim_token, dim_z, width, depth, dropout: as of `MLP`, its network.
        num_samples: per token in training, at least 2: the network runs on each.
        block_weight: of the blocks' scores, in [0, 1); the whole token's has the rest. Tokens of
            one block, 8 components, have none.
        num_coins: of the noise of a token, at least 0; no more than a token has entries.
        sigma_data, clamp_during_sampling: as of `DenoisingHead`.
    """

    def __init__(
        self,
        dim_token: int,
        dim_z: int,
        *,
        width: int,
        depth: int,
        dropout: float = 0.0,
        num_samples: int = 4,
        block_weight: float = 0.5,
        num_coins: int = 4,
        sigma_data: float | None = None,
        clamp_during_sampling: bool = False,
    ):
        super().__init__(dim_token, dim_z, sigma_data)
        check_positive_int(num_samples=num_samples)
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {num_samples}")
        check_share(block_weight=block_weight)
        check_int("num_coins", num_coins, 0, inf)
        check_choice("clamp_during_sampling", clamp_during_sampling, (True, False))
        coins = min(num_coins, dim_token)
        self.dim_noise = dim_token + coins
        sizes = dict(depth=depth, width=width, dropout=dropout, dim_input=self.dim_noise)
        self.net = MLP(dim_z, dim_token, num_times=0, **sizes)
        # the first coin starts as loud as all normal noise, each other with a quarter of the one
        # before: equal coins add up to values between the modes, and are hard to tell apart
        loudness = sqrt(dim_token) * 0.25 ** torch.arange(coins)
        with torch.no_grad():
            self.net.proj_in.weight[:, dim_token:] *= loudness
        # not zero at the start: samples that are all alike are not driven apart
        nn.init.xavier_uniform_(self.net.proj_out.weight)
        self.num_samples = num_samples
        self.block_weight = block_weight
        self.num_coins = num_coins
        self.clamp_during_sampling = clamp_during_sampling
        if dim_token > BLOCK:
            # columns are directions, the widest first; no rotation until they are measured
            self.register_buffer("components", torch.eye(dim_token))

    @torch.no_grad()
    def measure(self, tokens: Tensor) -> None:
        """Takes `sigma_data` and the principal components of tokens (… d), unless known."""
        if not self.is_measured and hasattr(self, "components"):
            rows = tokens.reshape(-1, self.dim_token).double()
            if len(rows) > 1:
                _, vectors = torch.linalg.eigh(rows.T.cov())
                self.components.copy_(vectors.flip(1))
        super().measure(tokens)

    def checkpoint_gradients(self) -> None:
        self.net.checkpoint_gradients()

    # training

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """The score of each token, in units of `sigma_data`: (… d), (… dim) -> (…).

        An estimate, whose mean over the noise is the score itself; divided by the root of d.
        """
        if self.training:
            self.measure(tokens)
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        shape = (self.num_samples, *tokens.shape[:-1], self.dim_noise)
        noise = torch.randn(shape, dtype=dtype, device=tokens.device)
        samples = self.generate(noise, self.net.modulate_z(z))
        return self.score(samples, tokens.to(dtype) / self.training_scale)

    def score(self, samples: Tensor, tokens: Tensor) -> Tensor:
        """The score of tokens (… d), given samples (k … d)."""
        whole = energy_score(samples, tokens) / sqrt(self.dim_token)
        if self.block_weight == 0 or self.dim_token <= BLOCK:
            return whole
        blocks = zip(*(self.blocks(x) for x in (samples, tokens)), strict=True)
        # each block as wide as it is: the first ones, which vary most, count most
        of_blocks = sum(energy_score(*block) for block in blocks) / self.dim_token * sqrt(BLOCK)
        return torch.lerp(whole, of_blocks, self.block_weight)

    def blocks(self, x: Tensor) -> Sequence[Tensor]:
        """Tokens (… d) as blocks (… 8) of their principal components; the last may be narrower."""
        with torch.autocast(x.device.type, enabled=False):  # differences of what half would round
            return (x @ self.components.to(x.dtype)).split(BLOCK, dim=-1)

    def generate(self, noise: Tensor, modulation: Tensor) -> Tensor:
        """Tokens in units of `sigma_data` from normal noise (… n); of the last entries, the coins,
        the signs count."""
        normal, coins = noise.tensor_split([self.dim_token], dim=-1)
        noise = torch.cat((normal, coins.sign()), dim=-1)
        return self.net.denoise(noise, modulation).to(noise.dtype)

    # sampling

    def sample(
        self,
        z: Tensor,
        *,
        guidance: Sequence[Guidance] = (),
        temperature: float = 1.0,
        generator: Generators = None,
        compile: bool = False,
    ) -> Tensor:
        """Draws one token per condition in one evaluation: (… dim) -> (… d).

        Args:
            z: conditions (… dim).
            guidance: as of `DenoisingHead`, between tokens that are drawn from the same noise.
            temperature: factor on the normal noise that the network reads, at least 0; coins stay
                fair, or at 0 are 0. Unlike that of a denoising head, it need not make samples as
                much narrower.
            generator, compile: as of `DenoisingHead`.
        """
        options = dict(temperature=temperature, generator=generator, compile=compile)
        return self.sampler(**options)(z, guidance)

    def sampler(self, **options) -> Sampler:
        """`sample` with these options, for many calls. They hold for the weights as they are."""
        solve = partial(one_evaluation, dim_noise=self.dim_noise)
        return Sampler(self, solve, num_noises=2, **options)

    def modulate_level(self, sigma: float) -> Tensor:
        """No part of the network's modulation is of a noise level: zero."""
        return self.net.proj_in.bias.new_zeros(())

    def denoised(self, x: Tensor, sigma: float, modulation: Tensor, sigma_data: float) -> Tensor:
        """The token that the network makes of noise x (… n)."""
        return sigma_data * self.generate(x, modulation)


def one_evaluation(denoise: Callable[..., Tensor], noise: Noise, dim_noise: int) -> Tensor:
    """The token of pure noise, so wide that it takes more than one token's."""
    return denoise(torch.cat((noise(), noise()), dim=-1)[..., :dim_noise], inf)


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """An unbiased estimate of the energy score of truths (… d) by samples (k … d): (…).

    E|X - y| - E|X - X'| / 2: Gneiting & Raftery 2007, section 4.3, with the exponent 1 and the sign
    of a loss.
    """
    i, j = torch.triu_indices(len(samples), len(samples), offset=1, device=samples.device)
    to_truth = norm(samples - truth).mean(dim=0)
    between = norm(samples[i] - samples[j]).mean(dim=0)
    return to_truth - between / 2


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm (…) of (… d), with a gradient at 0."""
    return (x.square().sum(dim=-1) + 1e-12).sqrt()
