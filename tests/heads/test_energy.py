"""The energy score: closed forms, what it costs, and what a head learns by it."""

import math

import pytest
import torch
from helpers import STANDARD_ERRORS, assert_std, stir

from autoregressive_diffusion_pytorch import EnergyScore
from autoregressive_diffusion_pytorch.heads.energy import energy_score
from autoregressive_diffusion_pytorch.heads.guidance import Guidance


def make_head(**kwargs) -> EnergyScore:
    return EnergyScore(4, 6, **dict(width=16, depth=2, sigma_data=0.7) | kwargs)


def mean_norm(width: int) -> float:
    """E|x| of a standard Gaussian of this width."""
    return math.sqrt(2) * math.exp(math.lgamma((width + 1) / 2) - math.lgamma(width / 2))


def score_of_gaussians(std: float, true_std: float, width: int) -> float:
    """The energy score of N(0, std²) where the truth is N(0, true_std²), in so many dimensions."""
    return mean_norm(width) * (math.hypot(std, true_std) - std / math.sqrt(2))


def score_of_shifted(mean: float, std: float, true_std: float) -> float:
    """The same for N(mean, std²) in one dimension: E|X - y| is that of a folded Gaussian."""
    spread = math.hypot(std, true_std)
    far = mean * math.erf(mean / spread / math.sqrt(2))
    near = spread * math.sqrt(2 / math.pi) * math.exp(-0.5 * (mean / spread) ** 2)
    return far + near - std / math.sqrt(math.pi)


@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize(
    ("std", "true_std", "width"), [(1.0, 1.0, 1), (0.5, 1.0, 3), (2.0, 0.7, 16)]
)
def test_the_score_of_a_gaussian_generator(num_samples, std, true_std, width):
    generator = torch.Generator().manual_seed(0)
    double = dict(generator=generator, dtype=torch.float64)
    samples = std * torch.randn(num_samples, 20_000, width, **double)
    scores = energy_score(samples, true_std * torch.randn(20_000, width, **double))
    error = STANDARD_ERRORS * scores.std().item() / math.sqrt(len(scores))
    expected = score_of_gaussians(std, true_std, width)
    assert scores.mean().item() == pytest.approx(expected, abs=error)


def test_the_score_is_least_at_the_true_mean_and_scale():
    # the closed form itself, and what is estimated of it with the same noise
    noise = torch.randn(4, 100_000, 1, generator=torch.Generator().manual_seed(0))
    truth = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1))
    means, stds = (-0.4, -0.2, 0.0, 0.2, 0.4), (0.6, 0.8, 1.0, 1.25, 1.6)
    found = {(m, s): energy_score(m + s * noise, truth).mean() for m in means for s in stds}
    expected = {(m, s): score_of_shifted(m, s, 1.0) for m, s in found}
    assert min(found, key=found.get) == min(expected, key=expected.get) == (0.0, 1.0)
    for key, score in found.items():
        assert score.item() == pytest.approx(expected[key], abs=0.01)


def wide_tokens(count, seed=0):
    """Tokens 20 wide, whose spread falls along rotated directions, and those directions."""
    generator = torch.Generator().manual_seed(seed)
    stds = 2.0 ** -torch.arange(20)
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(9)))
    return (torch.randn(count, 20, generator=generator) * stds) @ rotation.T, rotation


def test_components_are_measured_once_and_stored(tmp_path):
    tokens, rotation = wide_tokens(5000)
    head = EnergyScore(20, 6, width=16, depth=1)
    assert torch.equal(head.components, torch.eye(20))
    head.train()(tokens, torch.zeros(5000, 6))
    # the first ones are told apart well
    cosines = (head.components * rotation).sum(dim=0).abs()
    assert (cosines[:6] > 0.99).all()
    torch.testing.assert_close(head.components.T @ head.components, torch.eye(20))
    found = head.components.clone()
    head(torch.randn(100, 20), torch.zeros(100, 6))
    assert torch.equal(head.components, found)
    other = EnergyScore(20, 6, width=16, depth=1)
    other.load_state_dict(head.state_dict())
    other.measure(torch.randn(100, 20))
    assert torch.equal(other.components, found)
    assert [block.shape[-1] for block in head.blocks(tokens)] == [8, 8, 4]
    assert "components" not in dict(EnergyScore(8, 6, width=16, depth=1).named_buffers())


def test_blocks_see_the_spread_of_a_narrow_direction():
    tokens, rotation = wide_tokens(4000)
    samples = torch.stack([wide_tokens(4000, seed)[0] for seed in (1, 2, 3, 4)])
    narrow = samples @ rotation
    narrow[..., 9] *= 0  # of 2 thousandths of the widest
    narrow = narrow @ rotation.T
    losses = {}
    for weight in (0.0, 0.5):
        head = EnergyScore(20, 6, width=16, depth=1, sigma_data=1.0, block_weight=weight)
        head.components.copy_(rotation)
        right, wrong = (head.score(x, tokens).mean().item() for x in (samples, narrow))
        losses[weight] = wrong - right
    assert losses[0.5] > 0
    assert losses[0.5] > 20 * abs(losses[0.0])


def test_scores_are_in_single_precision_whatever_the_training():
    head = stir(EnergyScore(20, 6, width=16, depth=1, sigma_data=1.0))
    samples, tokens = torch.randn(3, 5, 20), torch.randn(5, 20)
    expected = head.score(samples, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.score(samples, tokens), expected)
        head(tokens, torch.randn(5, 6)).mean().backward()


def test_the_gradient_of_equal_samples_is_finite():
    samples = torch.zeros(3, 2, 4, requires_grad=True)
    energy_score(samples, torch.zeros(2, 4)).sum().backward()
    assert samples.grad.isfinite().all()


def test_a_generator_of_gaussians_has_their_loss(monkeypatch):
    head = make_head().double()
    monkeypatch.setattr(
        head.net, "denoise", lambda noise, given: noise[..., :4] + 0 * given[..., 0, :1]
    )
    z = torch.zeros(20_000, 6, dtype=torch.float64)
    drawn = head.sample(z, generator=torch.Generator().manual_seed(0))
    assert_std(drawn, 0.7)
    tokens = 0.7 * torch.randn(20_000, 4, dtype=torch.float64)
    losses = head(tokens, z)
    assert losses.shape == (20_000,)
    error = STANDARD_ERRORS * losses.std().item() / math.sqrt(len(losses))
    # in units of the data, of one entry
    expected = score_of_gaussians(1.0, 1.0, 4) / math.sqrt(4)
    assert losses.mean().item() == pytest.approx(expected, abs=error)


def test_temperature_is_the_scale_of_the_noise(monkeypatch):
    head, seen = stir(make_head()), []
    generate = head.generate
    monkeypatch.setattr(head, "generate", lambda x, m: seen.append(x) or generate(x, m))
    for temperature in (1.0, 0.5, 0.0):
        head.sample(
            torch.randn(3, 6), temperature=temperature, generator=torch.Generator().manual_seed(0)
        )
    torch.testing.assert_close(seen[1], 0.5 * seen[0])
    assert (seen[2] == 0).all()


def test_the_network_reads_normal_noise_and_fair_coins(monkeypatch):
    head, seen = make_head(), []
    denoise = head.net.denoise
    monkeypatch.setattr(head.net, "denoise", lambda x, m: seen.append(x) or denoise(x, m))
    generator = torch.Generator().manual_seed(0)
    head.sample(torch.randn(4000, 6), generator=generator)
    head.sample(torch.randn(4000, 6), generator=generator, temperature=0.5)
    head.train()(torch.randn(1000, 4), torch.randn(1000, 6))
    stds = (1.0, 0.5, 1.0)
    for noise, std in zip(seen, stds, strict=True):
        normal, coins = noise.flatten(0, -2).split(4, dim=-1)
        assert_std(normal, std)
        assert set(coins.unique().tolist()) == {-1.0, 1.0}
        # each by itself, and apart from the others and from the normal noise
        correlations = torch.corrcoef(torch.cat((normal, coins), dim=-1).T)
        torch.testing.assert_close(correlations, torch.eye(8), atol=0.09, rtol=0)
        assert coins.mean(dim=0).abs().max() < 0.09
    # no more than a token has entries
    assert [EnergyScore(d, 6, width=16, depth=1).dim_noise for d in (1, 3, 8)] == [2, 6, 12]
    assert make_head(num_coins=0).dim_noise == 4


def test_a_token_takes_one_evaluation_with_guidance_too(monkeypatch):
    head, calls = stir(make_head()), []
    denoise = head.net.denoise
    monkeypatch.setattr(head.net, "denoise", lambda *args: calls.append(1) or denoise(*args))
    z, other = torch.randn(2, 3, 6)
    plain, guided = (
        head.sample(z, guidance=guidance, generator=torch.Generator().manual_seed(0))
        for guidance in ((), [Guidance(other, 1.5)])
    )
    assert len(calls) == 2
    assert not torch.allclose(plain, guided)
    assert head.num_evaluations() == 1
    assert head.sampling_settings() == {}


def test_it_has_no_density():
    assert not EnergyScore.has_density()
    with pytest.raises(TypeError, match="EnergyScore has no density: heads that have one are diff"):
        make_head().log_prob(torch.randn(2, 4), torch.randn(2, 6))


def test_it_learns_two_modes_that_depend_on_the_condition():
    torch.manual_seed(0)

    def draw_batch(count=256):
        z = torch.rand(count, 1) * 2 - 1
        sign = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
        return torch.cat((sign * 0.6, z), dim=-1) + 0.1 * torch.randn(count, 2), z

    head = EnergyScore(2, 1, width=64, depth=2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=600)
    for _ in range(600):
        head(*draw_batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    _, z = draw_batch(5000)
    drawn = head.eval().sample(z, generator=torch.Generator().manual_seed(0))
    near = ((drawn[:, 0].abs() - 0.6).abs() < 0.3) & ((drawn[:, 1:] - z).squeeze(-1).abs() < 0.3)
    assert near.float().mean() > 0.96  # without coins 0.94
    assert (drawn[:, 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (drawn[:, 1:] - z).std().item() == pytest.approx(0.1, rel=0.2)


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        make_head(num_samples=1)
    with pytest.raises(ValueError, match="num_coins must be a whole number from 0 to inf, got -1"):
        make_head(num_coins=-1)
