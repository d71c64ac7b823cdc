import math

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import Autoregressive, AutoregressiveFlow
from autoregressive_diffusion_pytorch.models.normalization import normalization_of

SMALL = dict(dim=16, dim_input=3, max_seq_len=6, depth=1, heads=2, dim_head=8, mlp_depth=1)
MEAN, SCALE = [5.0, -1.0, 0.0], [2.0, 0.1, 30.0]


def small_model(normalize, **kwargs):
    torch.manual_seed(0)
    return stir(AutoregressiveFlow(**SMALL, normalize=normalize, **kwargs))


def data(count=50):
    return torch.randn(count, 6, 3) * torch.tensor(SCALE) + torch.tensor(MEAN)


def test_each_channel_is_measured_on_the_first_batch():
    model, seq = small_model(True), data()
    lens = torch.arange(50) % 6 + 1
    seq[torch.arange(6) >= lens[:, None]] = 1e6  # padding
    model(seq, lens=lens)
    tokens = torch.cat([one[:length] for one, length in zip(seq, lens, strict=True)])
    torch.testing.assert_close(model.normalization.mean, tokens.mean(dim=0))
    torch.testing.assert_close(model.normalization.scale, tokens.std(dim=0))
    before = model.normalization.mean.clone()
    model(seq + 7, lens=lens)  # once and for all
    assert torch.equal(model.normalization.mean, before)
    assert model.head.sigma_data.item() == pytest.approx(1, abs=0.05)


def test_evaluation_measures_nothing():
    model = small_model(True).eval()
    model(data())
    model.sample(2, num_steps=1)
    assert not model.normalization.is_measured


def test_it_is_a_change_of_variables():
    """Data that are normalised by hand give the same loss, samples and log-density, but for the
    log of the volume."""
    seq = data()
    normalized = (seq - torch.tensor(MEAN)) / torch.tensor(SCALE)
    with_it, without = small_model(dict(mean=MEAN, scale=SCALE)), small_model(False)
    without.load_state_dict(with_it.state_dict(), strict=False)
    losses, log_probs, samples = [], [], []
    for model, given in ((with_it, seq), (without, normalized)):
        torch.manual_seed(1)
        losses.append(model(given))
        log_probs.append(model.log_prob(given, solver="rk4", num_steps=2, divergence="exact"))
        generator = torch.Generator().manual_seed(2)
        samples.append(model.sample(prompt=given[:3, :2], generator=generator))
    torch.testing.assert_close(losses[0], losses[1])
    log_volume = sum(map(math.log, SCALE))
    torch.testing.assert_close(log_probs[0], log_probs[1] - log_volume, rtol=1e-4, atol=1e-4)
    back = samples[1] * torch.tensor(SCALE) + torch.tensor(MEAN)
    torch.testing.assert_close(samples[0], back, rtol=1e-4, atol=1e-4)
    assert torch.equal(samples[0][:, :2], seq[:3, :2])  # the prompt is untouched


def test_streams_and_fillings_are_of_the_data():
    torch.manual_seed(0)
    given = dict(mean=1000.0, scale=1.0)
    model = Autoregressive(**SMALL, head="flow", order="random", normalize=given)
    options = dict(num_steps=2, temperature=0.1)
    for _, tokens in model.stream(2, **options):
        assert (tokens > 500).all()
    seq = torch.full((2, 6, 3), 1000.0)
    assert (model.fill(seq, torch.arange(6) > 2, **options) > 500).all()


def test_it_is_saved_with_the_weights(tmp_path):
    model = small_model(True)
    model(data())
    model.save_pretrained(tmp_path)
    loaded = AutoregressiveFlow.from_pretrained(tmp_path)
    assert loaded.normalization.is_measured
    torch.testing.assert_close(loaded.normalization.scale, model.normalization.scale)
    assert loaded.config["normalize"] is True
    assert loaded.bfloat16().normalization.scale.dtype == torch.float32


def test_models_saved_before_it_are_without(tmp_path):
    import json

    model = small_model(False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["normalize"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoregressiveFlow.from_pretrained(tmp_path)
    assert loaded.config["normalize"] is False


def test_a_channel_that_never_varies_is_only_moved():
    normalization = normalization_of(2, True)
    tokens = torch.stack((torch.randn(20), torch.full((20,), 3.0)), dim=1)
    normalization.measure(tokens)
    assert normalization.scale[1] == 1
    assert (normalization(tokens)[:, 1] == 0).all()


def test_drawn_tokens_lie_on_the_sphere_guided_or_not():
    model = small_model(dict(radius=7.0), num_classes=2)
    seq = torch.nn.functional.normalize(torch.randn(4, 6, 3), dim=-1) * 7
    # the model learns tokens of unit scale
    assert model.normalization(seq).norm(dim=-1).sub(math.sqrt(3)).abs().max() < 1e-5
    assert torch.isfinite(model(seq, labels=[0, 1, 1, 0]))
    for scale in (1.0, 3.0):
        sampled = model.sample(labels=[0, 1], guidance_scale=scale, num_steps=2)
        torch.testing.assert_close(sampled.norm(dim=-1), torch.full((2, 6), 7.0))
    assert model.config["normalize"] == dict(radius=7.0)
    assert not model.has_density
    with pytest.raises(TypeError, match="no density"):
        model.log_prob(seq, labels=[0, 1, 1, 0])


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        (dict(mean=0.0), "both mean and scale"),
        (dict(mean=[0.0, 1.0], scale=1.0), r"normalize\['mean'\] must be one finite number, or 3"),
        (dict(mean=0.0, scale=[1.0, 0.0, 1.0]), r"normalize\['scale'\] must be above 0"),
        (dict(mean=math.nan, scale=1.0), "finite"),
        (dict(radius=0.0), r"normalize\['radius'\] must be above 0"),
        (dict(radius=1.0, mean=0.0), "got both"),
        ("yes", "normalize must be True, False"),
        ({}, "normalize must be True, False"),
        (dict(std=1.0), "'std'"),
    ],
)
def test_bad_normalizations_are_told(normalize, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AutoregressiveFlow(**SMALL, normalize=normalize)


def test_noise_reaches_the_transformer_only_while_training(monkeypatch):
    model = small_model(dict(mean=MEAN, scale=SCALE), input_noise=0.5)
    seq, seen = data(4000), []
    read = model.read
    monkeypatch.setattr(model, "read", lambda seq, *a, **k: seen.append(seq) or read(seq, *a, **k))
    model.eval()(seq)
    torch.testing.assert_close(seen[0], model.normalization(seq))
    model.train()(seq)
    # one std for each sequence, even from 0 to 0.5, of 18 values
    std = (seen[1] - seen[0]).square().mean(dim=(1, 2)).sqrt()
    allowed = 5 * 0.5 / math.sqrt(12 * 4000)
    assert std.square().mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(3), abs=2 * allowed)
    assert std.quantile(0.95) > 0.4
    assert std.quantile(0.05) < 0.1
