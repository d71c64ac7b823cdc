import copy
import pickle
import warnings

import pytest
import torch
from helpers import needs_compiler, stir
from torch import nn

from autoregressive_diffusion_pytorch import AutoregressiveDiffusion, AutoregressiveFlow
from autoregressive_diffusion_pytorch.utils.modes import (
    checkpoint_gradients,
    compiled,
    in_precision,
)


@pytest.fixture
def owner():
    return nn.Linear(1, 1)


@needs_compiler
def test_gives_the_function_s_numbers(owner):
    def function(x, y):
        return torch.tanh(x @ y) * 2

    x, y = torch.randn(3, 4), torch.randn(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it must not fall back
        torch.testing.assert_close(compiled(function, owner)(x, y), function(x, y))


def test_where_the_compiler_fails_the_function_runs_as_it_is_after_one_warning(owner):
    attempts = []

    def broken(graph, inputs):
        attempts.append(graph)
        raise RuntimeError("no compiler here\n\nand a long story")

    def closure():
        def function(x):
            return x + 1

        return function

    call = compiled(closure(), owner, backend=broken)
    message = r"torch.compile failed for .*function, going on without it: .*no compiler here$"
    with pytest.warns(RuntimeWarning, match=message):
        assert call(torch.ones(())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(torch.ones(())) == 2
        # nor is it tried again, in another closure or for a copy
        assert compiled(closure(), owner, backend=broken)(torch.ones(())) == 2
        copied = in_precision(owner, "bf16")
        assert compiled(closure(), copied, backend=broken)(torch.ones(())) == 2
    assert len(attempts) == 1
    other = nn.Linear(1, 1)
    with pytest.warns(RuntimeWarning, match=message):  # another module may fare better
        assert compiled(closure(), other, backend=broken)(torch.ones(())) == 2


def test_where_there_is_no_compiler_the_function_runs_as_it_is(monkeypatch, owner):
    def compile(*args, **kwargs):
        raise RuntimeError("not supported on this Python")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(
        RuntimeWarning, match="going on without it: RuntimeError: not supported on this Python"
    ):
        assert compiled(lambda x: x + 1, owner)(1) == 2


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", [ValueError("a bad x"), *OUT_OF_MEMORY], ids=repr)
def test_an_error_of_the_function_itself_comes_through(error, owner):
    calls = []

    def function(x):
        calls.append(x)
        if x < 0:
            raise error
        return x

    def compile(function, **options):
        return function

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(torch, "compile", compile)
        warnings.simplefilter("error", RuntimeWarning)  # it is not the compiler's
        call = compiled(function, owner)
        for _ in range(2):
            with pytest.raises(type(error)):
                call(-1)
        # what has no memory is not called again
        assert len(calls) == (4 if isinstance(error, ValueError) else 2)
        assert call(1) == 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_who_asks_for_compilation_in_vain_learns_it_once_per_function(monkeypatch, precision):
    attempts = []

    def compile(function, **options):
        attempts.append(function.__name__)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", compile)
    sizes = dict(dim=8, depth=1, heads=1, dim_head=8, mlp_depth=1, mlp_width=8)
    for _ in range(2):
        model = AutoregressiveFlow(**sizes, dim_input=2, max_seq_len=3)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            for _ in range(2):
                model.sample(compile=True, precision=precision)
        messages = [str(warning.message) for warning in record]
        assert len(messages) == 2
        assert all("torch.compile failed for" in message for message in messages)
    assert sorted(attempts) == ["draw", "draw", "step", "step"]


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
    assert type(layer) is Counting  # what wraps layers by their class finds them


def test_a_model_that_checkpoints_gradients_is_copied_and_pickled(tmp_path):
    sizes = dict(dim=16, depth=2, heads=2, dim_head=8, mlp_depth=2, mlp_width=16)
    model = stir(AutoregressiveFlow(**sizes, dim_input=3, max_seq_len=5))
    model.checkpoint_gradients()
    torch.save(model, tmp_path / "model.pt")
    seq = torch.randn(2, 5, 3)
    copies = [
        torch.load(tmp_path / "model.pt", weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ]
    kept = bytes_kept(model, seq)
    torch.manual_seed(0)
    expected = model(seq)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a copy must not read it
    for copied in copies:
        torch.manual_seed(0)
        assert torch.equal(copied(seq), expected)
        assert bytes_kept(copied, seq) == kept
