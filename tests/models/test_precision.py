"""Sampling in 8-bit integers; bf16 is in test_settings.py."""

import copy
from functools import partial

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    ImageAutoregressiveFlow,
    MaskedAutoregressive,
)
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images
from autoregressive_diffusion_pytorch.heads import HEADS
from autoregressive_diffusion_pytorch.utils import modes
from autoregressive_diffusion_pytorch.utils.int8 import Int8Linear, quantize_linears
from autoregressive_diffusion_pytorch.utils.modes import in_precision

SIZES = dict(dim=64, depth=2, heads=2, mlp_depth=2, context_drop_prob=0.1)


def make(kind=Autoregressive, head="flow", **kwargs):
    torch.manual_seed(0)
    sizes = dict(max_seq_len=4, dim_input=3, num_classes=3) | SIZES
    return stir(kind(head=head, **sizes | kwargs), 0.02).eval()


def make_image_model():
    torch.manual_seed(0)
    sizes = dict(image_size=4, patch_size=2, channels=1, num_classes=3, model=SIZES)
    return stir(ImageAutoregressiveFlow(**sizes), 0.02).eval()


def sample(model, count=8, **kwargs):
    options = dict(labels=torch.arange(count) % 3, generator=torch.Generator().manual_seed(0))
    return model.sample(count, **options | kwargs)


def shifted(model):
    """A copy, the weights of whose linear layers move at random by up to half a step."""
    other = copy.deepcopy(model)
    quantize_linears(other)
    result = copy.deepcopy(model)
    with torch.no_grad():
        for layer, found in zip(other.modules(), result.modules(), strict=True):
            if isinstance(layer, Int8Linear):
                found.weight += (torch.rand_like(found.weight) - 0.5) * layer.steps.unsqueeze(1)
    return result


def rms(difference):
    return difference.square().mean().sqrt()


KINDS = {"raster": {}, "random": dict(order="random"), "masked": dict(kind=MaskedAutoregressive)}
HEAD_NAMES = sorted(HEADS)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize(
    ("head", "kind"),
    [*((head, "raster") for head in HEAD_NAMES), ("flow", "random"), ("flow", "masked")],
)
def test_samples_are_as_far_from_those_of_single_precision_as_a_step_of_rounding(
    head, kind, guided
):
    model = make(head=head, **KINDS[kind])
    options = dict(guidance_scale=1.5, context_guidance=1.2) if guided else {}
    plain = sample(model, **options)
    away = rms(sample(model, precision="int8", **options) - plain)
    # both weights and inputs are rounded; a network and its guidance add up what that does
    step = rms(sample(shifted(model), **options) - plain)
    assert step / 2 < away < 5 * step


def test_the_model_stays_as_it_is():
    model = make()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    first, drawn = sample(model), sample(model, precision="int8")
    assert drawn.dtype == torch.float32
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
    assert torch.equal(sample(model), first)
    assert torch.equal(sample(model, precision="int8"), drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types_are_drawn_with_in_single_precision(dtype):
    model = make().to(dtype)
    drawn = sample(model, precision="int8")
    assert torch.equal(drawn, sample(copy.deepcopy(model).float(), precision="int8"))


def test_image_models_stream_complete_and_fill():
    model = make_image_model()
    drawn = sample(model, precision="int8")
    options = dict(labels=1, precision="int8", generator=torch.Generator().manual_seed(0))
    *_, last = model.stream(2, **options)
    assert last.shape == (2, 1, 4, 4)
    images = drawn[:1].clamp(0, 1)
    completed = model.complete(images, 2, **options)
    assert torch.equal(completed[:, :, :2], images[:, :, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_sample_i_of_a_seed_is_the_same_for_any_batch(kind):
    model = make(**KINDS[kind])

    def draw(*numbers):
        generators = [torch.Generator().manual_seed(i) for i in numbers]
        options = dict(labels=torch.tensor(numbers) % 3, context_guidance=1.3, guidance_scale=1.5)
        return sample(model, len(numbers), generator=generators, precision="int8", **options)

    together = draw(*range(20))
    # products in integers are exact, whatever their number: no last bit moves what is rounded next
    assert torch.equal(together, torch.cat([draw(i) for i in range(20)]))
    assert torch.equal(together[3:8], draw(*range(3, 8)))


def test_a_model_is_copied_once_for_many_batches(monkeypatch):
    copies = []
    quantize = modes.quantize_linears
    monkeypatch.setattr(modes, "quantize_linears", lambda m: (copies.append(m), quantize(m)))
    labels = torch.arange(4) % 3
    draw_images(make_image_model(), 4, batch_size=1, seed=0, precision="int8", labels=labels)
    assert len(copies) == 1


def test_another_device_is_refused_before_the_work():
    message = "precision = 'int8' is for a model on the CPU, got one on meta"
    model = make().to("meta")
    for draw in (model.sample, model.stream):
        with pytest.raises(ValueError, match=message):
            draw(2, labels=1, precision="int8")


def test_compiled_functions_call_the_same_layers(recwarn, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # traced
    layer = in_precision(torch.nn.Sequential(torch.nn.Linear(256, 256)), "int8")
    x = torch.randn(3, 256)
    with torch.inference_mode():
        together = modes.compiled(layer.forward, layer, dynamic=True)(x)
        torch.testing.assert_close(together, layer(x), rtol=0, atol=1e-2)
    assert not [w for w in recwarn if "torch.compile failed" in str(w.message)]
