"""What holds for every head."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from helpers import STANDARD_ERRORS, assert_mean, assert_std, ideal_head, stir, train

from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow
from autoregressive_diffusion_pytorch.heads.denoising import DenoisingHead
from autoregressive_diffusion_pytorch.heads.guidance import MAX_NORM, Guidance
from autoregressive_diffusion_pytorch.heads.solvers import SOLVERS, karras_schedule

HEADS = [
    pytest.param(ElucidatedDiffusion, {}, id="diffusion"),
    pytest.param(
        ElucidatedDiffusion, dict(S_churn=10.0, num_sample_steps=32), id="stochastic-diffusion"
    ),
    pytest.param(RectifiedFlow, {}, id="flow-clean-token"),
    pytest.param(RectifiedFlow, dict(model_output_clean=False), id="flow-velocity"),
]
heads = pytest.mark.parametrize(("head_class", "kwargs"), HEADS)


def make_head(head_class, kwargs, dim_cond=6, dim_input=4, width=16, depth=2):
    return head_class(dim_input, dim_cond, depth=depth, width=width, **kwargs)


@heads
@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
def test_a_loss_and_a_sample_for_each_token(head_class, kwargs, shape):
    head = stir(make_head(head_class, kwargs))
    cond = torch.randn(*shape, 6)
    losses = head(torch.randn(*shape, 4), cond)
    assert losses.shape == shape
    assert (losses > 0).all()
    assert head.sample(cond).shape == (*shape, 4)


@heads
def test_loss_is_the_mean_over_the_noise_draws(head_class, kwargs):
    head = stir(make_head(head_class, kwargs | dict(num_noise_draws=4096, sigma_data=0.5)))
    single = stir(make_head(head_class, kwargs))
    single.load_state_dict(head.state_dict())
    tokens, cond = torch.randn(4), torch.randn(6)
    with torch.no_grad():
        alone = single(tokens.expand(4096, 4), cond.expand(4096, 6))
        together = torch.stack([head(tokens, cond) for _ in range(8)])
    # both are means of 4,096 independent draws
    error = alone.std() / math.sqrt(len(alone))
    assert (together - alone.mean()).abs().max() < STANDARD_ERRORS * math.sqrt(2) * error


@heads
def test_same_seed_same_sample(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    cond = torch.randn(3, 6)
    first, second, other = (
        head.sample(cond, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)
    torch.manual_seed(5)
    first = head.sample(cond)
    torch.manual_seed(5)
    assert torch.equal(first, head.sample(cond))


@heads
def test_a_generator_leaves_the_global_state_alone(head_class, kwargs):
    head = make_head(head_class, kwargs)
    before = torch.get_rng_state()
    head.sample(torch.randn(3, 6, generator=torch.Generator()), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


@heads
def test_temperature_zero_is_deterministic(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    cond = torch.randn(3, 6)
    assert torch.equal(head.sample(cond, temperature=0.0), head.sample(cond, temperature=0.0))
    assert not torch.allclose(head.sample(cond), head.sample(cond))


@heads
def test_a_sampler_for_many_calls_draws_what_single_samples_are(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    conds = torch.randn(4, 3, 6)
    for arguments in (dict(num_steps=3), dict(solver="heun"), dict(temperature=0.5)):
        one, other = (torch.Generator().manual_seed(0) for _ in range(2))
        draw = head.sampler(generator=one, **arguments)
        for cond in conds:
            assert torch.equal(draw(cond), head.sample(cond, generator=other, **arguments))


def noise_of_seed_0(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def denoised_by_hand(head, x, sigma, z):
    """The denoised token of `x = token + sigma · noise`, by the head's own parametrisation."""
    if isinstance(head, ElucidatedDiffusion):
        return head.denoised(
            x, sigma, head.net.modulate(torch.tensor(math.log(sigma) / 4), z), head.scale
        )
    time = torch.tensor(1 / (1 + sigma))
    velocity = head.velocity(time * x, time, head.net.modulate(time, z), head.scale)
    return time * x + (1 - time) * velocity


def guided_by_hand(one, other, scale, sigma_data):
    guided = other + scale * (one - other)
    typical = torch.tensor(MAX_NORM * sigma_data * one.shape[-1] ** 0.5)
    longest = torch.maximum(torch.maximum(one.norm(dim=-1), other.norm(dim=-1)), typical)
    too_long = guided.norm(dim=-1) > longest
    shortened = guided / guided.norm(dim=-1, keepdim=True) * longest.unsqueeze(-1)
    return torch.where(too_long.unsqueeze(-1), shortened, guided)


def by_hand(head, z, guidance, num_steps):
    """Euler's method from noise alone, the conditions evaluated one after the other."""
    sigma_data = head.scale
    levels = karras_schedule(num_steps, sigma_data, head.rho)
    noise = noise_of_seed_0(*z.shape[:-1], 4)
    x = levels[0] * noise
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(levels)):
        denoised = denoised_by_hand(head, x, sigma, z)
        for other, scale, (low, high), *_ in guidance:
            if low < sigma <= high:
                denoised = guided_by_hand(
                    denoised, denoised_by_hand(head, x, sigma, other), scale, sigma_data
                )
        x = denoised + next_sigma * (noise if i == 0 else (x - denoised) / sigma)
    return x.clamp(-1, 1) if head.clamp_during_sampling else x


GUIDED = [
    pytest.param(ElucidatedDiffusion, {}, id="diffusion"),
    pytest.param(
        ElucidatedDiffusion,
        dict(clamp_during_sampling=True, sigma_data=0.3),
        id="clamped-diffusion",
    ),
    pytest.param(RectifiedFlow, dict(sigma_data=2.0), id="flow-clean-token"),
    pytest.param(RectifiedFlow, dict(model_output_clean=False), id="flow-velocity"),
]
guided_heads = pytest.mark.parametrize(("head_class", "kwargs"), GUIDED)
ALWAYS = (0.0, math.inf)


@guided_heads
@pytest.mark.parametrize("scale", [0.5, 3.0, torch.tensor([0.0, 1.0, 4.0])])
@pytest.mark.parametrize("interval", [ALWAYS, (0.001, 4.0), (0.5, math.inf)])
@torch.no_grad()
def test_guidance_is_two_evaluations_combined(head_class, kwargs, scale, interval):
    head = stir(make_head(head_class, kwargs), 0.3)
    z, other = torch.randn(2, 3, 6)
    scales = scale[:, None] if isinstance(scale, torch.Tensor) else scale
    expected = by_hand(head, z, [(other, scales, interval)], 5)
    options = dict(num_steps=5, solver="euler")
    guided = head.sample(
        z,
        guidance=[(other, scale, interval)],
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    plain = head.sample(z, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(plain, by_hand(head, z, [], 5), rtol=1e-4, atol=1e-4)
    # clamped tokens may end in the corners, guided or not
    if "clamp_during_sampling" not in kwargs:
        assert (guided - plain).abs().max() > 1e-3


@guided_heads
@torch.no_grad()
def test_guidances_are_applied_in_their_order(head_class, kwargs):
    head = stir(make_head(head_class, kwargs), 0.3)
    z, one, other = torch.randn(3, 3, 6)
    guidance = [Guidance(one, 3.0, (0.3, 3.0)), Guidance(other[0], 1.5)]
    expected = by_hand(head, z, guidance, 12)
    guided = head.sample(
        z,
        guidance=guidance,
        num_steps=12,
        solver="euler",
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    turned = head.sample(
        z,
        guidance=guidance[::-1],
        num_steps=12,
        solver="euler",
        generator=torch.Generator().manual_seed(0),
    )
    assert (turned - guided).abs().max() > 1e-3


@heads
def test_guidance_at_scales_0_and_1_and_bad_entries(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    z, other = torch.randn(2, 3, 6)

    def sample(z, *entry):
        guidance = [Guidance(*entry)] if entry else []
        return head.sample(z, guidance=guidance, generator=torch.Generator().manual_seed(0))

    plain = sample(z)
    torch.testing.assert_close(sample(z, other, 1.0), plain)
    torch.testing.assert_close(sample(z, other, 0.0), sample(other), rtol=1e-4, atol=1e-5)
    # no noise level lies in the interval: the condition alone
    torch.testing.assert_close(sample(z, other, 3.0, (1e6, 1e7)), plain)
    with pytest.raises(
        ValueError, match=r"the z of a guidance must be of shape \(6,\) or \(3, 6\), got \(2, 6\)"
    ):
        sample(z, other[:2], 2.0)
    with pytest.raises(
        ValueError, match=r"the scale of a guidance must be a number or of shape \(3,\), got \(2,\)"
    ):
        sample(z, other, [1.0, 2.0])
    with pytest.raises(ValueError, match="guidance_scale must be at least 0 and finite, got nan"):
        sample(z, other, math.nan)
    with pytest.raises(ValueError, match="guidance_interval must be two noise levels"):
        sample(z, other, 2.0, (1.0, 0.5))


@pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])
@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_clamping_holds_drawn_tokens_and_is_off_by_default(head_class, solver):
    free, clamped = (
        stir(make_head(head_class, kwargs), 0.3)
        for kwargs in ({}, dict(clamp_during_sampling=True))
    )
    clamped.load_state_dict(free.state_dict())
    z = torch.randn(100, 6)
    one, other = (
        head.sample(z, solver=solver, generator=torch.Generator().manual_seed(0))
        for head in (free, clamped)
    )
    assert one.abs().max() > 1
    assert torch.equal(other, one.clamp(-1, 1))
    with pytest.raises(
        ValueError, match="clamp_during_sampling must be one of True, False, got 'always'"
    ):
        make_head(head_class, dict(clamp_during_sampling="always"))


@heads
def test_samples_without_dropout_and_without_gradients(head_class, kwargs):
    head = stir(head_class(4, 6, depth=2, width=16, dropout=0.5, **kwargs)).train()
    cond = torch.randn(3, 6, requires_grad=True)
    draw = head.sampler(temperature=0.0)
    assert torch.equal(draw(cond), draw(cond))
    assert not draw(cond).requires_grad
    assert all(module.training for module in head.modules())


@heads
def test_times_are_exact_whatever_the_default_type(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    cond = torch.randn(3, 6)
    expected = head.sample(cond, temperature=0.0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(head.sample(cond, temperature=0.0), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@heads
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_guidances_of_conditions_of_any_shape(head_class, kwargs, shape):
    head = stir(make_head(head_class, kwargs))
    z, uncond = torch.randn(2, *shape, 6)
    place = torch.randn(6)

    def sample(z, uncond, place):
        guidance = [Guidance(uncond, 2.0), Guidance(place, 1.5)]
        return head.sample(
            z, guidance=guidance, num_steps=4, generator=torch.Generator().manual_seed(0)
        )

    expected = sample(z.reshape(-1, 6), uncond.reshape(-1, 6), place).view(*shape, 4)
    for given in (place, place.expand_as(z)):
        torch.testing.assert_close(sample(z, uncond, given), expected, rtol=1e-4, atol=1e-4)


@heads
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_network_is_asked_for_its_modulations_once(head_class, kwargs, solver, monkeypatch):
    # of each noise level once for all tokens, of all conditions once per token; only `denoise` runs
    # at each evaluation
    if "S_churn" in kwargs and solver != "heun":
        kwargs = {}
    head = stir(make_head(head_class, kwargs))
    calls = dict.fromkeys(("modulate_time", "modulate_z", "denoise"), 0)

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    for name in calls:
        monkeypatch.setattr(head.net, name, counted(name, getattr(head.net, name)))
    draw = head.sampler(solver=solver, num_steps=5)
    for _ in range(3):
        draw(torch.randn(2, 6), [Guidance(torch.randn(2, 6), 2.0), Guidance(torch.randn(6), 1.5)])
    evaluations = head.num_evaluations(5, solver)
    assert calls["modulate_z"] == 3
    assert calls["denoise"] == 3 * evaluations
    # churn makes further levels
    assert 5 <= calls["modulate_time"] <= evaluations


@heads
def test_number_of_steps_suits_the_solver(head_class, kwargs):
    head = make_head(head_class, kwargs | dict(num_sample_steps=7))
    assert head.steps_and_solver() == head.steps_and_solver(solver=head.solver) == (7, head.solver)
    assert head.steps_and_solver(num_steps=5) == (5, head.solver)
    for solver, num_steps in DenoisingHead.NUM_SAMPLE_STEPS.items():
        if solver != head.solver:
            assert head.steps_and_solver(solver=solver) == (num_steps, solver)
            assert head.steps_and_solver(2, solver) == (2, solver)
    assert make_head(head_class, dict(solver="euler")).steps_and_solver() == (
        DenoisingHead.NUM_SAMPLE_STEPS["euler"],
        "euler",
    )
    assert make_head(head_class, head.config).config == head.config


# sigma_data


@heads
def test_sigma_data_is_measured_once_from_the_first_batch_of_a_training(head_class, kwargs):
    head = make_head(head_class, kwargs)
    assert head.config["sigma_data"] is None
    tokens, z = 3 * torch.randn(200, 4), torch.randn(200, 6)
    head.eval()(tokens, z)
    assert head.config["sigma_data"] is None
    head.train()(tokens, z)
    assert head.config["sigma_data"] == pytest.approx(tokens.std().item(), rel=1e-6)
    head(10 * tokens, z)
    assert head.scale == head.config["sigma_data"] == pytest.approx(tokens.std().item(), rel=1e-6)


@heads
def test_a_given_sigma_data_wins_and_all_are_kept_with_the_weights(head_class, kwargs):
    given, measured, fresh = (
        make_head(head_class, kwargs | extra) for extra in (dict(sigma_data=0.7), {}, {})
    )
    for head in (given, measured):
        head(3 * torch.randn(50, 4), torch.randn(50, 6))
    assert given.sigma_data.item() == pytest.approx(0.7)
    fresh.load_state_dict(measured.state_dict())
    fresh(torch.randn(50, 4), torch.randn(50, 6))  # measures nothing any more
    assert fresh.config["sigma_data"] == measured.config["sigma_data"] > 2
    # weights of before it was kept with them
    old = {name: tensor for name, tensor in given.state_dict().items() if name != "sigma_data"}
    given.load_state_dict(old)
    assert given.sigma_data.item() == pytest.approx(0.7)
    fresh = make_head(head_class, kwargs)
    fresh.load_state_dict(old)
    assert fresh.config["sigma_data"] == 0.5


@heads
def test_a_copy_that_follows_the_weights_knows_what_was_measured(head_class, kwargs):
    # as a moving average does: its copy is made before the first batch, and its buffers are filled
    # later
    head = make_head(head_class, kwargs)
    average = copy.deepcopy(head)
    head(3 * torch.randn(50, 4), torch.randn(50, 6))
    for own, measured in zip(average.buffers(), head.buffers(), strict=True):
        own.copy_(measured)
    assert average.scale == average.config["sigma_data"] == head.scale > 2
    assert average.state_dict()["sigma_data"] == head.sigma_data


@heads
def test_sigma_data_is_never_rounded_with_the_weights(head_class, kwargs):
    head = make_head(head_class, kwargs | dict(sigma_data=0.7071)).bfloat16()
    assert head.net.proj_in.weight.dtype == torch.bfloat16
    assert head.scale == pytest.approx(0.7071, rel=1e-6)
    assert copy.deepcopy(head).double().sigma_data.dtype == torch.float32


@heads
def test_tokens_without_spread_leave_sigma_data_open(head_class, kwargs):
    head = make_head(head_class, kwargs)
    head(torch.full((5, 4), 0.25), torch.randn(5, 6))
    assert head.config["sigma_data"] is None
    head(torch.randn(5, 4), torch.randn(5, 6))
    assert head.config["sigma_data"] > 0.1


@heads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sampler_state_is_never_below_single_precision(head_class, kwargs, dtype):
    head = stir(make_head(head_class, kwargs)).to(dtype)
    expected = torch.promote_types(dtype, torch.float32)
    assert head.sample(torch.randn(3, 6, dtype=dtype)).dtype == expected
    assert head(torch.randn(3, 4, dtype=dtype), torch.randn(3, 6, dtype=dtype)).dtype == expected


@heads
def test_bfloat16_samples_are_near_those_of_single_precision(head_class, kwargs):
    head = stir(make_head(head_class, kwargs), 0.05)
    cond = torch.randn(256, 6)
    exact, rounded = (
        h.sample(c, generator=torch.Generator().manual_seed(0))
        for h, c in ((head, cond), (copy.deepcopy(head).bfloat16(), cond.bfloat16()))
    )
    # bfloat16 rounds by up to 0.4 %, in each of the dozen products and norms between a token and
    # its denoised self
    assert 0 < (rounded - exact).square().mean().sqrt() < 12 * 0.004 * exact.std()


@heads
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_steps=0), "num_steps must be a whole number of at least 1, got 0"),
        (dict(num_steps=2.5), "num_steps must be a whole number of at least 1, got 2.5"),
        (dict(temperature=-0.1), "temperature must be at least 0 and finite, got -0.1"),
        (dict(temperature=float("nan")), "temperature must be at least 0 and finite, got nan"),
        (dict(temperature=float("inf")), "temperature must be at least 0 and finite, got inf"),
        (dict(solver="rk4"), "solver must be one of 'dpmpp_2m', 'euler', 'heun', got 'rk4'"),
    ],
)
def test_bad_sampling_arguments(head_class, kwargs, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_head(head_class, kwargs).sample(torch.randn(3, 6), **arguments)


@heads
@pytest.mark.parametrize("name", ["num_sample_steps", "num_noise_draws"])
def test_bad_counts(head_class, kwargs, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        make_head(head_class, kwargs | {name: 0})


# what a trained head has learnt, within the error of this many samples; with enough steps for the
# solver's own error not to count

NUM_SAMPLES = 2000
NUM_STEPS = 64
trained_heads = pytest.mark.parametrize(
    ("head_class", "kwargs"), [p for p in HEADS if "S_churn" not in p.values[1]]
)


def samplers(head):
    """The trained head, and the same with the stochastic sampler where it has one."""
    yield head
    if isinstance(head, ElucidatedDiffusion):
        head.solver, head.S_churn = "heun", 10.0
        yield head


@pytest.mark.parametrize(("head_class", "kwargs"), [HEADS[0], HEADS[2]])
def test_learns_a_gaussian_whose_mean_depends_on_the_condition(head_class, kwargs):
    slope = torch.tensor([[0.8, -0.4], [0.3, 0.6]])
    std = torch.tensor([0.3, 0.6])

    def draw_batch():
        cond = torch.rand(256, 2) * 2 - 1
        return cond @ slope + std * torch.randn(256, 2), cond

    head = train(
        make_head(head_class, kwargs, dim_cond=2, dim_input=2, width=64), draw_batch, steps=1200
    )
    conds = torch.tensor([[0.0, 0.0], [0.9, -0.5], [-0.6, 0.8]])
    for sampler, cond in ((sampler, cond) for sampler in samplers(head) for cond in conds):
        samples = sampler.sample(cond.expand(NUM_SAMPLES, 2), num_steps=NUM_STEPS)
        assert_mean(samples, cond @ slope)
        assert_std(samples, std)
        # temperature: the standard deviation is multiplied by it, the mean stays
        cooler = sampler.sample(cond.expand(NUM_SAMPLES, 2), num_steps=NUM_STEPS, temperature=0.7)
        assert_mean(cooler, cond @ slope)
        assert_std(cooler, 0.7 * std)
    for cond in conds:
        tokens = cond @ slope + std * torch.randn(500, 2)
        expected = torch.distributions.Normal(cond @ slope, std).log_prob(tokens).sum(dim=-1)
        log_probs = head.log_prob(tokens, cond.expand(500, 2))
        assert (log_probs - expected).mean().abs() < 0.1


# a mixture of Gaussians in two dimensions
CENTRES = torch.tensor([[-1.0, -0.5], [0.9, -0.7], [0.2, 0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
STD = 0.15


def mixture():
    components = torch.distributions.Independent(torch.distributions.Normal(CENTRES, STD), 1)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(WEIGHTS), components
    )


@trained_heads
def test_learns_a_mixture(head_class, kwargs):
    centres, weights, std = CENTRES.float(), WEIGHTS.float(), STD
    batches = iter(mixture().sample((800, 256)).float())
    head = train(
        make_head(head_class, kwargs, dim_cond=1, dim_input=2, width=64, depth=3),
        lambda: (next(batches), torch.zeros(256, 1)),
        steps=800,
    )
    mean = weights @ centres
    products_mean = ((centres.T * weights) @ centres + std**2 * torch.eye(2)).flatten()
    for sampler in samplers(head):
        samples = sampler.sample(torch.zeros(NUM_SAMPLES, 1), num_steps=NUM_STEPS)

        assert_mean(samples, mean)
        products = (samples[:, :, None] * samples[:, None, :]).flatten(1)
        assert_mean(products, products_mean)
        distances, nearest = torch.cdist(samples, centres).min(dim=-1)
        assert_mean(torch.nn.functional.one_hot(nearest, 3).float(), weights)
        # a Gaussian in two dimensions lies beyond three deviations with probability exp(-9 / 2):
        # little lies between the modes
        assert (distances > 3 * std).float().mean() < 0.05
    tokens = mixture().sample((1000,)).float()
    # 16 steps: within 0.015 of adapted ones, which the ideal heads below are held to
    log_probs = head.log_prob(tokens, torch.zeros(1000, 1), solver="rk4", num_steps=16)
    assert (log_probs - mixture().log_prob(tokens.double())).mean().abs() < 0.1


# likelihood

ideal_heads = pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])


# from the highest noise level a share of the tokens' mean is missing, and at the lowest there is
# noise: here next to none of either
ENDLESS = {ElucidatedDiffusion: dict(sigma_min=1e-4, sigma_max=1e4)}


def mixture_posterior_mean(noised, sigma, cond):
    variance = STD**2 + sigma**2
    offsets = noised.unsqueeze(-2) - CENTRES
    shares = (WEIGHTS.log() - offsets.square().sum(dim=-1) / (2 * variance)).softmax(dim=-1)
    return (shares.unsqueeze(-1) * (CENTRES + STD**2 / variance.unsqueeze(-1) * offsets)).sum(
        dim=-2
    )


def gaussian_posterior_mean(noised, sigma, cond, std):
    """Of tokens of N(cond, std²)."""
    return (std**2 * noised + sigma**2 * cond) / (std**2 + sigma**2)


def assert_within_half_a_percent(log_probs, expected):
    assert ((log_probs - expected).abs() <= 0.005 * expected.abs().clamp(min=1)).all()


@ideal_heads
@pytest.mark.parametrize("std", [0.05, 0.5, 1.5])
def test_log_prob_of_a_gaussian(head_class, std):
    head = ideal_head(
        head_class, 3, partial(gaussian_posterior_mean, std=std), **ENDLESS.get(head_class, {})
    )
    cond = torch.tensor([[0.0], [0.8], [-0.4]], dtype=torch.float64)
    gaussian = torch.distributions.Normal(cond, std)
    tokens = cond + std * torch.randn(20, 3, 3).double()
    log_probs = head.log_prob(tokens, cond.expand(20, 3, 1), rtol=1e-4, atol=1e-4)
    assert_within_half_a_percent(log_probs, gaussian.log_prob(tokens).sum(dim=-1))


@ideal_heads
def test_log_prob_of_a_mixture(head_class):
    head = ideal_head(head_class, 2, mixture_posterior_mean, **ENDLESS.get(head_class, {}))
    tokens = mixture().sample((300,))
    log_probs = head.log_prob(tokens, torch.zeros(300, 1).double(), rtol=1e-5, atol=1e-5)
    assert_within_half_a_percent(log_probs, mixture().log_prob(tokens))
    # the mean also by default tolerances and noise levels, and no token is far off
    log_probs = ideal_head(head_class, 2, mixture_posterior_mean).log_prob(
        tokens, torch.zeros(300, 1).double()
    )
    assert_within_half_a_percent(log_probs.mean(), mixture().log_prob(tokens).mean())
    assert (log_probs - mixture().log_prob(tokens)).abs().max() < 0.1


def gentle(head):
    """Stirred, so that it changes gently.

    Untrained, the part that depends on the time makes solvers take thousands of steps; so that is
    left out. And without a bias the first norm makes a peak of tokens near 0.
    """
    stir(head, 0.05)
    torch.nn.init.normal_(head.net.proj_in.bias)
    for parameter in head.net.time_modulation[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return head


def integral_over_a_grid(head, cond, reach, points, **kwargs):
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_probs = head.log_prob(grid, cond.expand(len(grid), -1), **kwargs)
    return log_probs.exp().sum() * (axis[1] - axis[0]) ** 2


@ideal_heads
def test_the_ideal_density_integrates_to_1(head_class):
    head = ideal_head(head_class, 2, mixture_posterior_mean)
    assert integral_over_a_grid(head, torch.zeros(1).double(), reach=2, points=80) == pytest.approx(
        1, abs=0.005
    )


@heads
def test_the_density_of_any_network_integrates_to_1(head_class, kwargs):
    head = gentle(make_head(head_class, kwargs, dim_input=2)).double()
    integral = integral_over_a_grid(head, torch.randn(6).double(), reach=6, points=100)
    assert integral == pytest.approx(1, abs=0.005)


def split_log_probs(head, tokens, cond, monkeypatch, **options):
    """What `log_prob` gives for (2 9 d) at once, in six calls, and in one call that solves five
    tokens at a time."""
    together = head.log_prob(tokens, cond, **options)
    assert together.shape == (2, 9)
    pairs = zip(tokens.flatten(0, 1).split(3), cond.flatten(0, 1).split(3), strict=True)
    split = torch.cat([head.log_prob(*pair, **options) for pair in pairs]).view(2, 9)
    monkeypatch.setattr(
        "autoregressive_diffusion_pytorch.heads.likelihood.JVP_CHUNK", 5 * tokens.shape[-1]
    )
    return together, split, head.log_prob(tokens, cond, **options)


@heads
def test_log_prob_does_not_depend_on_how_the_batch_is_split(head_class, kwargs, monkeypatch):
    head = gentle(make_head(head_class, kwargs))
    together, *others = split_log_probs(
        head,
        0.5 * torch.randn(2, 9, 4),
        torch.randn(2, 9, 6),
        monkeypatch,
        solver="rk4",
        num_steps=4,
    )
    for other in others:
        torch.testing.assert_close(other, together, rtol=0, atol=1e-4)


def test_log_prob_by_adapted_steps_depends_on_the_batch_only_within_the_tolerance(monkeypatch):
    head = ideal_head(RectifiedFlow, 2, mixture_posterior_mean)
    together, *others = split_log_probs(
        head, mixture().sample((2, 9)), torch.zeros(2, 9, 1).double(), monkeypatch, rtol=1e-4
    )
    for other in others:
        torch.testing.assert_close(other, together, rtol=0, atol=0.05)


@heads
def test_the_estimated_log_prob_is_unbiased(head_class, kwargs):
    head = gentle(make_head(head_class, kwargs))
    token, cond = 0.5 * torch.randn(4), torch.randn(6)
    exact = head.log_prob(token, cond, solver="rk4")
    estimates = head.log_prob(
        token.expand(4000, 4),
        cond.expand(4000, 6),
        solver="rk4",
        divergence="hutchinson",
        generator=torch.Generator().manual_seed(0),
    )
    assert estimates.std() > 1e-3
    assert_mean(estimates, exact, extra=1e-4)


@heads
def test_the_estimated_log_prob_follows_from_the_generator_alone(head_class, kwargs):
    head = gentle(make_head(head_class, kwargs))
    tokens, cond = torch.randn(5, 4), torch.randn(5, 6)
    before = torch.get_rng_state()
    one, same, other = (
        head.log_prob(
            tokens, cond, divergence="hutchinson", generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@heads
def test_log_prob_leaves_modes_and_gradients_alone(head_class, kwargs):
    head = gentle(head_class(4, 6, depth=2, width=16, dropout=0.5, **kwargs)).train()
    tokens, cond = torch.randn(3, 4, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    log_probs = head.log_prob(tokens, cond)
    assert torch.equal(log_probs, head.log_prob(tokens, cond))  # no dropout
    assert not log_probs.requires_grad
    assert all(module.training for module in head.modules())
    with torch.inference_mode():
        torch.testing.assert_close(head.log_prob(tokens, cond), log_probs)


@heads
def test_log_prob_in_other_floating_types(head_class, kwargs):
    head = gentle(make_head(head_class, kwargs))
    tokens, cond = 0.5 * torch.randn(5, 4), torch.randn(5, 6)
    single = head.log_prob(tokens, cond, solver="rk4")
    assert single.dtype == torch.float32
    half = copy.deepcopy(head).bfloat16().log_prob(tokens, cond.bfloat16(), solver="rk4")
    assert half.dtype == torch.float32
    assert (half - single).abs().max() < 0.5
    double = copy.deepcopy(head).double().log_prob(tokens.double(), cond.double(), solver="rk4")
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)


@heads
def test_bad_tokens_of_a_log_prob(head_class, kwargs):
    head = make_head(head_class, kwargs)
    with pytest.raises(
        ValueError,
        match=r"tokens must be of shape \(3, 4\), as z and the head's width say, got \(3, 5\)",
    ):
        head.log_prob(torch.randn(3, 5), torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"tokens must be of shape \(3, 4\), .*, got \(2, 4\)"):
        head.log_prob(torch.randn(2, 4), torch.randn(3, 6))
    with pytest.raises(ValueError, match="tokens must be finite, got some that are not"):
        head.log_prob(torch.tensor([[0.0, math.nan, 0.0, 0.0]]), torch.randn(1, 6))
    with pytest.raises(ValueError, match="z must be finite, got some that are not"):
        head.log_prob(torch.randn(1, 4), torch.full((1, 6), math.inf))
    assert head.log_prob(torch.empty(0, 3, 4), torch.empty(0, 3, 6)).shape == (0, 3)
    with pytest.raises(ValueError, match="solver must be one of"):
        head.log_prob(torch.randn(3, 4), torch.randn(3, 6), solver="dpmpp_2m")
