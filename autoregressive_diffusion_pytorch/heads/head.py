"""The contract of a head: a loss per token, a way to draw tokens and, if it has one, a density."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import Generator, Tensor
from torch.nn import Module

from ..utils.rng import Generators
from . import HEADS
from .guidance import Guidance

NETWORK_ARGUMENTS = ("dim_token", "dim_z", "width", "depth", "dropout")


class Head(Module, ABC):
    """The distribution p(x | z) of one token x given its condition z.

    A head sees tokens (… d) and conditions (… dim), whatever their leading axes, and builds its own
    network. A subclass takes the arguments below, and any of its own as keywords: it keeps each of
    those as an attribute of the same name, and they make up its `config`.

    Args:
        dim_token: width d of a token.
        dim_z: width dim of a condition.
        width, depth: of the network, for a subclass to take; heads of this library take `dropout`
            too.
    """

    def __init__(self, dim_token: int, dim_z: int):
        super().__init__()
        self.dim_token = dim_token
        self.dim_z = dim_z

    @abstractmethod
    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """The loss of each token: (… d), (… dim) -> (…)."""

    @abstractmethod
    def sample(
        self,
        z: Tensor,
        *,
        guidance: Sequence[Guidance] = (),
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """Draws one token per condition: (… dim) -> (… d). A subclass may take further options.

        `generator` may be a list, one per entry of the first axis: `utils.rng.randn` takes both.
        """

    def log_prob(
        self, tokens: Tensor, z: Tensor, *, generator: Generator | None = None, **options
    ) -> Tensor:
        """The log-density of each token in nats: (… d), (… dim) -> (…).

        A subclass that has one takes what options it likes.

        Raises:
            TypeError: the head has no density.
        """
        able = ", ".join(name for name in HEADS if head_class(name).has_density())
        raise TypeError(f"{type(self).__name__} has no density: heads that have one are {able}")

    # what a head may add

    def measure(self, tokens: Tensor) -> None:
        """Estimates what the head must know of the data, such as its scale, from tokens (… d)."""

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of the last loss for the log of a training, by name."""
        return {}

    def imitate(self, teacher: Head) -> None:
        """Takes over what it can from a trained head with the same conditions, its teacher.

        By default nothing: the head learns from tokens alone.
        """

    def checkpoint_gradients(self) -> None:
        """From now on training keeps less for the backward pass, and computes it again."""

    def sampler(self, **options) -> Callable[..., Tensor]:
        """`sample` with these options, for many calls: `draw(z, guidance=()) -> tokens`."""
        return partial(self.sample, **options)

    def sampling_settings(self, **options) -> dict[str, Any]:
        """The head's own options of `sample`, defaults resolved, as plain values for reports."""
        return {}

    def num_evaluations(self, **options) -> int:
        """The number of function evaluations (NFE) of the head's network per token."""
        return 1

    def density_settings(self, **options) -> dict[str, Any]:
        """The options of `log_prob`, defaults resolved, as plain values for reports.

        Raises:
            ValueError: if one of them is wrong.
            ModuleNotFoundError: if `log_prob` needs a package that is not installed.
        """
        return {}

    # what models and commands ask of it

    @classmethod
    def argument_names(cls) -> list[str]:
        """The names of the constructor's own arguments, without those of the network."""
        inits = [base.__init__ for base in cls.__mro__ if "__init__" in vars(base)]
        given = [p for init in inits for p in inspect.signature(init).parameters.values()]
        names = dict.fromkeys(p.name for p in given if p.kind is p.KEYWORD_ONLY)
        return [name for name in names if name not in NETWORK_ARGUMENTS]

    @classmethod
    def sampling_options(cls) -> list[str]:
        """The names of the options of `sample`."""
        given = inspect.signature(cls.sample).parameters.values()
        return [p.name for p in given if p.kind is p.KEYWORD_ONLY and p.name != "guidance"]

    @classmethod
    def has_density(cls) -> bool:
        return cls.log_prob is not Head.log_prob

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's own arguments as they are now.

        Raises:
            ValueError: the class does not keep one of them as an attribute.
        """
        names = self.argument_names()
        for name in names:
            if not hasattr(self, name):
                raise ValueError(f"{type(self).__name__} must keep {name} as an attribute")
        return {name: getattr(self, name) for name in names}


def head_class(head: str | type[Head]) -> type[Head]:
    """The class of a head, from itself, its name in `HEADS`, or "module:Class".

    A module that is no part of this library must be imported already: a saved model names its head,
    and loading it runs no code that its user has not chosen to run.

    Raises:
        ValueError: there is no such head.
    """
    found = head
    if isinstance(head, str):
        module, _, name = HEADS.get(head, head).partition(":")
        if head in HEADS:
            import_module(module)
        if ":" in head and module not in sys.modules:
            raise ValueError(
                f"head {head!r} is not of this library: import {module} first, or on the command "
                f"line name it with --head {head}"
            )
        found = getattr(sys.modules.get(module), name or head, None)
    if not (isinstance(found, type) and issubclass(found, Head)):
        known = ", ".join(map(repr, HEADS))
        raise ValueError(
            f"head must be one of {known}, 'module:Class' or a subclass of Head, got {head!r}"
        )
    return found


def check_head_kwargs(head_kwargs: dict[str, Any]) -> None:
    """Whether arguments for a model's head leave those of its network to the model."""
    for name in NETWORK_ARGUMENTS:
        if name in head_kwargs:
            own = "mlp_depth, mlp_width and mlp_kwargs set the head's network"
            raise ValueError(f"head_kwargs must not hold {name!r}: {own}")


def head_name(head: type[Head]) -> str:
    """What `head_class` knows a class by."""
    place = f"{head.__module__}:{head.__qualname__}"
    return next((name for name, known in HEADS.items() if known == place), place)
