"""What holds for every head."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from helpers import STANDARD_ERRORS, assert_mean, assert_std, ideal_head, stir

from autoregressive_diffusion_pytorch import MLP, ElucidatedDiffusion, RectifiedFlow
from autoregressive_diffusion_pytorch.solvers import karras_schedule, multistep_schedule

HEADS = [
    pytest.param(ElucidatedDiffusion, {}, id="diffusion"),
    pytest.param(ElucidatedDiffusion, dict(S_churn=10.0, num_sample_steps=32), id="stochastic-diffusion"),
    pytest.param(RectifiedFlow, {}, id="flow-clean-token"),
    pytest.param(RectifiedFlow, dict(model_output_clean=False), id="flow-velocity"),
]
heads = pytest.mark.parametrize(("head_class", "kwargs"), HEADS)


def make_head(head_class, kwargs, dim_cond=6, dim_input=4, width=16, depth=2):
    return head_class(MLP(dim_cond, dim_input, depth=depth, width=width), **kwargs)


def train(head, draw_batch, steps, learning_rate=5e-3):
    """Trains a head on `draw_batch() -> tokens, cond`."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        head(*draw_batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head


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
    head = stir(make_head(head_class, kwargs | dict(num_noise_draws=4096)))
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
    first, second, other = (head.sample(cond, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
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
    for arguments in (dict(num_steps=3), dict(solver="midpoint"), dict(temperature=0.5)):
        one, other = (torch.Generator().manual_seed(0) for _ in range(2))
        draw = head.sampler(generator=one, **arguments)
        for cond in conds:
            assert torch.equal(draw(cond), head.sample(cond, generator=other, **arguments))


def by_hand(head, cond, uncond, scale, noise, num_steps, interval=(0.0, math.inf)):
    """Euler's method, the two conditions evaluated one after the other, the clean tokens held by hand."""

    def held(guided, one, other):
        if head.clamp_during_sampling == "guided":
            outermost = torch.stack((one, other))
            return torch.minimum(torch.maximum(guided, outermost.amin(dim=0).clamp(max=-1)), outermost.amax(dim=0).clamp(min=1))
        return guided.clamp(-1, 1) if head.clamp_during_sampling else guided

    if isinstance(head, ElucidatedDiffusion):
        levels = [*karras_schedule(num_steps, head.sigma_min, head.sigma_max, head.rho), 0.0]
        x = levels[0] * noise
        for sigma, next_sigma in itertools.pairwise(levels):
            time = head.c_noise(torch.tensor(sigma))
            one, other = (head.denoised(x, sigma, head.net.modulate(time, c)) for c in (cond, uncond))
            denoised = held(other + scale * (one - other) if interval[0] < sigma <= interval[1] else one, one, other)
            x = x + (next_sigma - sigma) * (x - denoised) / sigma
        return x
    x = noise
    for i in range(num_steps):
        time = i / num_steps
        velocities = (head.velocity(x, time, head.net.modulate(torch.tensor(time), c)) for c in (cond, uncond))
        one, other = (x + (1 - time) * velocity for velocity in velocities)
        level = (1 - time) / time if time else math.inf
        clean = held(other + scale * (one - other) if interval[0] < level <= interval[1] else one, one, other)
        x = x + (clean - x) / (1 - time) / num_steps
    return x


GUIDED = [
    pytest.param(ElucidatedDiffusion, {}, id="diffusion"),
    pytest.param(ElucidatedDiffusion, dict(clamp_during_sampling=True), id="clamped-diffusion"),
    pytest.param(ElucidatedDiffusion, dict(clamp_during_sampling="guided"), id="guided-clamped-diffusion"),
    pytest.param(RectifiedFlow, {}, id="flow-clean-token"),
    pytest.param(RectifiedFlow, dict(clamp_during_sampling="guided"), id="guided-clamped-flow-clean-token"),
    pytest.param(RectifiedFlow, dict(model_output_clean=False), id="flow-velocity"),
    pytest.param(RectifiedFlow, dict(model_output_clean=False, clamp_during_sampling=True), id="clamped-flow-velocity"),
]
guided_heads = pytest.mark.parametrize(("head_class", "kwargs"), GUIDED)


@guided_heads
@pytest.mark.parametrize("scale", [0.5, 3.0, torch.tensor([0.0, 1.0, 4.0])])
@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.001, 8.0), (0.5, math.inf)])
@torch.no_grad()
def test_guidance_is_two_evaluations_combined(head_class, kwargs, scale, interval):
    head = stir(make_head(head_class, kwargs), 0.3)
    cond, uncond = torch.randn(2, 3, 6)
    noise = torch.randn((3, 4), generator=torch.Generator().manual_seed(0))
    scales = scale[:, None] if isinstance(scale, torch.Tensor) else scale
    expected = by_hand(head, cond, uncond, scales, noise, 5, interval)
    options = dict(num_steps=5, solver="euler", guidance_interval=interval)
    guided = head.sample(cond, uncond, scale, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    plain = head.sample(cond, generator=torch.Generator().manual_seed(0), num_steps=5, solver="euler")
    if "clamp_during_sampling" not in kwargs:  # clamped tokens soon end in the corners, guided or not
        assert (guided - plain).abs().max() > 1e-3


@heads
def test_guidance_at_scales_0_and_1_and_without_a_second_condition(head_class, kwargs):
    head = stir(make_head(head_class, kwargs))
    cond, uncond = torch.randn(2, 3, 6)

    def sample(*args, **options):
        return head.sample(*args, generator=torch.Generator().manual_seed(0), **options)

    plain, other = sample(cond), sample(uncond)
    torch.testing.assert_close(sample(cond, uncond, 1.0), plain)
    torch.testing.assert_close(sample(cond, uncond, 0.0), other)
    assert torch.equal(sample(cond, None, 3.0), plain)
    with pytest.raises(ValueError, match=r"uncond must have the shape of cond, \(3, 6\), got \(2, 6\)"):
        sample(cond, uncond[:2])
    with pytest.raises(ValueError, match=r"guidance_scale must be a number or of shape \(3,\), got \(2,\)"):
        sample(cond, uncond, [1.0, 2.0])
    with pytest.raises(ValueError, match="guidance_scale must be at least 0 and finite, got nan"):
        sample(cond, uncond, math.nan)
    # no noise level lies in the interval: the condition alone
    torch.testing.assert_close(sample(cond, uncond, 3.0, guidance_interval=(1e6, 1e7)), plain)


@pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
@pytest.mark.parametrize("clamp", [False, "guided"])
@torch.no_grad()
def test_context_guides_as_a_second_condition_does_at_middle_noise_levels(head_class, sigma_data, clamp):
    head = stir(make_head(head_class, dict(sigma_data=sigma_data, clamp_during_sampling=clamp)), 0.3)
    cond, no_context = torch.randn(3, 6), torch.randn(6)

    def sample(*args, **options):
        return head.sample(*args, generator=torch.Generator().manual_seed(0), num_steps=24, **options)

    levels = (0.6 * sigma_data, 6 * sigma_data)
    for scale in (0.0, 1.75, 3.0):
        expected = sample(cond, no_context.expand_as(cond), scale, guidance_interval=levels)
        for given in (no_context, no_context.expand_as(cond)):
            guided = sample(cond, no_context=given, context_guidance=scale)
            torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
        # with a second condition that is the first there is nothing to guide by but the context
        torch.testing.assert_close(
            sample(cond, cond, 2.0, no_context=given, context_guidance=scale), expected, rtol=1e-4, atol=1e-4
        )
    plain = sample(cond)
    assert (plain - expected).abs().max() > 1e-2
    assert torch.equal(sample(cond, no_context=no_context), plain)
    assert torch.equal(sample(cond, context_guidance=3.0), plain)
    with pytest.raises(ValueError, match="context_guidance must be at least 0 and finite, got inf"):
        sample(cond, no_context=no_context, context_guidance=math.inf)
    with pytest.raises(ValueError, match=r"no_context must be of shape \(6,\) or \(3, 6\), got \(1, 6\)"):
        sample(cond, no_context=no_context[None], context_guidance=2.0)


@pytest.mark.parametrize("clamp", [False, True, "guided"])
@torch.no_grad()
def test_context_guides_what_a_second_condition_has_guided(clamp):
    def held(denoised, one, other):
        if clamp == "guided":
            both = torch.stack((one, other))
            return torch.minimum(torch.maximum(denoised, both.amin(dim=0).clamp(max=-1)), both.amax(dim=0).clamp(min=1))
        return denoised

    head = stir(make_head(ElucidatedDiffusion, dict(clamp_during_sampling=clamp)), 0.3)
    cond, uncond, no_context = torch.randn(3, 3, 6)
    noise = torch.randn((3, 4), generator=torch.Generator().manual_seed(0))
    levels = [*karras_schedule(24, head.sigma_min, head.sigma_max, head.rho), 0.0]
    x = levels[0] * noise
    for sigma, next_sigma in itertools.pairwise(levels):
        time = head.c_noise(torch.tensor(sigma))
        one, other, none = (head.denoised(x, sigma, head.net.modulate(time, c)) for c in (cond, uncond, no_context))
        denoised = held(other + 3.0 * (one - other), one, other)
        if 0.3 < sigma <= 3:
            denoised = held(none + 1.5 * (denoised - none), denoised, none)
        denoised = denoised.clamp(-1, 1) if clamp is True else denoised
        x = x + (next_sigma - sigma) * (x - denoised) / sigma
    options = dict(num_steps=24, solver="euler", no_context=no_context, context_guidance=1.5)
    guided = head.sample(cond, uncond, 3.0, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(guided, x, rtol=1e-4, atol=1e-4)


CLAMPING = [(head_class, solver) for head_class in (ElucidatedDiffusion, RectifiedFlow) for solver in head_class.NUM_SAMPLE_STEPS]


@pytest.mark.parametrize(("head_class", "solver"), CLAMPING)
@torch.no_grad()
def test_clamping_holds_all_tokens_none_or_those_that_guidance_pushes_out(head_class, solver):
    heads = {clamp: make_head(head_class, dict(clamp_during_sampling=clamp)) for clamp in (True, False, "guided")}
    stir(heads[True], 0.3)
    cond, uncond = torch.randn(2, 100, 6)
    samples = {}
    for clamp, head in heads.items():
        head.load_state_dict(heads[True].state_dict())
        for scale in (None, 0.0, 1.0, 20.0):
            arguments = (cond,) if scale is None else (cond, uncond, scale)
            samples[clamp, scale] = head.sample(*arguments, solver=solver, generator=torch.Generator().manual_seed(0))
            assert samples[clamp, scale].isfinite().all()
    for scale in (None, 0.0, 1.0, 20.0):
        assert samples[True, scale].abs().max() <= 1
    # the model's own tokens are not touched, wherever they lie
    assert samples[False, None].abs().max() > 1
    for scale in (None, 0.0, 1.0):
        torch.testing.assert_close(samples["guided", scale], samples[False, scale], rtol=1e-3, atol=1e-4)
    assert samples["guided", 20.0].abs().max() < samples[False, 20.0].abs().max() / 2
    with pytest.raises(ValueError, match="clamp_during_sampling must be one of True, False, 'guided', got 'always'"):
        make_head(head_class, dict(clamp_during_sampling="always"))


@pytest.mark.parametrize(("head_class", "expected"), [(ElucidatedDiffusion, [0.25, 1, 80]), (RectifiedFlow, [4, 1, 80])])
def test_the_noise_level_is_the_noise_of_a_token_of_weight_1(head_class, expected):
    head = make_head(head_class, {})
    times = [0.25, 1, 80] if head_class is ElucidatedDiffusion else [0.2, 0.5, 1 / 81]
    torch.testing.assert_close([float(head.noise_level(time)) for time in times], [float(level) for level in [*expected]])


@heads
def test_samples_without_dropout_and_without_gradients(head_class, kwargs):
    head = stir(head_class(MLP(6, 4, depth=2, width=16, dropout=0.5), **kwargs)).train()
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
def test_both_guidances_of_conditions_of_any_shape(head_class, kwargs, shape):
    head = stir(make_head(head_class, kwargs))
    cond, uncond = torch.randn(2, *shape, 6)
    no_context = torch.randn(6)

    def sample(cond, uncond, no_context):
        generator = torch.Generator().manual_seed(0)
        return head.sample(cond, uncond, 2.0, no_context=no_context, context_guidance=1.5, num_steps=4, generator=generator)

    expected = sample(cond.reshape(-1, 6), uncond.reshape(-1, 6), no_context).view(*shape, 4)
    for given in (no_context, no_context.expand_as(cond)):
        torch.testing.assert_close(sample(cond, uncond, given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_default_solver_evaluates_at_the_levels_of_its_schedule(head_class, sigma_data, num_steps, monkeypatch):
    head = stir(make_head(head_class, dict(sigma_data=sigma_data)))
    seen = []
    noise_level = head.noise_level
    monkeypatch.setattr(head, "noise_level", lambda time: seen.append(noise_level(time)) or seen[-1])
    head.sample(torch.randn(2, 6), num_steps=num_steps)
    unit = sigma_data / 0.5 if head_class is RectifiedFlow else 1.0
    ends = dict(sigma_min=0.002 * unit, sigma_max=80.0 * unit)
    first, *others = multistep_schedule(num_steps, **ends, rho=7.0, sigma_data=sigma_data)[:-1]
    assert seen == pytest.approx([math.inf if head_class is RectifiedFlow else first, *others])


@heads
def test_the_network_is_asked_for_its_modulations_once(head_class, kwargs, monkeypatch):
    # of the times once for all tokens, of all conditions once a token; only `denoise` runs at each evaluation
    head = stir(make_head(head_class, kwargs))
    calls = dict.fromkeys(("modulate_time", "modulate_cond", "denoise"), 0)

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    for name in calls:
        monkeypatch.setattr(head.net, name, counted(name, getattr(head.net, name)))
    draw = head.sampler(solver="midpoint", num_steps=5)
    for _ in range(3):
        draw(torch.randn(2, 6), torch.randn(2, 6), 2.0, torch.randn(6), 1.5)
    assert calls == dict(modulate_time=1, modulate_cond=3, denoise=3 * 2 * 5)


@heads
def test_number_of_steps_suits_the_solver(head_class, kwargs, monkeypatch):
    head = stir(make_head(head_class, kwargs | dict(num_sample_steps=7)))
    seen = []
    integrate = head.integrate
    monkeypatch.setattr(head, "integrate", lambda *args, **options: seen.append(options) or integrate(*args, **options))

    def steps(**arguments):
        head.sample(torch.randn(2, 6), **arguments)
        return seen[-1]["solver"], seen[-1]["num_steps"]

    assert steps() == (head.solver, 7)
    assert steps(solver=head.solver) == (head.solver, 7)
    assert steps(num_steps=5) == (head.solver, 5)
    for solver, num_steps in head_class.NUM_SAMPLE_STEPS.items():
        if solver != head.solver:
            assert steps(solver=solver) == (solver, num_steps)
            assert steps(solver=solver, num_steps=2) == (solver, 2)
            head_of_solver = make_head(head_class, dict(solver=solver, num_sample_steps={solver: 3}))
            assert head_of_solver.num_evaluations() == head_of_solver.num_evaluations(3, solver)
            assert make_head(head_class, head_of_solver.config).config == head_of_solver.config
            head_of_another = make_head(head_class, dict(solver=solver))
            assert head_of_another.num_evaluations() == head_of_another.num_evaluations(num_steps, solver)


@heads
def test_bad_solvers_in_num_sample_steps(head_class, kwargs):
    with pytest.raises(ValueError, match=r"a solver in num_sample_steps must be one of 'euler', .*, got 'rk4'"):
        make_head(head_class, kwargs | dict(num_sample_steps=dict(rk4=3)))
    with pytest.raises(ValueError, match="num_sample_steps of 'euler' must be a whole number of at least 1, got 0"):
        make_head(head_class, kwargs | dict(num_sample_steps=dict(euler=0)))


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
    # bfloat16 rounds by up to 0.4 %, in each of the dozen products and norms between a token and its denoised self
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
        (dict(solver="rk4"), "solver must be one of 'euler', 'midpoint', 'heun', 'dpmpp_2m'.*, got 'rk4'"),
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


# what a trained head has learnt, within the error of this many samples; with enough steps for the solver's own error not to count

NUM_SAMPLES = 2000
NUM_STEPS = 64
trained_heads = pytest.mark.parametrize(("head_class", "kwargs"), [p for p in HEADS if "S_churn" not in p.values[1]])


def samplers(head):
    """The trained head, and the same with the stochastic sampler where it has one."""
    yield head
    if isinstance(head, ElucidatedDiffusion):
        head.solver, head.S_churn = "heun", 10.0
        yield head


@trained_heads
def test_learns_a_gaussian_whose_mean_depends_on_the_condition(head_class, kwargs):
    slope = torch.tensor([[0.8, -0.4], [0.3, 0.6]])
    std = torch.tensor([0.3, 0.6])

    def draw_batch():
        cond = torch.rand(256, 2) * 2 - 1
        return cond @ slope + std * torch.randn(256, 2), cond

    head = train(make_head(head_class, kwargs, dim_cond=2, dim_input=2, width=64), draw_batch, steps=1200)
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
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHTS), components)


@trained_heads
def test_learns_a_mixture(head_class, kwargs):
    centres, weights, std = CENTRES.float(), WEIGHTS.float(), STD
    head = train(
        make_head(head_class, kwargs, dim_cond=1, dim_input=2, width=64, depth=3),
        lambda: (mixture().sample((256,)).float(), torch.zeros(256, 1)),
        steps=1200,
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
        # a Gaussian in two dimensions lies beyond three deviations with probability exp(-9 / 2): little lies between the modes
        assert (distances > 3 * std).float().mean() < 0.05
    tokens = mixture().sample((1000,)).float()
    log_probs = head.log_prob(tokens, torch.zeros(1000, 1))
    assert (log_probs - mixture().log_prob(tokens.double())).mean().abs() < 0.1


# likelihood

ideal_heads = pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])


# from the highest noise level a share of the tokens' mean is missing, and at the lowest there is noise: here next to none of either
ENDLESS = {ElucidatedDiffusion: dict(sigma_min=1e-4, sigma_max=1e4)}


def mixture_posterior_mean(noised, sigma, cond):
    variance = STD**2 + sigma**2
    offsets = noised.unsqueeze(-2) - CENTRES
    shares = (WEIGHTS.log() - offsets.square().sum(dim=-1) / (2 * variance)).softmax(dim=-1)
    return (shares.unsqueeze(-1) * (CENTRES + STD**2 / variance.unsqueeze(-1) * offsets)).sum(dim=-2)


def gaussian_posterior_mean(noised, sigma, cond, std):
    """Of tokens of N(cond, std²)."""
    return (std**2 * noised + sigma**2 * cond) / (std**2 + sigma**2)


def assert_within_half_a_percent(log_probs, expected):
    assert ((log_probs - expected).abs() <= 0.005 * expected.abs().clamp(min=1)).all()


@ideal_heads
@pytest.mark.parametrize("std", [0.05, 0.5, 1.5])
def test_log_prob_of_a_gaussian(head_class, std):
    head = ideal_head(head_class, 3, partial(gaussian_posterior_mean, std=std), **ENDLESS.get(head_class, {}))
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
    log_probs = ideal_head(head_class, 2, mixture_posterior_mean).log_prob(tokens, torch.zeros(300, 1).double())
    assert_within_half_a_percent(log_probs.mean(), mixture().log_prob(tokens).mean())
    assert (log_probs - mixture().log_prob(tokens)).abs().max() < 0.1


def gentle(head):
    """Stirred, so that it changes gently.

    Untrained, the part that depends on the time makes solvers take thousands of steps; so that is left out. And without a bias the
    first norm makes a peak of tokens near 0.
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
    assert integral_over_a_grid(head, torch.zeros(1).double(), reach=2, points=80) == pytest.approx(1, abs=0.005)


@heads
def test_the_density_of_any_network_integrates_to_1(head_class, kwargs):
    head = gentle(make_head(head_class, kwargs, dim_input=2)).double()
    integral = integral_over_a_grid(head, torch.randn(6).double(), reach=6, points=100)
    assert integral == pytest.approx(1, abs=0.005)


def split_log_probs(head, tokens, cond, monkeypatch, **options):
    """What `log_prob` gives for (2 9 d) at once, in six calls, and in one call that solves five tokens at a time."""
    together = head.log_prob(tokens, cond, **options)
    assert together.shape == (2, 9)
    pairs = zip(tokens.flatten(0, 1).split(3), cond.flatten(0, 1).split(3), strict=True)
    split = torch.cat([head.log_prob(*pair, **options) for pair in pairs]).view(2, 9)
    monkeypatch.setattr("autoregressive_diffusion_pytorch.likelihood.TANGENTS_AT_A_TIME", 5 * tokens.shape[-1])
    return together, split, head.log_prob(tokens, cond, **options)


@heads
def test_log_prob_does_not_depend_on_how_the_batch_is_split(head_class, kwargs, monkeypatch):
    head = gentle(make_head(head_class, kwargs))
    together, *others = split_log_probs(
        head, 0.5 * torch.randn(2, 9, 4), torch.randn(2, 9, 6), monkeypatch, solver="rk4", num_steps=4
    )
    for other in others:
        torch.testing.assert_close(other, together, rtol=0, atol=1e-4)


@ideal_heads
def test_log_prob_by_adapted_steps_depends_on_the_batch_only_within_the_tolerance(head_class, monkeypatch):
    head = ideal_head(head_class, 2, mixture_posterior_mean)
    together, *others = split_log_probs(head, mixture().sample((2, 9)), torch.zeros(2, 9, 1).double(), monkeypatch, rtol=1e-4)
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
        head.log_prob(tokens, cond, divergence="hutchinson", generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@heads
def test_log_prob_leaves_modes_and_gradients_alone(head_class, kwargs):
    head = gentle(head_class(MLP(6, 4, depth=2, width=16, dropout=0.5), **kwargs)).train()
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
    with pytest.raises(ValueError, match=r"tokens must be of shape \(3, 4\), as cond and the head's width say, got \(3, 5\)"):
        head.log_prob(torch.randn(3, 5), torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"tokens must be of shape \(3, 4\), .*, got \(2, 4\)"):
        head.log_prob(torch.randn(2, 4), torch.randn(3, 6))
    with pytest.raises(ValueError, match="tokens must be finite, got some that are not"):
        head.log_prob(torch.tensor([[0.0, math.nan, 0.0, 0.0]]), torch.randn(1, 6))
    with pytest.raises(ValueError, match="cond must be finite, got some that are not"):
        head.log_prob(torch.randn(1, 4), torch.full((1, 6), math.inf))
    assert head.log_prob(torch.empty(0, 3, 4), torch.empty(0, 3, 6)).shape == (0, 3)
    with pytest.raises(ValueError, match="solver must be one of"):
        head.log_prob(torch.randn(3, 4), torch.randn(3, 6), solver="dpmpp_2m")
