"""Networks in files of `torch.export.save`, run without any code from the file.

`torch.export.load` falls back to unpickling, and runs expressions and compiled libraries that a
file holds. Here such a file is what it should be, numbers and a list of tensor operations: JSON is
read, tensors are read as bytes or by `torch.load(weights_only=True)`, and the operations are called
one after the other. What else the file holds, such as the inputs it was exported with, is not read.
"""

from __future__ import annotations

import io
import json
import math
import operator
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

# of torch's schema of exported programs, the numbers that it gives types
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
LAYOUTS = {7: torch.strided}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
# beside those on tensors: sums and products of sizes, and parts of results
PLAIN = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")
PLAIN = {f"_operator.{name}": getattr(operator, name) for name in PLAIN} | {
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_float": float,
}
OPERATION = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")


class ExportedNetwork(Module):
    """A network of one input, from a file of `torch.export.save`.

    Raises:
        ValueError: the file holds something else, or operations beside those on tensors.
    """

    def __init__(self, file: str | Path):
        super().__init__()
        try:
            archive = _Archive(file)
            graph_module = archive.program()["graph_module"]
            tensors = archive.tensors("constants") | archive.tensors("weights")
            signature = graph_module["signature"]
            self.inputs, self.tensors = [], {}
            for i, spec in enumerate(signature["input_specs"]):
                ((kind, spec),) = spec.items()
                if kind == "user_input":
                    self.inputs.append(spec["arg"]["as_tensor"]["name"])
                    continue
                self.tensors[spec["arg"]["name"]] = f"tensor_{i}"
                name = {"parameter": "parameter_name", "buffer": "buffer_name"}.get(kind)
                tensor = tensors[spec[name or "tensor_constant_name"]]
                self.register_buffer(f"tensor_{i}", tensor.detach())
            if len(self.inputs) != 1:
                raise ValueError(f"expected a network of one input, got {len(self.inputs)}")
            sizes = graph_module["graph"]["tensor_values"][self.inputs[0]]["sizes"]
            self.shape = [size.get("as_int") for size in sizes]  # None for any
            self.steps = _steps(graph_module["graph"])
            outputs = (spec.get("user_output") for spec in signature["output_specs"])
            self.outputs = [spec["arg"]["as_tensor"]["name"] for spec in outputs if spec]
        except Exception as error:
            raise ValueError(
                f"{file} holds no network exported by torch.export.save, or not only operations on "
                f"tensors: {type(error).__name__}: {error}"
            ) from error

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        sizes = zip(images.shape, self.shape, strict=False)
        if images.ndim != len(self.shape) or any(n not in (m, None) for m, n in sizes):
            expected = " ".join("b" if size is None else str(size) for size in self.shape)
            raise ValueError(f"the network takes ({expected}), got {tuple(images.shape)}")
        values = {name: getattr(self, place) for name, place in self.tensors.items()}
        values[self.inputs[0]] = images
        for step in self.steps:
            step(values, images.device)
        outputs = tuple(values[name] for name in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class _Archive:
    """The members of a file of `torch.export.save`, of this version's format or earlier ones'."""

    def __init__(self, file: str | Path):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            # all in one folder, but for the earliest format
            start = names[0].partition("/")[0] + "/"
            root = start if all(name.startswith(start) for name in names) else ""
            known = re.compile(r"models/model\.json|data/(weights|constants)/.*|serialized_.*")
            members = {name.removeprefix(root): name for name in names}
            self.members = {
                short: archive.read(name) for short, name in members.items() if known.match(short)
            }

    def program(self) -> dict[str, Any]:
        for name in ("models/model.json", "serialized_exported_program.json"):
            if name in self.members:
                return json.loads(self.members[name])
        raise ValueError("no exported program was found in it")

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The "weights" or "constants" by name."""
        earlier = dict(weights="serialized_state_dict.pt", constants="serialized_constants.pt")
        for name in (f"data/{kind}/model.pt", earlier[kind]):
            if name in self.members:
                return _unpickled(self.members[name]) if self.members[name] else {}
        config = json.loads(self.members[f"data/{kind}/model_{kind}_config.json"])["config"]
        return {name: self._tensor(kind, entry) for name, entry in config.items()}

    def _tensor(self, kind: str, entry: dict[str, Any]) -> Tensor:
        content = self.members[f"data/{kind}/{entry['path_name']}"]
        if entry["use_pickle"]:
            return _unpickled(content)
        meta = entry["tensor_meta"]
        size, stride = ([i["as_int"] for i in meta[name]] for name in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        if not content:
            return torch.zeros(size, dtype=dtype)
        flat = torch.frombuffer(bytearray(content), dtype=dtype)
        return flat.as_strided(size, stride, meta["storage_offset"]["as_int"]).clone()


def _unpickled(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _steps(graph: dict[str, Any]) -> list[Callable]:
    without_grad = "torch.ops.higher_order.wrap_with_set_grad_enabled"
    kinds = {without_grad: _Part}
    return [kinds.get(node["target"], _Step)(node) for node in graph["nodes"]]


class _Part:
    """Some operations as a list of their own, from a block `with torch.no_grad()`."""

    def __init__(self, node: dict[str, Any]):
        _, graph, *given = (argument["arg"] for argument in node["inputs"])
        graph = graph["as_graph"]["graph"]
        self.given, self.results = given, node["outputs"]
        self.inner, self.found = graph["inputs"], graph["outputs"]
        self.steps = _steps(graph)

    def __call__(self, values: dict[str, Any], device: torch.device) -> None:
        given = [_value(argument, values, device) for argument in self.given]
        inside: dict[str, Any] = {}
        for argument, value in zip(self.inner, given, strict=True):
            _assign(argument, value, inside)
        for step in self.steps:
            step(inside, device)
        found = [_value(argument, inside, device) for argument in self.found]
        results = self.results
        if len(results) == 1 and "as_tensors" in results[0]:
            found = [found]
        for result, value in zip(results, found, strict=True):
            _assign(result, value, values)


def _assign(result: dict[str, Any], value: Any, values: dict[str, Any]) -> None:
    ((kind, name),) = result.items()
    if kind == "as_tensors":
        values |= {n["name"]: part for n, part in zip(name, value, strict=True)}
    elif kind != "as_none":
        values[name["name"] if "name" in name else name["as_name"]] = value


class _Step:
    """One operation of the list: its function, arguments, and the names of its results."""

    def __init__(self, node: dict[str, Any]):
        self.function, self.by_name = _function(node["target"])
        self.arguments = [(given["name"], given["arg"]) for given in node["inputs"]]
        self.results = node["outputs"]
        for _, argument in self.arguments:
            if not argument.keys() <= READERS.keys():
                raise ValueError(f"{node['target']} has an argument of the kind {[*argument]}")

    def __call__(self, values: dict[str, Any], device: torch.device) -> None:
        given = [(name, _value(arg, values, device)) for name, arg in self.arguments]
        if self.by_name:
            found = self.function(**dict(given))
        else:
            found = self.function(*(value for _, value in given))
        if len(self.results) == 1:
            found = (found,)
        for result, value in zip(self.results, found if self.results else (), strict=True):
            _assign(result, value, values)


def _function(target: str) -> tuple[Callable, bool]:
    """The function of this name, if it is one on tensors or sizes; whether it takes names."""
    if target in PLAIN:
        return PLAIN[target], False
    if match := OPERATION.fullmatch(target):
        packet = getattr(torch.ops.aten, match[1])
        if isinstance(packet, torch._ops.OpOverloadPacket) and match[2] in packet.overloads():
            function = getattr(packet, match[2])
            names = [argument.name for argument in function._schema.arguments]
            if "filename" not in names:  # two of them read or write a file
                return function, True
    raise ValueError(f"{target} is no operation on tensors")


def _value(argument: dict[str, Any], values: dict[str, Any], device: torch.device) -> Any:
    ((kind, given),) = argument.items()
    return READERS[kind](given, values, device)


def _plain(given: Any, values: dict[str, Any], device: torch.device) -> Any:
    return given


def _number(given: Any, values: dict[str, Any], device: torch.device) -> float:
    return float(given)  # what JSON cannot say is a string


def _named(given: dict[str, Any], values: dict[str, Any], device: torch.device) -> Any:
    """A tensor, or a size that is known by then or stands there."""
    if "as_none" in given:
        return None
    if "as_tensor" in given:
        given = given["as_tensor"]
    name = given.get("name", given.get("as_name"))
    return next(iter(given.values())) if name is None else values[name]


def _listed(read: Callable) -> Callable:
    return lambda given, values, device: [read(item, values, device) for item in given]


READERS = {
    "as_none": lambda given, values, device: None,
    "as_scalar_type": lambda given, values, device: DTYPES[given],
    "as_layout": lambda given, values, device: LAYOUTS[given],
    "as_memory_format": lambda given, values, device: MEMORY_FORMATS[given],
    "as_device": lambda given, values, device: device,
    "as_float": _number,
    "as_floats": _listed(_number),
    "as_optional_tensors": _listed(_named),
    **dict.fromkeys(("as_int", "as_ints", "as_bool", "as_bools", "as_string"), _plain),
    **dict.fromkeys(("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"), _named),
    **dict.fromkeys(("as_tensors", "as_sym_ints", "as_sym_floats"), _listed(_named)),
}
