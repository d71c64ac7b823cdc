import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch.backbone import AxialPositions, Backbone

CACHED = {
    "plain": {},
    "rotary": dict(rotary_pos_emb=True),
    "xpos": dict(rotary_xpos=True),
    "polar": dict(polar_pos_emb=True),
    "alibi": dict(alibi_pos_bias=True),
    "relative": dict(rel_pos_bias=True),
    "qk-norm": dict(attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    "glu": dict(ff_glu=True, ff_swish=True),
    "flash": dict(attn_flash=True, rotary_pos_emb=True),
    "grouped-key-values": dict(attn_kv_heads=1),
    "memory-key-values": dict(attn_num_mem_kv=2),
    "latent-key-values": dict(attn_use_latent_kv=True, attn_dim_latent_kv=8),
    "window": dict(attn_max_attend_past=2),
    "rmsnorm": dict(use_rmsnorm=True),
    "layer-scale": dict(use_layerscale=True),
    "value-residual": dict(add_value_residual=True),
    "streams": dict(num_residual_streams=2),
}
UNCACHED = {
    "shifted-tokens": dict(shift_tokens=1),
    "data-dependent-alibi": dict(attn_data_dependent_alibi=True),
    "selective": dict(attn_selective=True),
}
NOT_CAUSAL = {
    "mean-split-residual": dict(mv_split_residual=True),
}


def small_backbone(decoder_kwargs=None, max_seq_len=8, **kwargs):
    sizes = dict(depth=2, heads=2, dim_head=8) | kwargs
    return stir(Backbone(16, max_seq_len=max_seq_len, decoder_kwargs=decoder_kwargs, **sizes)).eval()


def steps(backbone, embeds, first=1):
    outputs, state = [], None
    for start, stop in zip([0, *range(first, embeds.shape[1])], range(first, embeds.shape[1] + 1), strict=True):
        output, state = backbone.step(embeds[:, start:stop], state)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def parameters(*dictionaries):
    return [pytest.param(kwargs, id=name) for kinds in dictionaries for name, kwargs in kinds.items()]


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


@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED))
def test_known_options_are_cached(decoder_kwargs):
    assert small_backbone(decoder_kwargs).can_cache


@pytest.mark.parametrize("decoder_kwargs", parameters(UNCACHED))
def test_options_that_a_cache_would_falsify_are_not(decoder_kwargs):
    assert not small_backbone(decoder_kwargs).can_cache


@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED, UNCACHED))
@torch.no_grad()
def test_output_does_not_see_later_inputs(decoder_kwargs):
    backbone = small_backbone(decoder_kwargs)
    embeds = torch.randn(3, 8, 16)
    changed = embeds.clone()
    changed[:, 5:] = torch.randn(3, 3, 16)
    before, after = backbone(embeds), backbone(changed)
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
        (dict(attn_dim_head=3), "decoder_kwargs must not hold 'attn_dim_head': the model's own argument `dim_head` sets it"),
        (dict(cross_attend=True), "cross-attention"),
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
    Backbone(16, max_seq_len=4, depth=1, heads=2, dim_head=8, decoder_kwargs=dict(verbose=True))
    tried = torch.rand(())
    torch.manual_seed(3)
    Backbone(16, max_seq_len=4, depth=1, heads=2, dim_head=8)
    assert torch.equal(tried, torch.rand(()))


def test_axial_positions_are_sums_over_the_axes():
    positions = stir(AxialPositions(5, (2, 3, 4)), 1.0)
    a, b, c = positions.tables
    expected = (a[:, None, None] + b[None, :, None] + c[None, None, :]).reshape(24, 5)
    torch.testing.assert_close(positions(0, 24), expected)
    torch.testing.assert_close(positions(7, 19), expected[7:19])
