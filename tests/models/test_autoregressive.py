import math
import warnings
from functools import partial

import pytest
import torch
from helpers import (
    CACHED,
    STANDARD_ERRORS,
    UNCACHED,
    assert_mean,
    assert_std,
    ideal_head,
    needs_compiler,
    parameters,
    record_steps,
    stir,
)

from autoregressive_diffusion_pytorch import (
    AutoregressiveDiffusion,
    AutoregressiveEnergy,
    AutoregressiveFlow,
    AutoregressiveFlowMap,
)
from autoregressive_diffusion_pytorch.heads.guidance import Guidance

MODELS = [AutoregressiveDiffusion, AutoregressiveFlow]
models = pytest.mark.parametrize("model_class", MODELS)
every_model = pytest.mark.parametrize(
    "model_class", [*MODELS, AutoregressiveFlowMap, AutoregressiveEnergy]
)
POSITIONS = {
    "absolute": dict(max_seq_len=6),
    "axial": dict(max_seq_len=(2, 3)),
    "rotary": dict(max_seq_len=6, decoder_kwargs=dict(rotary_pos_emb=True)),
    "xpos": dict(max_seq_len=6, decoder_kwargs=dict(rotary_xpos=True)),
    "polar": dict(max_seq_len=6, decoder_kwargs=dict(polar_pos_emb=True)),
    "alibi": dict(max_seq_len=6, decoder_kwargs=dict(alibi_pos_bias=True)),
    "relative": dict(max_seq_len=6, decoder_kwargs=dict(rel_pos_bias=True)),
}


def small_model(model_class, **kwargs):
    sizes = dict(
        max_seq_len=6, depth=2, heads=2, dim_head=8, mlp_depth=2, mlp_width=24, dim_input=4
    )
    return stir(model_class(16, **(sizes | kwargs)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@models
@pytest.mark.parametrize("kwargs", parameters(POSITIONS))
@torch.no_grad()
def test_a_condition_reads_only_earlier_tokens(model_class, kwargs):
    model = small_model(model_class, **kwargs).eval()
    seq = torch.randn(3, 6, 4)
    conds = model.conditions(seq)
    assert conds.shape == (3, 6, 16)
    for j in range(6):
        changed = seq.clone()
        changed[:, j] += 1
        moved = (model.conditions(changed) - conds).abs().amax(dim=(0, 2))
        assert (moved[: j + 1] < 1e-6).all()
        assert (moved[j + 1 :] > 1e-5).all()


@models
@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED, UNCACHED))
def test_cached_sampling_equals_uncached(model_class, decoder_kwargs):
    model = small_model(model_class, decoder_kwargs=decoder_kwargs)
    prompt = torch.randn(3, 2, 4)
    cached = [model.sample(3, generator=seeded()), model.sample(3, prompt, generator=seeded())]
    model.backbone.can_cache = False
    uncached = [model.sample(3, generator=seeded()), model.sample(3, prompt, generator=seeded())]
    for a, b in zip(cached, uncached, strict=True):
        # to 1e-5 of the samples' own scale, which stirred weights have made large
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@every_model
def test_sampling_draws_each_token_from_the_condition_of_training(model_class):
    # the sampling loop against the training pass and the head alone
    model = small_model(model_class).eval()
    generator = seeded()
    seq = torch.zeros(2, 6, 4)
    for i in range(6):
        seq[:, i] = model.head.sample(model.conditions(seq)[:, i], generator=generator)
    torch.testing.assert_close(model.sample(2, generator=seeded()), seq, rtol=1e-4, atol=1e-4)


@models
def test_a_prompt_comes_back_untouched_and_changes_what_follows(model_class):
    model = small_model(model_class)
    prompt, other = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    sample = model.sample(3, prompt, generator=seeded())
    assert sample.shape == (3, 6, 4)
    assert torch.equal(sample[:, :2], prompt)
    following = model.sample(3, other, generator=seeded())[:, 2:]
    assert (sample[:, 2:] - following).abs().amax(dim=-1).amin() > 1e-4


@models
def test_prompts_of_every_length(model_class):
    model = small_model(model_class)
    for length in range(7):
        prompt = torch.randn(2, length, 4)
        sample = model.sample(2, prompt)
        assert sample.shape == (2, 6, 4)
        assert torch.equal(sample[:, :length], prompt)
    # one prompt for many samples, and a batch as large as the prompts
    assert torch.equal(model.sample(5, prompt[:1])[3, :6], prompt[0])
    assert model.sample(prompt=prompt).shape == (2, 6, 4)


@models
def test_a_stream_is_the_tokens_of_a_sample_one_by_one(model_class):
    model = small_model(model_class).train()
    prompt = torch.randn(1, 2, 4)
    sample = model.sample(3, prompt, solver="heun", num_steps=2, generator=seeded())
    stream = model.stream(3, prompt, solver="heun", num_steps=2, generator=seeded())
    tokens = []
    for token in stream:
        assert model.training  # between tokens the model is as it was
        assert torch.is_grad_enabled()
        assert not token.is_inference()
        tokens.append(token)
    assert torch.equal(torch.stack(tokens, dim=1), sample[:, 2:])


@models
def test_a_stream_can_be_left_and_its_arguments_are_checked_at_once(model_class):
    model = small_model(model_class).train()
    token = next(iter(model.stream(2)))
    assert token.shape == (2, 4)
    assert model.training
    for arguments in (
        dict(batch_size=0),
        dict(num_steps=0),
        dict(solver="rk4"),
        dict(prompt=torch.zeros(1, 1, 5)),
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            model.stream(**arguments)
    with pytest.raises(TypeError, match="num_step"):
        model.stream(num_step=3)


@needs_compiler
def test_a_compiled_sampler_draws_the_same():
    sizes = dict(depth=1, mlp_depth=1, max_seq_len=20, context_drop_prob=0.1)
    model = small_model(AutoregressiveDiffusion, **sizes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")  # it must not fall back
        compiled = model.sample(2, compile=True, num_steps=4, temperature=0.9, generator=seeded())
    # the head's loop for the first token and for others; the transformer's step without a cache,
    # with one token in it, and with any number
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    expected = model.sample(2, num_steps=4, temperature=0.9, generator=seeded())
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)


@models
def test_bfloat16_samples_are_near_those_of_single_precision(model_class):
    # weights moved little, so that differences do not grow from token to token
    model = model_class(32, max_seq_len=8, depth=2, heads=2, dim_head=16, mlp_width=32, dim_input=4)
    stir(model, 0.03)
    exact = model.sample(64, generator=seeded())
    rounded = model.bfloat16().sample(64, generator=seeded())
    assert rounded.dtype == torch.float32
    # bfloat16 rounds by up to 0.4 %, in each of a dozen products and norms of the head and two
    # dozen of the transformer
    assert 0 < (rounded - exact).square().mean().sqrt() < 36 * 0.004 * exact.std()


@models
def test_losses_of_shorter_sequences_and_of_single_tokens(model_class):
    model = small_model(model_class)
    seq = torch.randn(3, 4, 4)
    assert model(seq).shape == ()
    torch.manual_seed(1)
    losses = model(seq, loss_reduction="none")
    assert losses.shape == (3, 4)
    torch.manual_seed(1)
    torch.testing.assert_close(model(seq), losses.mean())


@models
def test_noised_tokens_are_read_but_not_predicted(model_class):
    model = small_model(model_class).eval()
    seq, noised = torch.randn(3, 6, 4), torch.randn(3, 6, 4)
    torch.manual_seed(1)
    losses = model(seq, noised_seq=noised, loss_reduction="none")
    torch.manual_seed(1)
    torch.testing.assert_close(losses, model.head(seq, model.conditions(noised)))


@models
def test_all_parameters_learn(model_class):
    model = small_model(model_class, decoder_kwargs=dict(rotary_pos_emb=True))
    model(torch.randn(3, 6, 4)).backward()
    idle = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []


@models
def test_same_seed_same_result(model_class):
    model = small_model(model_class)
    first, second, other = (model.sample(2, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
    assert torch.equal(*(model.sample(2, temperature=0.0) for _ in range(2)))


@models
def test_sampling_leaves_each_module_in_its_mode(model_class):
    model = small_model(
        model_class, mlp_kwargs=dict(dropout=0.5), decoder_kwargs=dict(attn_dropout=0.5)
    ).train()
    model.proj_in.eval()
    modes = [module.training for module in model.modules()]
    samples = [model.sample(generator=seeded()) for _ in range(2)]
    assert torch.equal(*samples)  # no dropout while sampling
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="num_steps"):
        model.sample(num_steps=0)
    assert [module.training for module in model.modules()] == modes


@models
def test_sampling_and_training_in_turn(model_class):
    # what is sampled in inference mode must not spoil the training that follows
    model = small_model(model_class, decoder_kwargs=dict(alibi_pos_bias=True))
    with torch.inference_mode():
        inference = model.sample(2, generator=seeded())
    torch.testing.assert_close(inference, model.sample(2, generator=seeded()))
    assert not model.sample(2).requires_grad
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model(model.sample(2)).backward()


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_floating_types(model_class, dtype):
    model = small_model(model_class, decoder_kwargs=dict(rotary_pos_emb=True)).to(dtype)
    sample = model.sample(2)
    assert sample.dtype == torch.promote_types(dtype, torch.float32)
    assert sample.isfinite().all()
    model(torch.randn(2, 6, 4, dtype=dtype)).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_model
@pytest.mark.parametrize("generator_device", ["cpu", "cuda", None])
def test_on_a_gpu(model_class, generator_device):
    model = small_model(model_class, decoder_kwargs=dict(rotary_pos_emb=True)).cuda()
    model(torch.randn(2, 6, 4, device="cuda")).backward()
    prompt = torch.randn(2, 2, 4, device="cuda")
    generators = [
        generator_device and torch.Generator(generator_device).manual_seed(0) for _ in range(2)
    ]
    cached = model.sample(2, prompt, generator=generators[0])
    assert cached.device.type == "cuda"
    assert torch.equal(cached[:, :2], prompt)
    if generator_device is not None:
        model.backbone.can_cache = False
        torch.testing.assert_close(
            model.sample(2, prompt, generator=generators[1]), cached, rtol=1e-3, atol=1e-3
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@models
def test_log_prob_on_a_gpu(model_class):
    model, seq = small_model(model_class), 0.5 * torch.randn(3, 6, 4)
    for options in (dict(divergence="exact"), dict(divergence="hutchinson")):
        options |= dict(solver="midpoint", num_steps=8)
        on_cpu = model.cpu().log_prob(seq, lens=[6, 2, 5], generator=seeded(), **options)
        on_gpu = model.cuda().log_prob(seq.cuda(), lens=[6, 2, 5], generator=seeded(), **options)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)
    assert model.log_prob(seq.cuda()).device.type == "cuda"  # by adapted steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_model
def test_compiled_on_a_gpu(model_class):
    model = small_model(model_class, max_seq_len=12).cuda()
    plain = model.sample(2, generator=seeded())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")
        # a captured graph must not write over the earlier ones
        tokens = list(model.stream(2, compile=True, generator=seeded()))
    torch.testing.assert_close(torch.stack(tokens, dim=1), plain, rtol=1e-3, atol=1e-3)


@models
@pytest.mark.parametrize(
    ("seq", "error", "message"),
    [
        (
            torch.zeros(2, 6, 5),
            ValueError,
            r"seq must be of shape \(b n 4\) with b >= 1 and 1 <= n <= 6, got \(2, 6, 5\)",
        ),
        (torch.zeros(2, 7, 4), ValueError, r"got \(2, 7, 4\)"),
        (torch.zeros(2, 0, 4), ValueError, r"got \(2, 0, 4\)"),
        (torch.zeros(0, 6, 4), ValueError, r"got \(0, 6, 4\)"),
        (torch.zeros(6, 4), ValueError, r"got \(6, 4\)"),
        (
            torch.zeros(2, 6, 4, dtype=torch.long),
            TypeError,
            "seq must hold real numbers, got torch.int64",
        ),
    ],
)
def test_bad_sequences(model_class, seq, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class)(seq)


@models
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(batch_size=0), ValueError, "batch_size must be a whole number of at least 1, got 0"),
        (
            dict(batch_size=2.0),
            ValueError,
            "batch_size must be a whole number of at least 1, got 2.0",
        ),
        (
            dict(batch_size=3, prompt=torch.zeros(2, 1, 4)),
            ValueError,
            "batch_size must be a multiple of 2, the number of prompts, labels or vectors, got 3",
        ),
        (dict(seq_len=7), ValueError, "seq_len must be at most max_seq_len = 6, got 7"),
        (dict(seq_len=0), ValueError, "seq_len must be a whole number of at least 1, got 0"),
        (
            dict(seq_len=2, prompt=torch.zeros(2, 3, 4)),
            ValueError,
            r"prompt must be of shape .* 0 <= n <= 2, got \(2, 3, 4\)",
        ),
        (
            dict(guidance_scale=2.0),
            ValueError,
            "guidance_scale other than 1 needs a model with num_classes or dim_cond",
        ),
        (
            dict(prompt=torch.zeros(2, 7, 4)),
            ValueError,
            r"prompt must be of shape \(b n 4\) with b >= 1 and 0 <= n <= 6",
        ),
        (dict(prompt=torch.zeros(2, 1, 3)), ValueError, "prompt must be of shape"),
        (
            dict(prompt=torch.zeros(2, 1, 4, dtype=torch.int32)),
            TypeError,
            "prompt must hold real numbers",
        ),
        (dict(temperature=-1.0), ValueError, "temperature must be at least 0"),
    ],
)
def test_bad_sampling_arguments(model_class, arguments, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class).sample(**arguments)


@models
def test_other_bad_arguments(model_class):
    model = small_model(model_class)
    with pytest.raises(ValueError, match="loss_reduction must be one of 'mean', 'none', got 'sum'"):
        model(torch.zeros(2, 6, 4), loss_reduction="sum")
    with pytest.raises(
        ValueError, match=r"noised_seq must have the shape of seq, \(2, 6, 4\), got \(2, 5, 4\)"
    ):
        model(torch.zeros(2, 6, 4), noised_seq=torch.zeros(2, 5, 4))
    with pytest.raises(TypeError, match="mlp_dept"):
        small_model(model_class, mlp_dept=2)


CONDITIONED = {
    "labels": dict(num_classes=3),
    "vectors": dict(dim_cond=5),
    "both": dict(num_classes=3, dim_cond=5, num_cond_tokens=2),
    "cross-attention": dict(dim_cond=5, cross_attend=True),
    "both-cross-attention": dict(num_classes=3, dim_cond=5, cross_attend=True),
    "both-rotary": dict(num_classes=3, dim_cond=5, decoder_kwargs=dict(rotary_pos_emb=True)),
    "both-uncached": dict(
        num_classes=3, dim_cond=5, decoder_kwargs=dict(attn_data_dependent_alibi=True)
    ),
    "labels-shifted": dict(num_classes=3, decoder_kwargs=dict(shift_tokens=1)),
}
conditioned = pytest.mark.parametrize("kwargs", parameters(CONDITIONED))


def draw_conditions(kwargs, batch_size=3, length=4):
    """Labels and vectors for a model, of sequences of different lengths."""
    conditions = {}
    if "num_classes" in kwargs:
        conditions["labels"] = torch.arange(batch_size) % kwargs["num_classes"]
    if "dim_cond" in kwargs:
        conditions["cond"] = torch.randn(batch_size, length, kwargs["dim_cond"])
        conditions["cond_mask"] = (
            torch.arange(length) < torch.tensor([[length], [1], [2]])[torch.arange(batch_size) % 3]
        )
    return conditions


def unconditions(model, seq):
    """The conditions of the unconditional model, by hand."""
    condition = model.conditioning(dropped=torch.ones(len(seq), dtype=torch.bool))
    start = model.start_token.expand(len(seq), 1, -1)
    return model.backbone(torch.cat((start, model.proj_in(seq[:, :-1])), dim=1), **condition)


@models
@conditioned
@torch.no_grad()
def test_every_token_reads_labels_and_vectors(model_class, kwargs):
    model = small_model(model_class, **kwargs).eval()
    seq, conditions = torch.randn(3, 6, 4), draw_conditions(kwargs)
    conds = model.conditions(seq, **conditions)
    assert conds.shape == (3, 6, 16)
    changes = dict(labels=lambda labels: (labels + 1) % 3, cond=lambda cond: cond + 1)
    for name in conditions.keys() & changes.keys():
        changed = model.conditions(seq, **(conditions | {name: changes[name](conditions[name])}))
        assert (changed - conds).abs().amax(dim=-1).amin() > 1e-4


@models
@conditioned
@torch.no_grad()
def test_padded_vectors_change_nothing(model_class, kwargs):
    if "dim_cond" not in kwargs:
        pytest.skip("no vectors")
    model = small_model(model_class, **kwargs).eval()
    seq, conditions = torch.randn(3, 6, 4), draw_conditions(kwargs)
    conds = model.conditions(seq, **conditions)
    padded = conditions | dict(
        cond=torch.cat((conditions["cond"], torch.full((3, 2, 5), math.nan)), dim=1),
        cond_mask=torch.cat((conditions["cond_mask"], torch.zeros(3, 2, dtype=torch.bool)), dim=1),
    )
    torch.testing.assert_close(model.conditions(seq, **padded), conds, rtol=0, atol=1e-5)
    # each as if it were alone, without padding
    for i, mask in enumerate(conditions["cond_mask"]):
        alone = {
            name: given[i : i + 1] for name, given in conditions.items() if name != "cond_mask"
        }
        alone["cond"] = alone["cond"][:, mask]
        torch.testing.assert_close(
            model.conditions(seq[i : i + 1], **alone), conds[i : i + 1], rtol=0, atol=1e-5
        )
    # nor does what is in them get into the gradients
    with torch.enable_grad():
        model(seq, **padded).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@models
@conditioned
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_guided_batch_is_two_separate_runs_combined(model_class, kwargs, schedule):
    model = small_model(model_class, **kwargs).eval()
    conditions, scale = draw_conditions(kwargs), torch.tensor([0.5, 2.0, 3.0])
    generator = seeded()
    seq = torch.zeros(3, 6, 4)
    with torch.no_grad():
        for i in range(6):
            scales = scale if schedule == "constant" else 1 + (scale - 1) * (i + 1) / 6
            cond, uncond = model.conditions(seq, **conditions)[:, i], unconditions(model, seq)[:, i]
            seq[:, i] = model.head.sample(
                cond, guidance=[Guidance(uncond, scales)], generator=generator
            )
    guided = model.sample(
        **conditions, guidance_scale=scale, guidance_schedule=schedule, generator=seeded()
    )
    torch.testing.assert_close(guided, seq, rtol=1e-3, atol=1e-3)


@models
@conditioned
def test_guidance_scale_1_is_the_conditional_model_bit_for_bit_and_costs_nothing(
    model_class, kwargs, monkeypatch
):
    model = small_model(model_class, **kwargs)
    conditions = draw_conditions(kwargs)
    plain = model.sample(**conditions, generator=seeded())
    seen = record_steps(monkeypatch, model.backbone)
    assert torch.equal(
        model.sample(**conditions, guidance_scale=torch.ones(3), generator=seeded()), plain
    )
    assert seen == [3] * 6
    # the same numbers from the full pass and the head alone
    generator, seq = seeded(), torch.zeros(3, 6, 4)
    model.eval()
    with torch.no_grad():
        for i in range(6):
            seq[:, i] = model.head.sample(
                model.conditions(seq, **conditions)[:, i], generator=generator
            )
    torch.testing.assert_close(plain, seq, rtol=1e-3, atol=1e-3)


@models
@conditioned
def test_guidance_scale_0_is_the_unconditional_model(model_class, kwargs, monkeypatch):
    model = small_model(model_class, **kwargs).eval()
    generator, seq = seeded(), torch.zeros(3, 6, 4)
    with torch.no_grad():
        for i in range(6):
            seq[:, i] = model.head.sample(unconditions(model, seq)[:, i], generator=generator)
    seen = record_steps(monkeypatch, model.backbone)
    nothing_given = model.sample(3, guidance_scale=0.0, generator=seeded())
    torch.testing.assert_close(nothing_given, seq, rtol=1e-3, atol=1e-3)
    assert seen == [1] + [3] * 5  # one beginning for all
    given = model.sample(**draw_conditions(kwargs), guidance_scale=0.0, generator=seeded())
    torch.testing.assert_close(given, nothing_given, rtol=1e-4, atol=1e-4)


@models
@pytest.mark.parametrize("cond_drop_prob", [0.1, 0.5])
def test_the_share_of_conditions_left_out_while_training(model_class, cond_drop_prob):
    model = small_model(model_class, num_classes=3, cond_drop_prob=cond_drop_prob, max_seq_len=1)
    count = 10_000
    seq, labels = torch.randn(count, 1, 4), torch.ones(count, dtype=torch.long)
    with torch.no_grad():
        conds = model.conditions(seq, labels=labels)[:, 0]
        kept = (conds - model.eval().conditions(seq[:1], labels=labels[:1])[:, 0]).abs().amax(
            dim=-1
        ) < 1e-5
        dropped = (conds - unconditions(model, seq[:1])[:, 0]).abs().amax(dim=-1) < 1e-5
    assert (kept ^ dropped).all()
    allowed = STANDARD_ERRORS * math.sqrt(cond_drop_prob * (1 - cond_drop_prob) / count)
    assert dropped.float().mean().item() == pytest.approx(cond_drop_prob, abs=allowed)
    with torch.no_grad():
        conds = model.conditions(seq, labels=labels)[:, 0]
    assert (conds - conds[:1]).abs().max() < 1e-5  # none in evaluation


@models
def test_context_dropout_replaces_z_of_a_share_of_the_tokens(model_class, monkeypatch):
    model = small_model(model_class, context_drop_prob=0.3, normalize=False)
    seq, seen = torch.randn(400, 6, 4), []
    head = model.head.forward
    monkeypatch.setattr(
        model.head, "forward", lambda tokens, cond: seen.append(cond) or head(tokens, cond)
    )
    losses = model(seq, loss_reduction="none")
    places = model.no_context(torch.arange(6))
    dropped = (seen[-1] == places).all(dim=-1)
    assert abs(dropped.float().mean() - 0.3) < STANDARD_ERRORS * math.sqrt(0.3 * 0.7 / 2400)
    torch.testing.assert_close(seen[-1][~dropped], model.conditions(seq)[~dropped])
    # a token without context teaches the places and not the transformer, one with it the
    # transformer alone
    taught = (model.no_context.tables[0], model.start_token)
    of_place, of_start = torch.autograd.grad(losses[dropped].sum(), taught, retain_graph=True)
    assert of_place.any(dim=-1).all()
    assert not of_start.any()
    of_place, of_start = torch.autograd.grad(losses[~dropped].sum(), taught)
    assert not of_place.any()
    assert of_start.any()
    model.eval()
    model(seq)
    assert torch.equal(seen[-1], model.conditions(seq))


@models
@pytest.mark.parametrize("prompt_length", [0, 2])
@pytest.mark.parametrize("guidance_scale", [None, 0.0, 1.0, 2.0])
@torch.no_grad()
def test_context_guides_each_token_away_from_its_place_alone(
    model_class, guidance_scale, prompt_length
):
    labels = None if guidance_scale is None else torch.tensor([0, 1])
    num_classes = None if labels is None else 3
    model = small_model(
        model_class, context_drop_prob=0.1, num_classes=num_classes, max_seq_len=(2, 3)
    )
    seq = torch.randn(2, prompt_length, 4)

    def sample(**kwargs):
        guided = {} if labels is None else dict(labels=labels, guidance_scale=guidance_scale)
        return model.sample(2, seq, seq_len=5, generator=seeded(), **guided, **kwargs)

    sampled, own, learned = sample(context_guidance=3.0), sample(), sample(context_guidance=1.0)
    assert torch.equal(own, learned)
    assert not torch.allclose(learned, sampled, atol=1e-2)
    # token by token, from conditions that are computed anew
    model.eval()
    draw = model.head.sampler(generator=seeded())
    no_label = (
        model.conditioning(dropped=torch.ones(2, dtype=torch.bool)) if labels is not None else {}
    )
    for i in range(prompt_length, 5):
        embeds = torch.cat((model.start_token.expand(2, 1, -1), model.proj_in(seq)), dim=1)
        without = model.backbone(embeds, **no_label)[:, -1]
        with_labels = (
            model.conditions(torch.cat((seq, torch.zeros(2, 1, 4)), dim=1), labels=labels)[:, -1]
            if guidance_scale
            else without
        )
        guidance = [] if labels is None else [Guidance(without, guidance_scale)]
        # without labels there is nothing but its place to know of a first token
        if i > 0 or labels is not None:
            guidance.append(Guidance(model.no_context(torch.tensor(i)), 3.0))
        seq = torch.cat((seq, draw(with_labels, guidance).unsqueeze(1)), dim=1)
    torch.testing.assert_close(sampled, seq, rtol=1e-3, atol=1e-3)


@models
def test_context_guidance_in_other_floating_types(model_class):
    for dtype in (torch.float64, torch.bfloat16):
        model = small_model(model_class, context_drop_prob=0.1).to(dtype)
        sampled = model.sample(2, context_guidance=2.0, generator=seeded())
        assert sampled.dtype == torch.promote_types(dtype, torch.float32)
        assert sampled.isfinite().all()


@models
def test_bad_context_guidance(model_class):
    model = small_model(model_class)
    model.sample(context_guidance=1.0)
    needs = (
        "context_guidance other than 1 needs a model that is trained with a context_drop_prob "
        "above 0, got 1.5"
    )
    with pytest.raises(ValueError, match=needs):
        model.stream(context_guidance=1.5)
    for scale in ("1.5", [1.5, 2.0], torch.ones(2), True):
        with pytest.raises(TypeError, match="context_guidance must be one number, got "):
            small_model(model_class, context_drop_prob=0.1).stream(context_guidance=scale)
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(
            ValueError, match=f"context_guidance must be at least 0 and finite, got {scale}"
        ):
            small_model(model_class, context_drop_prob=0.1).stream(context_guidance=scale)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(
            ValueError, match=f"context_drop_prob must be at least 0 and below 1, got {share}"
        ):
            small_model(model_class, context_drop_prob=share)


@models
@conditioned
def test_several_sequences_share_the_work_of_one_beginning(model_class, kwargs, monkeypatch):
    model = small_model(model_class, **kwargs)
    prompt, conditions = torch.randn(3, 2, 4), draw_conditions(kwargs)
    single = {name: given[:1] for name, given in conditions.items()}
    repeated = {name: given.repeat_interleave(2, dim=0) for name, given in conditions.items()}
    seen = record_steps(monkeypatch, model.backbone)
    for guidance, branches in ((dict(), 1), (dict(guidance_scale=2.0), 2)):
        shared = model.sample(6, prompt, **conditions, **guidance, generator=seeded())
        assert seen == [3 * branches] + [6 * branches] * 3
        apart = model.sample(
            6, prompt.repeat_interleave(2, dim=0), **repeated, **guidance, generator=seeded()
        )
        torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-4)
        assert torch.equal(shared[:, :2], prompt.repeat_interleave(2, dim=0))
        # one label for several prompts, one prompt for several labels
        seen.clear()
        model.sample(3, prompt, **single, **guidance)
        model.sample(3, prompt[:1], **conditions, **guidance)
        assert set(seen) == {3 * branches}
        seen.clear()


@models
def test_one_scale_for_each_sequence(model_class):
    model = small_model(model_class, num_classes=3)
    together = model.sample(labels=1, guidance_scale=[0.0, 1.0, 3.0], generator=seeded())
    assert together.shape == (3, 6, 4)
    for i, scale in enumerate((0.0, 1.0, 3.0)):
        alone = model.sample(3, labels=1, guidance_scale=scale, generator=seeded())
        torch.testing.assert_close(together[i], alone[i], rtol=1e-4, atol=1e-4)


@models
def test_fewer_tokens_than_the_longest_sequence(model_class):
    model = small_model(model_class)
    full = model.sample(2, generator=seeded())
    for length in (1, 4, 6):
        torch.testing.assert_close(
            model.sample(2, seq_len=length, generator=seeded()), full[:, :length]
        )
    prompt = torch.randn(2, 4, 4)
    assert torch.equal(model.sample(2, prompt, seq_len=4), prompt)
    assert len(list(model.stream(2, prompt[:, :1], seq_len=3))) == 2


def loss_and_gradients(model, seq, **kwargs):
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(seq, **kwargs)
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@models
@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED, UNCACHED))
def test_padding_changes_neither_loss_nor_gradients(model_class, decoder_kwargs):
    model = small_model(
        model_class, num_classes=3, context_drop_prob=0.3, decoder_kwargs=decoder_kwargs
    ).double()
    seq, lens, labels = torch.randn(3, 4, 4).double(), torch.tensor([4, 1, 3]), torch.arange(3)
    loss, gradients = loss_and_gradients(model, seq, labels=labels, lens=lens)
    padding = torch.full((3, 2, 4), math.nan).double()
    junk = torch.cat(
        (torch.where(torch.arange(4)[:, None] < lens[:, None, None], seq, 1e9), padding), dim=1
    )
    mask = torch.arange(6) < lens[:, None]
    for kwargs in (dict(lens=lens), dict(lens=lens.tolist()), dict(mask=mask)):
        other_loss, other_gradients = loss_and_gradients(model, junk, labels=labels, **kwargs)
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=1e-6)
        assert other_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-6)


@models
def test_losses_of_padded_sequences_are_those_of_their_tokens(model_class):
    model = small_model(model_class, normalize=False)
    seq, lens = torch.randn(3, 6, 4), torch.tensor([6, 1, 3])
    torch.manual_seed(1)
    losses = model(seq, lens=lens, noised_seq=seq + 1, loss_reduction="none")
    mask = torch.arange(6) < lens[:, None]
    assert losses.shape == (3, 6)
    assert (losses[~mask] == 0).all()
    assert (losses[mask] > 0).all()
    torch.manual_seed(1)
    torch.testing.assert_close(model(seq, lens=lens, noised_seq=seq + 1), losses[mask].mean())
    # the head's own losses for the conditions of each sequence alone
    conds = torch.cat(
        [model.conditions(one[None, :length] + 1)[0] for one, length in zip(seq, lens, strict=True)]
    )
    torch.manual_seed(1)
    torch.testing.assert_close(losses[mask], model.head(seq[mask], conds), rtol=1e-4, atol=1e-5)
    # nothing padded: as without
    torch.manual_seed(1)
    full = model(seq, lens=[6, 6, 6])
    torch.manual_seed(1)
    torch.testing.assert_close(full, model(seq))


@models
@conditioned
def test_all_parameters_learn_from_conditions(model_class, kwargs):
    model = small_model(model_class, **(kwargs | dict(cond_drop_prob=0.5)))
    conditions = draw_conditions(kwargs, batch_size=24)
    model(torch.randn(24, 6, 4), **conditions, lens=[6, 2, 4] * 8).backward()
    idle = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []


@models
@conditioned
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conditions_in_other_floating_types(model_class, kwargs, dtype):
    model = small_model(model_class, **kwargs).to(dtype)
    conditions = draw_conditions(kwargs)
    model(torch.randn(3, 6, 4, dtype=dtype), **conditions).backward()
    for guidance_scale in (0.0, 1.0, 2.0):
        sample = model.sample(**conditions, guidance_scale=guidance_scale)
        assert sample.dtype == torch.promote_types(dtype, torch.float32)
        assert sample.isfinite().all()


@models
def test_a_conditional_model_saves_and_loads(model_class, tmp_path):
    model = small_model(
        model_class, num_classes=3, dim_cond=5, cond_drop_prob=0.3, num_cond_tokens=2
    )
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config == model.config
    conditions = draw_conditions(dict(num_classes=3, dim_cond=5))
    options = dict(conditions, guidance_scale=2.0)
    assert torch.equal(
        loaded.sample(**options, generator=seeded()), model.sample(**options, generator=seeded())
    )


def test_a_compiled_guided_sampler_draws_the_same(monkeypatch):
    # traced as a whole; the code that torch makes of a trace is tested without guidance
    real = torch.compile
    monkeypatch.setattr(torch, "compile", partial(real, backend="aot_eager"))
    model = small_model(
        AutoregressiveFlow, depth=1, mlp_depth=1, num_classes=3, dim_cond=5, context_drop_prob=0.1
    )
    torch._dynamo.reset()
    options = dict(
        draw_conditions(CONDITIONED["both"]),
        guidance_scale=2.0,
        guidance_schedule="linear",
        guidance_interval=(0.1, 10),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")  # it must not fall back
        compiled = model.sample(**options, compile=True, num_steps=4, generator=seeded())
    expected = model.sample(**options, num_steps=4, generator=seeded())
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@models
@conditioned
def test_conditions_on_a_gpu(model_class, kwargs):
    model = small_model(model_class, **kwargs).cuda()
    conditions = draw_conditions(kwargs)  # on the CPU: brought to the model
    model(torch.randn(3, 6, 4, device="cuda"), **conditions, lens=[6, 2, 4]).backward()
    for guidance_scale in (0.0, 1.0, [0.5, 1.0, 2.0]):
        assert model.sample(**conditions, guidance_scale=guidance_scale).device.type == "cuda"


@models
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(lens=[6, 2]), ValueError, r"lens must be of shape \(3,\), got \(2,\)"),
        (dict(lens=[6, 0, 2]), ValueError, "lens must be from 1 to 6, got 0"),
        (dict(lens=[6, 7, 2]), ValueError, "lens must be from 1 to 6, got 7"),
        (dict(lens=[6.0, 1.0, 2.0]), TypeError, "lens must be whole numbers, got torch.float32"),
        (
            dict(mask=torch.ones(3, 5).bool()),
            ValueError,
            r"mask must be of shape \(3, 6\), got \(3, 5\)",
        ),
        (
            dict(mask=torch.ones(3, 6)),
            TypeError,
            "mask must hold booleans, True for tokens, got torch.float32",
        ),
        (
            dict(mask=torch.arange(6).expand(3, 6) > 1),
            ValueError,
            "mask must be True for the first tokens of each sequence",
        ),
        (
            dict(mask=torch.arange(6).expand(3, 6) != 3),
            ValueError,
            "and False for the padding after them",
        ),
        (
            dict(mask=torch.ones(3, 6).bool(), lens=[6, 6, 6]),
            ValueError,
            "lens and mask say the same",
        ),
        (dict(labels=[0, 1, 2]), ValueError, "labels are given to a model without classes"),
        (
            dict(cond=torch.zeros(3, 5)),
            ValueError,
            "cond is given to a model that takes no vectors",
        ),
    ],
)
def test_bad_lengths_and_conditions(model_class, kwargs, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class)(torch.zeros(3, 6, 4), **kwargs)


@models
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "labels are missing"),
        (dict(labels=3), "labels must be from 0 to 2, got 3"),
        (dict(labels=1, cond=torch.zeros(1, 5)), "cond is given to a model that takes no vectors"),
        (
            dict(labels=[0, 1], prompt=torch.zeros(3, 1, 4)),
            "labels must hold one entry or 3, as another argument does, got 2",
        ),
        (dict(labels=[0, 1], batch_size=3), "batch_size must be a multiple of 2"),
        (
            dict(labels=[0, 1], guidance_scale=[1.0, 2.0, 3.0]),
            "guidance_scale must be one number or one for each of 2 sequences, got 3",
        ),
        (
            dict(labels=[0, 1], batch_size=4, guidance_scale=[1.0, 2.0]),
            "guidance_scale must be one number or one for each of 4 sequences, got 2",
        ),
        (dict(labels=1, guidance_scale=-1.0), "guidance_scale must be at least 0"),
        (dict(labels=1, guidance_schedule="cosine"), "guidance_schedule must be one of"),
        (dict(labels=1, guidance_interval=(2, 1)), "guidance_interval must be two noise levels"),
    ],
)
def test_bad_conditions_of_a_sample(model_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(model_class, num_classes=3).stream(**arguments)


@models
def test_other_bad_conditions(model_class):
    model = small_model(model_class, num_classes=3, cond_drop_prob=0.0)
    with pytest.raises(ValueError, match="labels must be given for each of the 3 sequences, got 2"):
        model(torch.zeros(3, 6, 4), labels=[0, 1])
    with pytest.raises(
        ValueError,
        match="guidance_scale other than 1 needs a model that is trained with a cond_drop_prob "
        "above 0",
    ):
        model.sample(labels=0, guidance_scale=2.0)


@models
def test_token_width_and_head_width_default_to_the_model_width(model_class):
    model = model_class(16, max_seq_len=4, depth=1, heads=2, dim_head=8)
    assert model.sample(2).shape == (2, 4, 16)
    assert model.head.net.proj_in.out_features == 16


def test_progress_is_shown_only_when_asked(capsys):
    model = small_model(AutoregressiveFlow)
    model.sample()
    assert capsys.readouterr() == ("", "")
    model.sample(progress=True)
    assert "tokens: 100%" in capsys.readouterr().err


@models
def test_log_prob_of_a_gaussian_process(model_class, monkeypatch):
    # x_i = 0.8 x_{i-1} + 0.5 e, by the ideal head and conditions that hold what is expected: all of
    # x is one Gaussian
    def posterior_mean(noised, sigma, cond):
        return (0.25 * noised + sigma**2 * cond) / (0.25 + sigma**2)

    model = small_model(model_class, dim_input=1).double()
    model.head = ideal_head(type(model.head), 1, posterior_mean)
    monkeypatch.setattr(
        model,
        "conditions",
        lambda seq, **_: 0.8 * torch.cat((torch.zeros_like(seq[:, :1]), seq[:, :-1]), dim=1),
    )
    steps = torch.eye(6).double() - 0.8 * torch.diag(torch.ones(5), -1).double()
    covariance = torch.linalg.inv(steps) @ torch.linalg.inv(steps).T * 0.25
    process = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance)
    seq = process.sample((200,))
    log_probs = model.log_prob(seq.unsqueeze(-1))
    assert log_probs.shape == (200, 6)
    expected = process.log_prob(seq)
    # but for the share of the mean that is missing from a finite sigma_max
    assert (log_probs.sum(dim=-1) - expected).abs().max() < 0.1
    assert log_probs.sum(dim=-1).mean() == pytest.approx(expected.mean().item(), rel=0.005)


@models
def test_log_prob_is_that_of_the_head_given_what_comes_before(model_class):
    model = small_model(model_class, num_classes=3, dim_cond=5, cond_drop_prob=0.5).train()
    seq, conditions = (
        0.5 * torch.randn(3, 6, 4),
        dict(labels=torch.tensor([0, 2, 1]), cond=torch.randn(3, 5)),
    )
    options = dict(solver="midpoint", num_steps=8)
    log_probs = model.log_prob(seq, **conditions, **options)
    assert not log_probs.requires_grad
    assert all(module.training for module in model.modules())
    # nothing is left out at random
    assert torch.equal(log_probs, model.log_prob(seq, **conditions, **options))
    with torch.inference_mode():
        torch.testing.assert_close(model.log_prob(seq, **conditions, **options), log_probs)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.head.log_prob(seq, model.conditions(seq, **conditions), **options), log_probs
        )
        # labels and vectors are heeded
        other = model.log_prob(seq, **conditions | dict(labels=torch.tensor([0, 2, 2])), **options)
    torch.testing.assert_close(other[:2], log_probs[:2])
    assert (other[2] - log_probs[2]).abs().min() > 1e-4
    alone = [
        model.log_prob(
            seq[i : i + 1], **{k: v[i : i + 1] for k, v in conditions.items()}, **options
        )
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), log_probs, rtol=0, atol=2e-4)


@models
def test_log_prob_of_padded_sequences(model_class):
    model = small_model(model_class)
    seq, options = 0.5 * torch.randn(3, 6, 4), dict(solver="midpoint", num_steps=8)
    seq[1, 2:] = math.nan
    log_probs = model.log_prob(seq, lens=[6, 2, 5], **options)
    for i, length in enumerate((6, 2, 5)):
        torch.testing.assert_close(
            log_probs[i : i + 1, :length],
            model.log_prob(seq[i : i + 1, :length], **options),
            rtol=0,
            atol=2e-4,
        )
        assert (log_probs[i, length:] == 0).all()
    mask = torch.arange(6) < torch.tensor([[6], [2], [5]])
    assert torch.equal(model.log_prob(seq, mask=mask, **options), log_probs)
    with pytest.raises(ValueError, match="tokens must be finite"):
        model.log_prob(seq, **options)
    with pytest.raises(ValueError, match=r"seq must be of shape \(b n 4\)"):
        model.log_prob(seq[0])


@models
def test_learns_an_autoregressive_process(model_class):
    # x_i = 0.7 x_{i-1} - 0.4 x_{i-2} + e, each token two such processes side by side with noise of
    # different size
    std = torch.tensor([0.3, 0.5])

    def draw_batch(count):
        seq = [torch.zeros(count, 2), torch.zeros(count, 2)]
        for _ in range(4):
            seq.append(0.7 * seq[-1] - 0.4 * seq[-2] + std * torch.randn(count, 2))
        return torch.stack(seq[2:], dim=1)

    model = model_class(
        32,
        max_seq_len=4,
        depth=1,
        heads=2,
        dim_head=16,
        mlp_depth=1,
        mlp_width=48,
        dim_input=2,
        decoder_kwargs=dict(ff_mult=2),
    )
    num_steps = 600
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 5e-3, total_steps=num_steps, pct_start=0.1
    )
    for _ in range(num_steps):
        model(draw_batch(128)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    prompt = torch.tensor([[[0.3, -0.4], [-0.2, 0.4]]])
    num_steps = 64  # enough for the solver's own error not to count
    next_tokens = model.sample(2000, prompt, num_steps=num_steps)[:, 2]
    assert_mean(next_tokens, 0.7 * prompt[0, 1] - 0.4 * prompt[0, 0])
    assert_std(next_tokens, std)

    # how probable a token is, and so a sequence
    seq = draw_batch(100)
    expected = [
        seq[:, 0],
        seq[:, 1] - 0.7 * seq[:, 0],
        *(seq[:, i] - 0.7 * seq[:, i - 1] + 0.4 * seq[:, i - 2] for i in (2, 3)),
    ]
    expected = (
        torch.distributions.Normal(0.0, std).log_prob(torch.stack(expected, dim=1)).sum(dim=-1)
    )
    assert (model.log_prob(seq) - expected).mean(dim=0).abs().max() < 0.1

    # without a prompt, the process itself: the standard deviation of each step, and its dependence
    # on the two before
    seq = model.sample(2000, num_steps=num_steps)
    assert_std(seq[:, 0], std)
    residuals = seq[:, 2:] - 0.7 * seq[:, 1:-1] + 0.4 * seq[:, :-2]
    assert_mean(residuals, 0.0)
    assert_std(residuals, std)
    correlation = (residuals * seq[:, 1:-1]).mean(dim=0) / (
        residuals.std(dim=0) * seq[:, 1:-1].std(dim=0)
    )
    assert correlation.abs().max() < 5 / math.sqrt(2000)


ONE_HEAD = dict(dim_input=2, max_seq_len=4, depth=1, mlp_depth=1, mlp_width=8)


@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize(("heads", "dim_head"), [(1, 8), (1, 16), (1, 1), (3, 2)])
@pytest.mark.parametrize("conditions", [{}, dict(dim_cond=2, cross_attend=True)])
def test_any_number_of_heads_of_any_width(dim, heads, dim_head, conditions):
    sizes = dict(heads=heads, dim_head=dim_head)
    model = stir(AutoregressiveFlow(dim, **sizes, **ONE_HEAD, **conditions))
    given = dict(cond=torch.randn(3, 2)) if conditions else {}
    seq = torch.randn(3, 4, 2)
    model(seq, **given).backward()
    # a cached step gives the numbers of the full pass
    embeds = torch.randn(1, 4, dim)
    condition = model.conditioning(**{name: part[:1, None] for name, part in given.items()})
    full, state = model.eval().backbone(embeds, **condition), None
    for i in range(4):
        kwargs = condition if state is None else {}
        step, state = model.backbone.step(embeds[:, i : i + 1], state, **kwargs)
        torch.testing.assert_close(step, full[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder_kwargs", [dict(attn_value_dim_head=5), dict(attn_kv_heads=1)])
def test_one_head_with_options_of_the_decoder(decoder_kwargs):
    model = AutoregressiveFlow(16, heads=1, dim_head=8, decoder_kwargs=decoder_kwargs, **ONE_HEAD)
    model(torch.randn(2, 4, 2)).backward()


def test_what_had_a_projection_or_needed_none_is_as_it_was():
    def projections(**kwargs):
        names = AutoregressiveFlow(16, **kwargs, **ONE_HEAD).state_dict()
        return [name for name in names if "to_out" in name]

    assert projections(heads=2, dim_head=8) == ["backbone.decoder.layers.0.1.to_out.weight"]
    assert projections(heads=1, dim_head=8) == ["backbone.decoder.layers.0.1.to_out.weight"]
    assert projections(heads=1, dim_head=16) == []  # as x-transformers has it


@pytest.mark.parametrize("method", ["sample", "stream"])
def test_a_batch_size_is_what_it_says(method):
    model = AutoregressiveFlow(16, num_classes=3, heads=1, dim_head=8, **ONE_HEAD)

    def draw(*args, **kwargs):
        drawn = getattr(model, method)(*args, **kwargs)
        return len(drawn if method == "sample" else next(drawn))

    assert draw(guidance_scale=0) == 1
    assert draw(labels=[0, 1, 2]) == 3
    assert draw(prompt=torch.randn(2, 1, 2), labels=0) == 2
    assert draw(labels=1, guidance_scale=[1.0, 2.0]) == 2
    assert draw(1, labels=1) == 1
    for options in (dict(labels=[0, 1, 2]), dict(labels=0, prompt=torch.randn(3, 1, 2))):
        with pytest.raises(ValueError, match=r"batch_size must be a multiple of 3, .* got 1"):
            draw(1, **options)
    with pytest.raises(ValueError, match=r"guidance_scale must be .* each of 1 sequences, got 2"):
        draw(1, labels=1, guidance_scale=[1.0, 2.0])
    for wrong in (0, 1.0, True, "2"):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            draw(wrong, labels=[0])


@pytest.mark.parametrize("generator", [7, "seed"])
def test_a_generator_that_is_none_is_refused(generator):
    model = AutoregressiveFlow(16, heads=1, dim_head=8, **ONE_HEAD)
    with pytest.raises(TypeError, match=rf"generator must be a torch.Generator, .* {generator!r}"):
        model.sample(generator=generator)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator"):
        model.log_prob(torch.randn(1, 4, 2), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_densities_of_a_model_in_double_precision_are_in_it(dtype):
    model = stir(AutoregressiveFlow(16, heads=1, dim_head=8, **ONE_HEAD)).double()
    seq = torch.randn(2, 4, 2)
    few = dict(solver="rk4", num_steps=4)
    found = model.log_prob(seq.to(dtype), **few)
    torch.testing.assert_close(found, model.log_prob(seq.double(), **few), rtol=1e-12, atol=1e-12)


def test_log_densities_within_inference_mode():
    model = stir(AutoregressiveFlow(16, heads=1, dim_head=8, **ONE_HEAD))
    seq, few = torch.randn(2, 4, 2), dict(solver="rk4", num_steps=4)
    expected = model.log_prob(seq, **few)
    with torch.inference_mode():
        torch.testing.assert_close(model.log_prob(seq, **few), expected)
        torch.testing.assert_close(model.log_prob(seq.clone(), **few), expected)
    model(seq).backward()


@every_model
def test_guidance_of_conditions_reads_one_condition_for_all(model_class):
    model = small_model(model_class, num_classes=3, context_drop_prob=0.1)
    options = dict(labels=[0, 2], guidance_scale=1.5, context_guidance=2.0, temperature=0.0)
    seen, sampler = [], model.head.sampler

    def record(**kwargs):
        draw = sampler(**kwargs)
        return lambda z, guidance: seen.append((z, guidance)) or draw(z, guidance)

    model.head.sampler = record
    drawn = model.sample(seq_len=1, guidance_target="conditions", **options)
    ((z, (labelled, context)),) = seen
    assert {labelled.target, context.target} == {"conditions"}
    # away from no label, then from no context: what the head alone draws of that condition
    moved = labelled.z + 1.5 * (z - labelled.z)
    moved = context.z + 2.0 * (moved - context.z)
    torch.testing.assert_close(drawn, sampler(temperature=0.0)(moved), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, model.sample(seq_len=1, **options))
    with pytest.raises(ValueError, match="guidance_interval needs guidance_target = 'tokens'"):
        model.sample(guidance_target="conditions", guidance_interval=(0.1, 1.0), **options)
    with pytest.raises(ValueError, match="guidance_target must be one of 'tokens', 'conditions'"):
        model.sample(guidance_target="both", **options)


@models
@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_recent_tokens_are_read_alike_in_training_and_sampling(model_class, length):
    given = dict(mean=0.0, scale=1.0)
    model = stir(small_model(model_class, num_recent=3, num_classes=2, normalize=given)).eval()
    seq, labels = 4 * torch.randn(2, 6, 4), torch.tensor([0, 1])  # some are beyond the limit
    expected = model.conditions(seq, labels=labels)
    condition = model.conditioning(labels=labels)
    order = torch.arange(6).expand(2, -1)
    reading = model.reading(order, seq[:, :length], condition, 1, model.transformer)
    tokens = None
    for i in range(length, 6):
        z = reading.conditions(tokens, 1)
        torch.testing.assert_close(z[:, 0], expected[:, i], rtol=1e-4, atol=1e-5)
        tokens = seq[:, i : i + 1]
    # the first token reads none, and each the last three alone
    recent = model.recent(seq)
    assert (recent[:, 0] == 0).all()
    other = seq.clone()
    other[:, 1] += 1
    changed = (model.recent(other) != recent).any(dim=-1).any(dim=0)
    assert changed.tolist() == [False, False, True, True, True, False]
    # what is far outside of the data adds no more
    assert torch.equal(model.recent(seq + 1e3), model.recent(seq + 1e6))
    with pytest.raises(ValueError, match="num_recent needs order"):
        small_model(model_class, num_recent=3, order="random")
    with pytest.raises(ValueError, match="num_recent needs tokens of unit scale"):
        small_model(model_class, num_recent=3, normalize=False)
