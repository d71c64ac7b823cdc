import shutil
import warnings

import pytest
import torch

from autoregressive_diffusion_pytorch.compilation import compiled

needs_compiler = pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="needs a C++ compiler")


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
    with pytest.warns(RuntimeWarning, match=r"torch.compile failed, going on without it: .*no compiler here$"):
        assert call(torch.ones(())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(torch.ones(())) == 2
        assert compiled(function, backend=broken)(torch.ones(())) == 2  # nor is it tried again


def test_where_there_is_no_compiler_the_function_runs_as_it_is(monkeypatch):
    def compile(*args, **kwargs):
        raise RuntimeError("not supported on this Python")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(RuntimeWarning, match="going on without it: RuntimeError: not supported on this Python"):
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
