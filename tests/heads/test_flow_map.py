"""The flow map: closed forms, and what it takes over from a teacher."""

import math

import pytest
import torch
from helpers import STANDARD_ERRORS, assert_std, stir, train

from autoregressive_diffusion_pytorch import (
    ElucidatedDiffusion,
    EnergyScore,
    FlowMap,
    RectifiedFlow,
)
from autoregressive_diffusion_pytorch.heads.flow_map import point_of_way
from autoregressive_diffusion_pytorch.heads.guidance import Guidance

SIGMA_DATA = 0.7
teachers = pytest.mark.parametrize("teacher_class", [RectifiedFlow, ElucidatedDiffusion])
objectives = pytest.mark.parametrize("objective", ["lsd", "psd"])


def make_head(**kwargs) -> FlowMap:
    return FlowMap(4, 6, **dict(width=16, depth=2, sigma_data=SIGMA_DATA) | kwargs)


def points(count=7):
    """Tokens on the path, starts and ends of steps, and conditions, in double precision."""
    generator = torch.Generator().manual_seed(0)
    double = dict(generator=generator, dtype=torch.float64)
    x, z = torch.randn(count, 4, **double), torch.randn(count, 6, **double)
    s, t = torch.rand(2, count, 1, **double).sort(dim=0).values
    return x, s, t, z


def velocity(head, x, s, t, z):
    modulation = head.modulate_time(s.squeeze(-1), t.squeeze(-1)) + head.net.modulate_z(z)
    return head.average_velocity(x, s, t, modulation, head.scale)


def map_error(head, x, s, t, z):
    error = dict(lsd=head.lagrangian_error, psd=head.progressive_error)[head.objective]
    return error(x, s, t, head.net.modulate_z(z), head.scale)


@objectives
def test_a_network_of_zero_is_the_exact_map_of_a_gaussian(objective):
    head, (x, s, t, z) = make_head(objective=objective).double(), points()
    # the standard deviation of t · token + (1 - t) · noise
    ratio = (t * SIGMA_DATA).hypot(1 - t) / (s * SIGMA_DATA).hypot(1 - s)
    torch.testing.assert_close(x + (t - s) * velocity(head, x, s, t, z), ratio * x)
    # it agrees with itself: neither objective has anything to mend
    assert map_error(head, x, s, t, z).abs().max() < 1e-12


@objectives
def test_a_map_that_is_no_map_has_an_error(objective):
    head, (x, s, t, z) = stir(make_head(objective=objective).double()), points()
    assert map_error(head, x, s, t, z).abs().mean() > 1e-2


def test_the_lagrangian_error_is_that_of_central_differences():
    head, (x, s, t, z) = stir(make_head().double()), points()

    def end(t):
        return x + (t - s) * velocity(head, x, s, t, z)

    step = 1e-5
    slope = (end(t + step) - end(t - step)) / (2 * step)
    expected = slope - velocity(head, end(t), t, t, z)
    torch.testing.assert_close(map_error(head, x, s, t, z), expected, rtol=1e-5, atol=1e-6)


def test_the_diagonal_is_a_flow():
    head, (x, _, t, z) = stir(make_head().double()), points()
    modulation = head.modulate_time(t.squeeze(-1)) + head.net.modulate_z(z)
    flow = RectifiedFlow.velocity(head, x, t, modulation, SIGMA_DATA)
    torch.testing.assert_close(velocity(head, x, t, t, z), flow)
    # in evaluation its loss is the flow's: the network alone differs
    head.eval()
    torch.manual_seed(0)
    loss = head(x, z)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, RectifiedFlow.forward(head, x, z))


def test_many_steps_of_the_map_are_those_of_euler_on_the_diagonal(monkeypatch):
    head, (_, _, _, z) = stir(make_head().double()), points()
    of_both = head.net.modulate_time
    # a network that does not hear of the end of a step
    monkeypatch.setattr(head.net, "modulate_time", lambda s, span: of_both(s, 0 * span))

    def draw(num_steps):
        generator = torch.Generator().manual_seed(0)
        return head.sample(z, num_steps=num_steps, generator=generator)

    def euler(num_steps):
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for i in range(num_steps):
            t = torch.full((7, 1), i / num_steps, dtype=torch.float64)
            x = x + velocity(head, x, t, t, z) / num_steps
        return x

    # they differ by the slope, exact for Gaussian tokens: by the square of a step in each
    errors = [(draw(n) - euler(n)).abs().max().item() for n in (64, 128)]
    print(errors)
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


@objectives
def test_no_gradient_reaches_a_target(objective, monkeypatch):
    head, (x, s, t, z) = stir(make_head(objective=objective).double()), points()
    seen, own = [], type(head).average_velocity

    def record(self, *args):
        seen.append(torch.is_grad_enabled())
        return own(self, *args)

    monkeypatch.setattr(FlowMap, "average_velocity", record)
    map_error(head, x, s, t, z).square().mean().backward()
    assert seen.count(True) == 1
    assert all(p.grad is not None for p in head.net.parameters())


@objectives
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_losses_of_tokens_of_any_shape(objective, shape):
    head = stir(make_head(objective=objective, num_noise_draws=4, off_diagonal=0.25))
    losses = head(torch.randn(*shape, 4), torch.randn(*shape, 6))
    assert losses.shape == shape
    metrics = head.metrics()
    assert metrics.keys() == {"flow_error", "map_error"}
    torch.testing.assert_close(
        losses.mean(), 0.75 * metrics["flow_error"] + 0.25 * metrics["map_error"]
    )


def test_the_lagrangian_error_is_in_single_precision_whatever_the_training():
    head, (x, s, t, z) = stir(make_head()), points()
    x, s, t, z = (given.float() for given in (x, s, t, z))
    expected = map_error(head, x, s, t, z)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.lagrangian_error(x, s, t, head.net.modulate_z(z), SIGMA_DATA)
    assert found.dtype == torch.float32
    # the conditions alone were rounded
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@objectives
def test_gradients_can_be_checkpointed(objective):
    head, (x, _, _, z) = stir(make_head(objective=objective)), points()
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        head(x.float(), z.float()).mean().backward()
        gradients.append([p.grad.clone() for p in head.parameters()])
        head.zero_grad()
        head.checkpoint_gradients()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_steps_and_their_ends():
    torch.manual_seed(0)
    s, t = make_head(objective="psd", at_ends=0.3).draw_steps(torch.empty(20_000, 1))
    assert ((s <= t) & (s >= 0) & (t <= 1)).all()
    for share, at_end in ((0.3, s == 0), (0.3, t == 1), (0.09, (s == 0) & (t == 1))):
        error = STANDARD_ERRORS * math.sqrt(share * (1 - share) / 20_000)
        assert at_end.float().mean().item() == pytest.approx(share, abs=error)
    assert (make_head(at_ends=0.3).draw_steps(torch.empty(1000, 1))[1] < 1).all()


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_sample_takes_an_evaluation_a_step(num_steps, monkeypatch):
    head, calls = stir(make_head()), []
    denoise = head.net.denoise
    monkeypatch.setattr(head.net, "denoise", lambda *args: calls.append(1) or denoise(*args))
    z = torch.randn(3, 6)
    drawn = head.sample(z, num_steps=num_steps, guidance=[Guidance(torch.randn(6), 1.5)])
    assert drawn.shape == (3, 4)
    assert len(calls) == num_steps == head.num_evaluations(num_steps=num_steps)
    assert head.sampling_settings() == dict(solver="map", num_steps=1)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_samples_of_a_gaussian_are_exact_in_any_number_of_steps(num_steps):
    head = make_head().double()
    z = torch.zeros(20_000, 6, dtype=torch.float64)
    drawn = head.sample(z, num_steps=num_steps, generator=torch.Generator().manual_seed(0))
    assert_std(drawn, SIGMA_DATA)
    colder = head.sample(
        z, num_steps=num_steps, temperature=0.5, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(colder, 0.5 * drawn)


@teachers
def test_a_teacher_s_flow_is_taken_over(teacher_class):
    torch.manual_seed(0)

    def draw_batch():
        z = torch.randn(128, 1)
        return z + 0.3 * torch.randn(128, 2), z

    teacher = teacher_class(2, 1, width=32, depth=1)
    train(teacher, draw_batch, 300, learning_rate=3e-3)
    student = FlowMap(2, 1, width=32, depth=1)
    student.imitate(teacher)
    assert student.scale == teacher.scale
    assert not any("teacher" in name for name in student.state_dict())
    assert all(p.requires_grad for p in teacher.parameters())  # a copy of it is frozen
    assert student.to(torch.float64)(*(x.double() for x in draw_batch())).isfinite().all()
    student.to(torch.float32)

    # before any training its flow is the teacher's
    tokens, z = draw_batch()
    times = torch.linspace(0.02, 0.98, 128).unsqueeze(-1)
    x = torch.lerp(torch.randn_like(tokens), tokens, times)
    wanted = student.velocity_of_teacher(x, times, z)
    found = velocity(student, x, times, times, z)
    assert (found - wanted).square().mean() < 0.01 * wanted.square().mean()

    # one evaluation then draws what the teacher draws in many
    z = torch.full((5000, 1), 0.5)
    train(student, draw_batch, 200, learning_rate=3e-3)
    drawn = student.sample(z, generator=torch.Generator().manual_seed(0))
    of_teacher = teacher.sample(z, num_steps=16, generator=torch.Generator().manual_seed(0))
    assert drawn.mean(dim=0).tolist() == pytest.approx(of_teacher.mean(dim=0).tolist(), abs=0.05)
    assert drawn.std(dim=0).tolist() == pytest.approx(of_teacher.std(dim=0).tolist(), rel=0.15)


def student_of(teacher_class, steps=None, **kwargs):
    """A student and its teacher; a fresh one draws Gaussian tokens, as exactly as its steps."""
    sizes = dict(width=16, depth=2, sigma_data=SIGMA_DATA, num_sample_steps=steps)
    teacher, student = teacher_class(4, 6, **sizes).double(), make_head(**kwargs).double()
    return student, teacher


def imitation_error(student, noise, z):
    return student.imitation_error(noise, z, student.net.modulate_z(z), SIGMA_DATA)


@pytest.mark.parametrize("teacher_class", [RectifiedFlow, ElucidatedDiffusion, FlowMap])
def test_the_way_of_a_teacher_leads_from_noise_to_its_sample(teacher_class):
    student, teacher = student_of(teacher_class)
    student.imitate(stir(teacher))
    _, _, _, z = points()
    noise = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states, times = student.way_of_teacher(noise, z)
    assert len(states) == len(times) == 9
    assert (times[0], times[-1]) == (0, 1)
    assert (times.diff() > 0).all()
    assert torch.equal(states[0], noise)
    generator = torch.Generator().manual_seed(0)
    drawn = teacher.sample(z, solver="dpmpp_2m", generator=generator)
    torch.testing.assert_close(states[-1], drawn)


def test_points_of_a_way():
    states = torch.randn(3, 2, 7, 4).double()  # at three times, of two ways for seven conditions
    times = torch.tensor([0, 0.2, 1]).double()
    share = torch.rand(7, 1).double()
    for i in range(3):
        found = point_of_way(states, times, times[i].repeat(7, 1))
        assert torch.equal(found, states[i])
    for i in range(2):
        found = point_of_way(states, times, torch.lerp(times[i], times[i + 1], share))
        torch.testing.assert_close(found, torch.lerp(states[i], states[i + 1], share))


def test_most_steps_of_a_teacher_s_way_are_whole():
    student, teacher = student_of(RectifiedFlow)
    student.imitate(teacher)
    torch.manual_seed(0)
    s, t = student.draw_steps(torch.empty(20_000, 1))
    for share, at_end in ((0.8, s == 0), (0.8, t == 1), (0.64, (s == 0) & (t == 1))):
        error = STANDARD_ERRORS * math.sqrt(share * (1 - share) / 20_000)
        assert at_end.float().mean().item() == pytest.approx(share, abs=error)


@teachers
def test_the_exact_map_errs_only_by_the_steps_of_its_teacher(teacher_class):
    errors = []
    for steps in (16, 64, 256):
        student, teacher = student_of(teacher_class, steps)
        student.imitate(teacher)
        torch.manual_seed(0)
        noise, z = torch.randn(3, 500, 4).double(), torch.randn(500, 6).double()
        errors.append(imitation_error(student, noise, z)[0].mean().sqrt().item())
    print(errors)
    assert errors[0] < 0.02
    assert errors[-1] < 1e-3
    assert errors == sorted(errors, reverse=True)


def test_steps_that_end_too_close_or_too_far_apart_score_worse(monkeypatch):
    student, teacher = student_of(RectifiedFlow, 16)
    student.imitate(teacher)
    own, scores = student._velocity, {}
    for factor in (0.8, 1.0, 1.25):

        def scaled(x, s, t, *args, factor=factor):
            return (factor * (x + (t - s) * own(x, s, t, *args)) - x) / (t - s)

        monkeypatch.setattr(student, "_velocity", scaled)
        torch.manual_seed(0)
        noise, z = torch.randn(4, 2000, 4).double(), torch.zeros(2000, 6).double()
        scores[factor] = imitation_error(student, noise, z)[1].mean().item()
    print(scores)
    assert scores[1.0] < min(scores[0.8], scores[1.25])


@pytest.mark.parametrize("num_noise_draws", [2, 6])
def test_a_teacher_gets_no_gradient(num_noise_draws):
    student, teacher = student_of(RectifiedFlow, num_noise_draws=num_noise_draws)
    student.imitate(stir(teacher))
    x, _, _, z = points()
    student(x, z).mean().backward()
    (copied,) = student._teacher
    assert all(p.grad is None and not p.requires_grad for p in copied.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert student.metrics().keys() == {"flow_error", "map_error"}


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="objective must be one of 'lsd', 'psd', got 'msd'"):
        make_head(objective="msd")
    with pytest.raises(ValueError, match="model_output_clean must be one of True, got False"):
        make_head(model_output_clean=False)
    with pytest.raises(ValueError, match="off_diagonal must leave noise draws for the map and for"):
        make_head(num_noise_draws=1)
    with pytest.raises(ValueError, match="solver must be one of 'map', 'dpmpp_2m'"):
        make_head(solver="euler_map")
    teacher = EnergyScore(4, 6, width=16, depth=2)
    with pytest.raises(TypeError, match="must be a diffusion or flow head, is EnergyScore"):
        make_head().imitate(teacher)


class ExactNet(torch.nn.Module):
    """The network of the exact map of N(z, std²), for tokens and conditions of width 1."""

    def __init__(self, std):
        super().__init__()
        self.proj_in = torch.nn.Linear(1, 1)
        self.std = std

    def modulate_time(self, start, span):
        return torch.stack((start, start + span, torch.zeros_like(start)), dim=-1)

    def modulate_z(self, z):
        return torch.cat((torch.zeros(*z.shape[:-1], 2, dtype=z.dtype), z), dim=-1)

    def denoise(self, scaled, modulation):
        s, t, mean = modulation.split(1, dim=-1)

        def std_at(time, std):
            return (time * std).hypot(1 - time)

        def average_slope(std):  # of X(s, t, x) - x over t - s; at s = t its limit
            sums = (1 + std**2) * (s + t) - 2
            return sums / (std_at(s, std) * (std_at(s, std) + std_at(t, std)))

        x = scaled * std_at(s, SIGMA_DATA)
        velocity = mean + average_slope(self.std) * (x - s * mean)
        return (velocity - average_slope(SIGMA_DATA) * x) * std_at(s, SIGMA_DATA) / SIGMA_DATA


@pytest.mark.parametrize("target", ["tokens", "conditions"])
def test_a_scale_of_guidance_means_the_same_in_one_step_and_in_many(target):
    head = FlowMap(1, 1, width=1, depth=1, sigma_data=SIGMA_DATA)
    head.net = ExactNet(0.1)
    z, other = torch.full((20_000, 1), 0.3, dtype=torch.float64), torch.tensor([0.1])
    for options in (dict(num_steps=1), dict(num_steps=8), dict(solver="dpmpp_2m", num_steps=32)):
        generator = torch.Generator().manual_seed(0)
        guidance = [Guidance(other.double(), 2.0, target=target)]
        drawn = head.sample(z, guidance=guidance, generator=generator, **options)
        # 0.1 + 2 · (0.3 - 0.1); within the bound of a guided token
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
        assert drawn.std().item() == pytest.approx(0.1, rel=0.05)
