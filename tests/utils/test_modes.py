import copy
import warnings

import pytest
import torch
from helpers import needs_compiler, stir
from torch import nn

from autoregressive_diffusion_pytorch import AutoregressiveDiffusion, AutoregressiveFlow
from autoregressive_diffusion_pytorch.utils.modes import checkpoint_gradients, compiled


@needs_compiler
def test_gives_the_function_s_numbers():
    def function(x, y):
        return torch.tanh(x @ y) * 2

    x, y = torch.randn(3, 4), torch.randn(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it must not fall back
        torch.testing.assert_close(compiled(function)(x, y), function(x, y))


def test_where_the_compiler_fails_the_function_runs_as_it_is_after_one_warning():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here\n\nand a long story")

    def function(x):
        return x + 1

    call = compiled(function, backend=broken)
    with pytest.warns(
        RuntimeWarning, match=r"torch.compile failed, going on without it: .*no compiler here$"
    ):
        assert call(torch.ones(())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(torch.ones(())) == 2
        assert compiled(function, backend=broken)(torch.ones(())) == 2  # nor is it tried again


def test_where_there_is_no_compiler_the_function_runs_as_it_is(monkeypatch):
    def compile(*args, **kwargs):
        raise RuntimeError("not supported on this Python")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(
        RuntimeWarning, match="going on without it: RuntimeError: not supported on this Python"
    ):
        assert compiled(lambda x: x + 1)(1) == 2


def test_an_error_of_the_function_itself_comes_through():
    def function(x):
        raise ValueError("a bad x")

    call = compiled(function, backend="eager")
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it is not the compiler's
            with pytest.raises(ValueError, match="a bad x"):
                call(torch.ones(()))


def bytes_kept(model, *args, **kwargs):
    """What the forward pass keeps for the backward pass, but for the parameters."""
    kept = {}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def note(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(*args, **kwargs)
    return sum(kept.values())


@pytest.mark.parametrize("model_class", [AutoregressiveDiffusion, AutoregressiveFlow])
@pytest.mark.parametrize(
    "kwargs",
    [{}, dict(dim_cond=3, cross_attend=True, decoder_kwargs=dict(attn_dropout=0.2, ff_glu=True))],
)
def test_the_same_gradients_with_less_kept(model_class, kwargs):
    plain = stir(
        model_class(
            dim=32,
            dim_input=6,
            max_seq_len=12,
            depth=3,
            heads=2,
            dim_head=16,
            mlp_width=32,
            **kwargs,
        )
    )
    model = copy.deepcopy(plain)
    model.checkpoint_gradients()
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    seq = torch.randn(4, 12, 6)
    conditions = dict(cond=torch.randn(4, 5, 3)) if kwargs else {}
    for m in (plain, model):
        torch.manual_seed(1)
        m(seq, **conditions).backward()
    for expected, found in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    assert bytes_kept(model, seq, **conditions) < 0.6 * bytes_kept(plain, seq, **conditions)
    first = {name: given[:1] for name, given in conditions.items()}
    samples = [
        m.sample(2, generator=torch.Generator().manual_seed(0), **first) for m in (plain, model)
    ]
    assert torch.equal(*samples)


def test_only_training_computes_twice():
    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(x)
            return super().forward(x)

    calls = []

    layer = Counting(2, 2)
    checkpoint_gradients(layer)
    checkpoint_gradients(layer)  # no further effect
    x = torch.randn(3, 2, requires_grad=True)
    layer(x).sum().backward()
    assert len(calls) == 2
    layer.eval()
    layer(x).sum().backward()
    with torch.no_grad():
        layer.train()(x)
    assert len(calls) == 4
    assert isinstance(copy.deepcopy(layer), Counting)
    other = Counting(3, 3)
    checkpoint_gradients(other)
    assert type(other) is type(layer)  # what wraps layers by their class finds all
