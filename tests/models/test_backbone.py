import pytest
import torch
from helpers import CACHED, UNCACHED, parameters, stir

from autoregressive_diffusion_pytorch.models.backbone import Backbone

NOT_CAUSAL = {"mean-split-residual": dict(mv_split_residual=True)}


CROSS = {
    "cross": {},
    "cross-flash": dict(attn_flash=True),
    "cross-rotary": dict(rotary_pos_emb=True),
    "cross-value-residual": dict(add_value_residual=True),
    "cross-window": dict(attn_max_attend_past=2),
}


def small_backbone(decoder_kwargs=None, max_seq_len=8, **kwargs):
    sizes = dict(depth=2, num_heads=2, dim_head=8) | kwargs
    return stir(
        Backbone(16, max_seq_len=max_seq_len, decoder_kwargs=decoder_kwargs, **sizes)
    ).eval()


def steps(backbone, embeds, first=1, **condition):
    outputs, state = [], None
    for start, stop in zip(
        [0, *range(first, embeds.shape[1])], range(first, embeds.shape[1] + 1), strict=True
    ):
        output, state = backbone.step(embeds[:, start:stop], state, **condition)
        outputs.append(output)
        condition = {}
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("max_seq_len", [8, (2, 4), (2, 2, 2)])
@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED, UNCACHED))
@torch.no_grad()
def test_steps_give_the_numbers_of_the_full_pass(decoder_kwargs, max_seq_len):
    backbone = small_backbone(decoder_kwargs, max_seq_len)
    embeds = torch.randn(3, 8, 16)
    full = backbone(embeds)
    torch.testing.assert_close(steps(backbone, embeds), full, rtol=0, atol=1e-5)
    # a prompt: several at first, then one by one
    torch.testing.assert_close(steps(backbone, embeds, first=5), full[:, 4:], rtol=0, atol=1e-5)


def condition(mask=True):
    """A prefix and something to attend to, with masks that leave out some of both."""
    condition = dict(prefix=torch.randn(3, 4, 16), memory=torch.randn(3, 5, 16))
    if mask:
        condition["prefix_mask"] = torch.tensor(
            [[True] * 4, [False, True, True, True], [False, False, True, True]]
        )
        condition["memory_mask"] = torch.tensor(
            [[True] * 5, [True, False, True, False, True], [False] * 4 + [True]]
        )
    return condition


LEAKING = {
    name: UNCACHED[name] for name in ("shifted-tokens", "selective")
}  # others see what a masked position gives
MASKABLE = {name: kwargs for name, kwargs in (CACHED | UNCACHED).items() if name not in LEAKING}


def prefix_only(condition):
    return {name: part for name, part in condition.items() if name.startswith("prefix")}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("decoder_kwargs", parameters(MASKABLE))
@torch.no_grad()
def test_steps_behind_a_prefix_give_the_numbers_of_the_full_pass(decoder_kwargs, mask):
    backbone = small_backbone(decoder_kwargs)
    embeds, inputs = torch.randn(3, 8, 16), prefix_only(condition(mask))
    full = backbone(embeds, **inputs)
    assert full.shape == embeds.shape
    torch.testing.assert_close(steps(backbone, embeds, **inputs), full, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        steps(backbone, embeds, first=5, **inputs), full[:, 4:], rtol=0, atol=1e-5
    )
    assert (full - backbone(embeds)).abs().amax(dim=-1)[
        :, :4
    ].amin() > 1e-4  # later ones lie beyond a window


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("decoder_kwargs", parameters(CROSS))
@torch.no_grad()
def test_steps_with_cross_attention_give_the_numbers_of_the_full_pass(decoder_kwargs, mask):
    backbone = small_backbone(decoder_kwargs, cross_attend=True)
    assert backbone.can_cache
    embeds, inputs = torch.randn(3, 8, 16), condition(mask)
    full = backbone(embeds, **inputs)
    torch.testing.assert_close(steps(backbone, embeds, **inputs), full, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        steps(backbone, embeds, first=5, **inputs), full[:, 4:], rtol=0, atol=1e-5
    )
    changed = inputs | dict(memory=torch.randn(3, 5, 16))
    assert (full - backbone(embeds, **changed)).abs().amax(dim=-1).amin() > 1e-4


@pytest.mark.parametrize("decoder_kwargs", parameters(CROSS))
@torch.no_grad()
def test_output_with_cross_attention_does_not_see_later_inputs(decoder_kwargs):
    backbone = small_backbone(decoder_kwargs, cross_attend=True)
    embeds, inputs = torch.randn(3, 8, 16), condition()
    torch.testing.assert_close(
        backbone(embeds[:, :5], **inputs), backbone(embeds, **inputs)[:, :5], rtol=0, atol=1e-6
    )


def test_a_cross_attention_that_sees_later_inputs_is_refused():
    with pytest.raises(ValueError, match="output at a position changes with later positions"):
        small_backbone(dict(attn_use_rel_proj_pos_bias=True), cross_attend=True)


RELATIVE = [
    "plain",
    "rotary",
    "xpos",
    "polar",
    "alibi",
    "relative",
    "flash",
    "memory-key-values",
    "latent-key-values",
    "streams",
]


@pytest.mark.parametrize("name", RELATIVE)
@torch.no_grad()
def test_what_is_masked_changes_nothing_and_neither_does_its_number(name):
    backbone = small_backbone(CACHED[name])
    embeds, prefix = torch.randn(3, 8, 16), torch.randn(3, 2, 16)
    expected = backbone(embeds, prefix=prefix)
    for padding in (1, 3):
        padded = torch.cat((torch.randn(3, padding, 16), prefix), dim=1)
        mask = torch.arange(padding + 2) >= padding
        outputs = backbone(embeds, prefix=padded, prefix_mask=mask.expand(3, -1))
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder_kwargs", parameters(MASKABLE))
@torch.no_grad()
def test_one_beginning_serves_several_sequences(decoder_kwargs):
    backbone = small_backbone(decoder_kwargs)
    embeds, inputs = torch.randn(3, 4, 16), prefix_only(condition())
    rest = torch.randn(6, 2, 16)
    _, state = backbone.step(embeds, **inputs)
    state = state.repeat(2)
    full = torch.cat((embeds.repeat_interleave(2, dim=0), rest), dim=1)
    expected = backbone(
        full, **{name: part.repeat_interleave(2, dim=0) for name, part in inputs.items()}
    )
    for i in range(2):
        output, state = backbone.step(rest[:, i : i + 1], state)
        torch.testing.assert_close(output, expected[:, 4 + i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_beginning_serves_several_sequences_with_cross_attention():
    backbone = small_backbone(cross_attend=True)
    embeds, inputs, rest = torch.randn(3, 4, 16), condition(), torch.randn(6, 1, 16)
    _, state = backbone.step(embeds, **inputs)
    output, _ = backbone.step(rest, state.repeat(2))
    full = torch.cat((embeds.repeat_interleave(2, dim=0), rest), dim=1)
    expected = backbone(
        full, **{name: part.repeat_interleave(2, dim=0) for name, part in inputs.items()}
    )
    torch.testing.assert_close(output, expected[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED))
def test_known_options_are_cached(decoder_kwargs):
    assert small_backbone(decoder_kwargs).can_cache


@pytest.mark.parametrize("decoder_kwargs", parameters(UNCACHED))
def test_options_that_a_cache_would_falsify_are_not(decoder_kwargs):
    assert not small_backbone(decoder_kwargs).can_cache


@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED, UNCACHED))
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_output_does_not_see_later_inputs(decoder_kwargs, masked):
    backbone = small_backbone(decoder_kwargs)
    inputs = prefix_only(condition(masked))
    assert backbone.can_mask == (decoder_kwargs not in LEAKING.values())
    if masked and not backbone.can_mask:
        with pytest.raises(
            ValueError, match=r"sequences of vectors \(b m dim_cond\) need cross_attend = True"
        ):
            backbone(torch.randn(3, 8, 16), **inputs)
        return
    embeds = torch.randn(3, 8, 16)
    changed = embeds.clone()
    changed[:, 5:] = torch.randn(3, 3, 16)
    before, after = backbone(embeds, **inputs), backbone(changed, **inputs)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=-1).amin() > 1e-3


@pytest.mark.parametrize("decoder_kwargs", parameters(NOT_CAUSAL))
def test_a_decoder_that_sees_later_inputs_is_refused(decoder_kwargs):
    with pytest.raises(ValueError, match="output at a position changes with later positions"):
        small_backbone(decoder_kwargs)


@pytest.mark.parametrize(
    ("decoder_kwargs", "message"),
    [
        (dict(attn_flash_typo=True), "attn_flash_typo"),
        (dict(nonsense=1), "nonsense"),
        (dict(depth=3), "decoder_kwargs must not hold 'depth'"),
        (
            dict(attn_dim_head=3),
            "decoder_kwargs must not hold 'attn_dim_head': "
            "the model's own argument `dim_head` sets it",
        ),
        (
            dict(cross_attend=True),
            "decoder_kwargs must not hold 'cross_attend': "
            "the model's own argument `cross_attend` sets it",
        ),
        (dict(use_adaptive_layernorm=True), "adaptive norms"),
        (dict(attn_sparse_topk=4), "fails on sequences of 1 to"),
    ],
)
def test_bad_decoder_kwargs(decoder_kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_backbone(decoder_kwargs)


@pytest.mark.parametrize("max_seq_len", [0, -1, 2.0, (2, 0), (), "8"])
def test_bad_lengths(max_seq_len):
    with pytest.raises(ValueError, match="max_seq_len must be a whole number of at least 1"):
        small_backbone(max_seq_len=max_seq_len)


def test_trying_out_a_decoder_draws_no_random_numbers():
    torch.manual_seed(3)
    Backbone(16, max_seq_len=4, depth=1, num_heads=2, dim_head=8, decoder_kwargs=dict(verbose=True))
    tried = torch.rand(())
    torch.manual_seed(3)
    Backbone(16, max_seq_len=4, depth=1, num_heads=2, dim_head=8)
    assert torch.equal(tried, torch.rand(()))
