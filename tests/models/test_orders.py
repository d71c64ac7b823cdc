"""Models that draw in any order, by closed forms: each order recovers the distribution."""

import math

import pytest
import torch
from helpers import STANDARD_ERRORS, assert_mean, stir

from autoregressive_diffusion_pytorch import Autoregressive, MaskedAutoregressive
from autoregressive_diffusion_pytorch.heads import HEADS
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.models.orders import (
    Order,
    iteration_sizes,
    iterations_of,
    orders_of,
)
from autoregressive_diffusion_pytorch.models.readings import AnyOrderReading
from autoregressive_diffusion_pytorch.utils.rng import randn

MODELS = dict(masked=(MaskedAutoregressive, {}), random=(Autoregressive, dict(order="random")))
models = pytest.mark.parametrize("kind", MODELS)
SIZES = dict(depth=2, heads=2, dim_head=8, mlp_depth=1, mlp_width=16, dim_input=3)
RK4 = dict(solver="rk4", num_steps=2)


def small_model(kind, **kwargs):
    torch.manual_seed(0)
    model_class, own = MODELS[kind]
    sizes = dict(SIZES, head="flow", max_seq_len=(2, 3))
    return stir(model_class(16, **(sizes | own | kwargs))).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# orders


@pytest.mark.parametrize(("count", "iterations"), [(16, 8), (16, 16), (64, 8), (5, 1), (256, 64)])
def test_iterations_draw_all_tokens_few_at_first(count, iterations):
    sizes = iteration_sizes(count, iterations)
    assert len(sizes) == iterations
    assert sum(sizes) == count
    assert min(sizes) >= 1
    left = [count - sum(sizes[: i + 1]) for i in range(iterations)]
    if count >= 8 * iterations:  # nowhere fewer than one
        assert left == [
            math.floor(count * math.cos(math.pi / 2 * (i + 1) / iterations))
            for i in range(iterations)
        ]


def test_an_order_begins_with_what_is_known():
    known = torch.tensor([[1, 4], [0, 5]])
    given = Order(6, known, torch.tensor([5, 4, 3, 2, 1, 0])).positions(4, None)
    assert given.tolist() == 2 * [[1, 4, 5, 3, 2, 0]] + 2 * [[0, 5, 4, 3, 2, 1]]
    raster = Order(6, known[:1], "raster").positions(4, None)
    assert raster.tolist() == [[1, 4, 0, 2, 3, 5]]
    drawn = Order(6, known[:1], "random").positions(1000, seeded())
    assert (drawn[:, :2] == known[:1]).all()
    assert (drawn.sort(dim=1).values == torch.arange(6)).all()
    # each of the others is as often the next
    shares = (drawn[:, 2:3] == torch.tensor([0, 2, 3, 5])).float()
    assert_mean(shares, 0.25)


@models
def test_orders_that_are_none_are_refused(kind):
    model = small_model(kind)
    for order in ([0, 1, 2, 3, 4, 4], [0, 1, 2], [0, 1, 2, 3, 4, 6], "spiral"):
        with pytest.raises(ValueError, match="order must be"):
            model.sample(2, order=order)
    with pytest.raises(ValueError, match="num_iterations must be"):
        model.sample(2, num_iterations=0)
    raster = Autoregressive(16, head="flow", max_seq_len=6, **SIZES)
    with pytest.raises(ValueError, match='order must be "raster"'):
        raster.sample(2, order="random")
    with pytest.raises(ValueError, match="num_iterations is of models that draw in any order"):
        raster.sample(2, num_iterations=3)
    with pytest.raises(TypeError, match="MaskedAutoregressive"):
        raster.fill(torch.randn(1, 6, 3), torch.ones(6, dtype=torch.bool))


# what a position reads


@torch.no_grad()
def test_a_masked_position_reads_the_sets_before_its_own():
    model = small_model("masked")
    seq, order = torch.randn(1, 6, 3), torch.tensor([4, 0, 5, 2, 1, 3])
    given = dict(order=order, num_iterations=3)
    sizes = torch.tensor(iteration_sizes(6, 3))
    sets = torch.empty(6).long()
    sets[order] = torch.repeat_interleave(torch.arange(3), sizes)
    z, counted = model.read(seq, None, **given)
    assert counted.all()
    for i in range(6):
        changed = seq.clone()
        changed[:, i] += 1
        moved = (model.read(changed, None, **given)[0] - z).abs().amax(dim=-1)[0]
        assert (moved[sets > sets[i]] > 1e-5).all()
        assert (moved[sets <= sets[i]] < 1e-6).all()  # not even itself


@torch.no_grad()
def test_known_tokens_are_read_by_all_and_have_no_loss():
    model = small_model("masked")
    seq, sets = torch.randn(1, 6, 3), torch.tensor([[0, 1, 0, 3, 1, 2]])
    model._draw_sets = lambda tokens, lens: sets
    losses = model(seq, loss_reduction="none")
    assert torch.equal(losses == 0, sets == 0)
    z, counted = model.read(seq, None)
    assert torch.equal(counted, sets > 0)
    seq[:, 2] += 1
    moved = (model.read(seq, None)[0] - z).abs().amax(dim=-1)
    assert (moved[counted] > 1e-5).all()


@torch.no_grad()
def test_in_a_random_order_a_position_reads_those_before_it():
    model = small_model("random")
    seq, order = torch.randn(1, 6, 3), torch.tensor([[4, 0, 5, 2, 1, 3]])
    z = model.conditions(seq, order=order)
    for i in range(6):
        changed = seq.clone()
        changed[:, order[0, i]] += 1
        moved = (model.conditions(changed, order=order) - z).abs().amax(dim=-1)[0, order[0]]
        assert (moved[: i + 1] < 1e-6).all()
        assert (moved[i + 1 :] > 1e-5).all()


@pytest.mark.parametrize("order", ["raster", [4, 0, 5, 2, 1, 3]])
@pytest.mark.parametrize("can_cache", [True, False])
@pytest.mark.parametrize("num_iterations", [None, 4, 1])
@torch.no_grad()
def test_a_random_order_with_a_cache_is_the_full_pass(order, can_cache, num_iterations):
    model = small_model("random", num_classes=2)
    model.backbone.can_cache = can_cache
    labels = torch.tensor([0, 1])
    seen, draw = [], model.head.sampler
    model.head.sampler = lambda **options: (
        lambda z, guidance: seen.append(z) or draw(**options)(z, guidance)
    )
    options = dict(labels=labels, order=order, num_iterations=num_iterations)
    seq = model.sample(2, generator=seeded(), **options)
    places = torch.arange(6) if order == "raster" else torch.tensor(order)
    start = 0
    for z in seen:
        # all tokens of an iteration are drawn from what the first of them reads
        for j in range(z.shape[1]):
            turn = places.clone()
            turn[[start, start + j]] = turn[[start + j, start]]
            full = model.conditions(seq, order=turn.expand(2, -1), labels=labels)
            expected = full[:, places[start + j]]
            torch.testing.assert_close(z[:, j], expected, rtol=0, atol=1e-5)
        start += z.shape[1]


@pytest.mark.parametrize("extra", [{}, dict(num_classes=2), dict(dim_cond=5, cross_attend=True)])
@torch.no_grad()
def test_masked_sampling_reads_what_training_reads(extra):
    model = small_model("masked", **extra)
    given = dict(labels=None, cond=None, cond_mask=None)
    if extra:
        given |= dict(labels=torch.tensor([0, 1])) if "num_classes" in extra else {}
        given |= dict(cond=torch.randn(2, 3, 5)) if "dim_cond" in extra else {}
    seen, draw = [], model.head.sampler
    model.head.sampler = lambda **options: (
        lambda z, guidance: seen.append(z) or draw(**options)(z, guidance)
    )
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    seq = model.sample(2, order=order, num_iterations=3, generator=seeded(), **given)
    full, _ = model.read(seq, None, order=order, num_iterations=3, **given)
    torch.testing.assert_close(torch.cat(seen, dim=1), full[:, order], rtol=0, atol=1e-5)


@models
def test_padding_changes_nothing(kind):
    model = small_model(kind, max_seq_len=6)
    seq, lens = torch.randn(2, 6, 3), torch.tensor([6, 4])
    padded = seq.clone()
    padded[1, 4:] = math.nan
    losses = []
    for given in (seq, padded):
        torch.manual_seed(1)
        losses.append(model(given, lens=lens, loss_reduction="none"))
    assert torch.equal(*losses)
    assert (losses[0][1, 4:] == 0).all()
    for options in ({}, dict(order=[4, 0, 5, 2, 1, 3])):
        options |= dict(lens=lens, **RK4)
        densities = [model.log_prob(x, generator=seeded(), **options) for x in (seq, padded)]
        assert torch.equal(*densities)
    # in this order, without padding
    alone = model.log_prob(seq[1:, :4], order=[0, 2, 1, 3], generator=seeded(), **RK4)
    torch.testing.assert_close(densities[0][1:, :4], alone, rtol=1e-4, atol=1e-4)


def test_options_of_the_encoder_that_see_what_is_masked_are_refused():
    with pytest.raises(ValueError, match=r"see others that are masked|has learned positions"):
        small_model("masked", decoder_kwargs=dict(shift_tokens=1))
    with pytest.raises(ValueError, match="has learned positions"):
        small_model("masked", decoder_kwargs=dict(rotary_pos_emb=True))
    small_model("masked", decoder_kwargs=dict(attn_num_mem_kv=2, ff_glu=True)).sample(2)


def test_masks_are_drawn_from_the_truncated_normal():
    model = small_model("masked", max_seq_len=100, min_mask_ratio=0.7, mask_ratio_std=0.25)
    tokens = torch.ones(20_000, 100, dtype=torch.bool)
    known = model._draw_sets(tokens, tokens.sum(dim=1, keepdim=True)) == 0
    ratio = 1 - known.float().mean(dim=1)
    assert ratio.min() >= 0.7
    # of the normal of mean 1 and std 0.25 between 0.7 and 1; a ratio is rounded up to a hundredth
    low = -0.3 / 0.25
    density = math.exp(-(low**2) / 2) / math.sqrt(2 * math.pi)
    share = -math.erf(low / math.sqrt(2)) / 2
    mean = 1 - 0.25 * (1 / math.sqrt(2 * math.pi) - density) / share
    assert_mean(ratio, mean + 0.005, extra=0.002)
    assert_mean(known.float(), 1 - mean, extra=0.007)  # all positions alike


def test_a_training_has_sets_as_a_sampling_has():
    model = small_model("masked", max_seq_len=64)
    tokens = torch.ones(4000, 64, dtype=torch.bool)
    sets = model._draw_sets(tokens, tokens.sum(dim=1, keepdim=True))
    numbers = torch.tensor([len(row[row > 0].unique()) for row in sets])
    assert numbers.min() <= 8
    assert numbers.max() >= 48
    # the share that is left falls as a cosine, in any number of iterations
    for row, number in zip(sets[:200], numbers, strict=False):
        masked = row[row > 0]
        if len(masked) == 64 and number == 16:
            left = [int((masked > i).sum()) for i in range(1, int(masked.max()) + 1)]
            assert left == sorted(left, reverse=True)


# regions


@models
def test_a_filled_region_leaves_the_rest(kind):
    model = small_model(kind)
    seq = torch.randn(3, 6, 3)
    mask = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    read = seq.masked_fill(mask.unsqueeze(-1), math.nan)  # what is drawn anew is not read
    filled = model.fill(read, mask, num_completions=2, generator=seeded())
    assert filled.shape == (6, 6, 3)
    assert filled.isfinite().all()
    for i, one in enumerate(filled):
        assert torch.equal(one[~mask[i // 2]], seq[i // 2][~mask[i // 2]])
    assert not torch.equal(filled[0], filled[1])
    again = model.fill(read, mask, num_completions=2, generator=seeded())
    assert torch.equal(filled, again)


@models
def test_a_full_mask_is_a_sample_and_an_empty_one_nothing(kind):
    model = small_model(kind, num_classes=3)
    seq, labels = torch.randn(2, 6, 3), torch.tensor([2, 0])
    options = dict(labels=labels, guidance_scale=1.5)
    full = model.fill(seq, torch.ones(6).bool(), generator=seeded(), **options)
    assert torch.equal(full, model.sample(2, generator=seeded(), **options))
    assert torch.equal(model.fill(seq, torch.zeros(2, 6).bool(), **options), seq)


@models
def test_each_filled_sequence_has_its_own_label_and_generator(kind):
    model = small_model(kind, num_classes=3)
    seq, labels = torch.randn(2, 6, 3), torch.tensor([2, 0])
    mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    together = dict(labels=labels, guidance_scale=[1.0, 3.0])
    filled = model.fill(seq, mask, generator=[seeded(0), seeded(1)], **together)
    for i in range(2):
        alone = dict(labels=labels[i], guidance_scale=together["guidance_scale"][i])
        one = model.fill(seq[i : i + 1], mask[i], generator=[seeded(i)], **alone)
        torch.testing.assert_close(one[0], filled[i], rtol=1e-4, atol=1e-4)


@models
def test_a_mask_of_another_shape_or_kind_is_refused(kind):
    model = small_model(kind)
    with pytest.raises(ValueError, match="mask must be of shape"):
        model.fill(torch.randn(2, 6, 3), torch.ones(5).bool())
    with pytest.raises(TypeError, match="mask must hold booleans"):
        model.fill(torch.randn(2, 6, 3), torch.ones(6))


@models
def test_a_prompt_comes_first_in_any_order(kind):
    model = small_model(kind)
    prompt = torch.randn(2, 4, 3)
    drawn = model.sample(4, prompt, generator=seeded())
    assert torch.equal(drawn[:, :4], prompt.repeat_interleave(2, dim=0))
    pairs = list(model.stream(4, prompt, generator=seeded()))
    seq = drawn.clone()
    for positions, tokens in pairs:
        assert positions.shape == tokens.shape[:2]
        assert (positions >= 4).all()
        seq.scatter_(1, positions.unsqueeze(-1).expand_as(tokens), tokens)
    assert torch.equal(seq, drawn)


@models
def test_a_sample_depends_on_its_generator_alone(kind):
    model = small_model(kind)
    many = model.sample(3, generator=[seeded(i) for i in range(3)])
    alone = model.sample(1, generator=[seeded(2)])
    torch.testing.assert_close(many[2:], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.sample(3, generator=seeded()), model.sample(3, generator=seeded()))


@models
def test_a_linear_scale_grows_with_the_known_share(kind):
    model = small_model(kind, num_classes=2)
    seen = []
    model.head.sampler = lambda **_: (
        lambda z, guidance: seen.append(guidance[0].scale) or z[..., :3]
    )
    options = dict(labels=0, guidance_scale=4.0, guidance_schedule="linear", num_iterations=3)
    model.sample(2, **options)
    known = torch.tensor(iteration_sizes(6, 3)).cumsum(0) / 6
    assert [float(scale) for scale in seen] == pytest.approx((1 + 3 * known).tolist())


# a Gaussian field, whose conditionals are known


class Exact(Head):
    """Draws N(mean, std²), given as z."""

    def __init__(self, dim_token, dim_z, *, width, depth):
        super().__init__(dim_token, dim_z)

    def forward(self, tokens, z):
        return -self.log_prob(tokens, z)

    def sample(self, z, *, guidance=(), temperature=1.0, generator=None):
        return z[..., :1] + z[..., 1:] * randn((*z.shape[:-1], 1), generator, z.device, z.dtype)

    def log_prob(self, tokens, z, *, generator=None):
        normal = torch.distributions.Normal(z[..., :1], z[..., 1:])
        return normal.log_prob(tokens).squeeze(-1)


PLACES = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double()
COVARIANCE = (-torch.cdist(PLACES, PLACES) / 2).exp()
MEAN = torch.linspace(-1, 1, 16).double()


def conditional(values, known, position):
    """Mean and std of a position, given values (n,) at known positions."""
    if len(known) == 0:
        return torch.stack((MEAN[position], COVARIANCE[position, position].sqrt()))
    weights = torch.linalg.solve(COVARIANCE[known][:, known], COVARIANCE[known, position])
    mean = MEAN[position] + weights @ (values.double()[known] - MEAN[known])
    variance = COVARIANCE[position, position] - weights @ COVARIANCE[known, position]
    return torch.stack((mean, variance.sqrt()))


class ExactReading(AnyOrderReading):
    """All sequences in the order of the first one."""

    def conditions(self, tokens, count):
        self.add(tokens)
        known = self.order[0, : self.num_known]
        z = []
        for position in self.order[0, self.num_known : self.num_known + count]:
            own = [conditional(values, known, position) for values in self.canvas[:1, :, 0]]
            weights = None
            if len(known):
                weights = torch.linalg.solve(
                    COVARIANCE[known][:, known], COVARIANCE[known, position]
                )
            mean = MEAN[position].expand(self.rows)
            if weights is not None:
                mean = mean + (self.canvas[..., 0].double()[:, known] - MEAN[known]) @ weights
            z.append(torch.stack((mean, own[0][1].expand(self.rows)), dim=-1))
        return torch.stack(z, dim=1).float()


def exact_model(kind):
    model_class, own = MODELS[kind]

    class Model(model_class):
        def reading(self, *args):
            return ExactReading(self, *args)

    torch.manual_seed(0)
    sizes = SIZES | dict(dim_input=1)
    return Model(2, head=Exact, max_seq_len=(4, 4), **sizes, **own)


def covariance_error(drawn):
    return drawn.T.cov() - COVARIANCE


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("order", ["raster", "random"])
def test_one_token_at_a_time_draws_the_field_in_any_order(kind, order):
    if order == "random":  # one for all, as the closed form has it
        order = torch.randperm(16, generator=seeded())
    model, count = exact_model(kind), 20_000
    drawn = model.sample(count, order=order, num_iterations=16, generator=seeded())[..., 0].double()
    assert_mean(drawn, MEAN)
    # the error of a covariance of Gaussian samples: (C_ii C_jj + C_ij²) / n
    allowed = STANDARD_ERRORS * ((1 + COVARIANCE.square()) / count).sqrt()
    assert (covariance_error(drawn).abs() <= allowed).all()


def test_tokens_of_one_iteration_are_independent_given_the_others():
    """What several at a time cost: the fewer iterations, the more of the covariance is missing."""
    model, errors = exact_model("masked"), []
    order = torch.randperm(16, generator=seeded())
    for num_iterations in (1, 4, 8, 16):
        options = dict(order=order, num_iterations=num_iterations, generator=seeded())
        drawn = model.sample(20_000, **options)[..., 0].double()
        assert_mean(drawn, MEAN)  # each by itself is right
        errors.append(covariance_error(drawn).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    off_diagonal = COVARIANCE - torch.eye(16)
    assert errors[0] == pytest.approx(off_diagonal.square().mean().sqrt().item(), abs=0.01)
    assert errors[-1] < 0.02


def exact_read(self, seq, mask, *, order, generator, num_iterations=None, **_):
    """What the exact model reads, one token at a time."""
    tokens = torch.ones(seq.shape[:2], dtype=torch.bool)
    orders = orders_of(tokens, order, generator)
    z = torch.zeros(*seq.shape[:2], 2).double()
    for i, places in enumerate(orders):
        for j, place in enumerate(places):
            z[i, place] = conditional(seq[i, :, 0], places[:j], place)
    return z, None


@models
@torch.no_grad()
def test_the_likelihood_is_exact_in_each_order(kind, monkeypatch):
    model = exact_model(kind).double()
    monkeypatch.setattr(type(model), "read", exact_read)
    field = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    torch.manual_seed(1)
    seq = field.sample((2,)).unsqueeze(-1)
    exact = field.log_prob(seq[..., 0])
    for order in ("raster", torch.randperm(16), "random"):
        torch.testing.assert_close(model.log_prob(seq, order=order).sum(dim=1), exact)


@torch.no_grad()
def test_the_likelihood_of_several_at_a_time_is_that_of_their_sets():
    model = small_model("masked")
    seq, order = torch.randn(2, 6, 3), torch.tensor([4, 0, 5, 2, 1, 3])
    z, _ = model.read(seq, None, order=order, num_iterations=3)
    expected = model.head.log_prob(seq, z, **RK4)
    densities = model.log_prob(seq, order=order, num_iterations=3, **RK4)
    torch.testing.assert_close(densities, expected)
    assert not torch.allclose(densities, model.log_prob(seq, order=order, **RK4))
    with pytest.raises(ValueError, match="num_iterations of a density is of masked models"):
        small_model("random").log_prob(seq, num_iterations=3)


def test_iterations_of_padded_sequences_are_those_of_their_length():
    rank = torch.arange(6).expand(2, -1)
    drawn = iterations_of(rank, torch.tensor([6, 4]), 3)
    assert drawn[0].bincount().tolist() == iteration_sizes(6, 3)
    assert drawn[1, :4].bincount().tolist() == iteration_sizes(4, 3)
    assert torch.equal(iterations_of(rank, torch.tensor([6, 4]), None), rank)


@torch.no_grad()
def test_the_likelihood_of_a_random_order_is_of_the_order_that_is_given():
    model = small_model("random")
    seq, order = torch.randn(2, 6, 3), torch.tensor([4, 0, 5, 2, 1, 3])
    for given, places in (("raster", torch.arange(6)), (order, order)):
        z = model.conditions(seq, order=places.expand(2, -1))
        expected = model.head.log_prob(seq, z, **RK4)
        torch.testing.assert_close(model.log_prob(seq, order=given, **RK4), expected)
    first, again, other = (model.log_prob(seq, generator=seeded(i), **RK4) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# training


@models
def test_context_guidance_and_dropout_work_in_any_order(kind):
    model = small_model(kind, context_drop_prob=0.5).train()
    model(torch.randn(4, 6, 3)).backward()
    assert model.no_context.tables[0].grad.abs().sum() > 0
    plain = model.sample(2, generator=seeded())
    assert not torch.equal(plain, model.sample(2, context_guidance=2.0, generator=seeded()))


@models
@pytest.mark.parametrize("head", HEADS)
def test_all_heads_train_and_draw_in_any_order(kind, head):
    model = small_model(kind, head=head, num_classes=2).train()
    labels = torch.tensor([0, 1, 1, 0])
    model(torch.randn(4, 6, 3), labels=labels).backward()
    options = dict(labels=labels, guidance_scale=2.0, num_iterations=3, generator=seeded())
    for precision in ("no", "bf16"):
        assert model.eval().sample(4, precision=precision, **options).isfinite().all()


def test_random_orders_are_annealed_to_raster():
    model = small_model("random", anneal_to_raster=(0.25, 0.75)).train()
    seen, conditions = [], model.conditions
    model.conditions = lambda *args, order, **kwargs: (
        seen.append(order) or conditions(*args, order=order, **kwargs)
    )
    shares = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        model.set_progress(progress)
        model(torch.randn(2000, 6, 3))
        shares.append((seen[-1] == torch.arange(6)).all(dim=1).float())
    by_chance = 1 / math.factorial(6)
    for share, random_share in zip(shares, (1, 1, 0.5, 0, 0), strict=True):
        assert_mean(share, 1 - random_share * (1 - by_chance), extra=1e-6)
    # what is drawn and measured stays in random order
    model.eval().log_prob(torch.randn(2000, 6, 3), **RK4)
    assert (seen[-1] == torch.arange(6)).all(dim=1).float().mean() < 0.05
    with pytest.raises(ValueError, match='anneal_to_raster needs order="random"'):
        Autoregressive(16, head="flow", max_seq_len=6, anneal_to_raster=(0, 1), **SIZES)
    with pytest.raises(ValueError, match="anneal_to_raster must be two growing shares"):
        small_model("random", anneal_to_raster=(0.5, 0.5))


@models
def test_a_model_of_any_order_learns_a_chain(kind):
    """Neighbours of a chain correlate by 0.9, however they are drawn."""
    torch.manual_seed(0)
    model_class, own = MODELS[kind]
    sizes = dict(depth=2, heads=2, dim_head=16, mlp_depth=2, mlp_width=32, dim_input=1)
    model = model_class(32, head="energy", max_seq_len=4, **sizes, **own)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        steps = torch.randn(128, 4)
        chain = [steps[:, 0]]
        for i in range(1, 4):
            chain.append(0.9 * chain[-1] + math.sqrt(1 - 0.81) * steps[:, i])
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 150)
        optimizer.zero_grad()
        model(torch.stack(chain, dim=1).unsqueeze(-1)).backward()
        optimizer.step()
    drawn = model.eval().sample(2000, num_iterations=4, generator=seeded())[..., 0]
    lag = torch.corrcoef(drawn.T).diagonal(offset=1)
    assert (drawn.std(dim=0) - 1).abs().max() < 0.15
    assert (lag - 0.9).abs().max() < 0.06
