"""The sampling step as a program that runs without this library: of ONNX, or of `torch.export`.

One call reads the tokens drawn since the last one, beside a cache of keys and values, and draws the
next token from noise. All randomness is its input: the loop is left to who runs it.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.export import Dim
from torch.nn import Module

from ..utils.files import atomic_write_text
from ..utils.rng import randn
from ..utils.validation import check_choice
from .generation import Generation
from .image import ImageAutoregressive
from .sampling_step import SamplingStep, check_model

FORMATS = dict(onnx="program.onnx", torch="program.pt2")
SETTINGS_FILE = "sampling.json"
TOLERANCE = 1e-4  # of tokens of unit scale, between a program and PyTorch
NUM_COMPARED = 4  # tokens
ONE_FILE = 2**31 - 2**24  # bytes: larger weights are kept in a second file by ONNX

Arrays = dict[str, np.ndarray]


class Program:
    """The program of a trained model: what is wrong is found at once, the work is in `write`.

    Args:
        model: of images, or of sequences.
        format: "onnx", or "torch" for `torch.export.load`.
        guidance_scale: of classifier-free guidance in place of the generation settings'. Where it
            is not 1, the program takes a scale, and reads each sequence twice.

    Raises:
        ValueError: there is no program of such a model.
        ModuleNotFoundError: packages of the format are missing.
    """

    def __init__(
        self,
        model: ImageAutoregressive | Module,
        format: str = "onnx",
        *,
        guidance_scale: float | None = None,
    ):
        check_choice("format", format, FORMATS)
        if format == "onnx":
            need_onnx()
        self.format = format
        self.tokenizer = model.tokenizer if isinstance(model, ImageAutoregressive) else None
        model = model.model if self.tokenizer is not None else model
        check_model(model, self.tokenizer)
        # a copy: the original stays on its device, and as it is
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        if guidance_scale is not None:
            settings = replace(self.model.generation, guidance_scale=guidance_scale)
            self.model.generation = settings
        self._generation(1)  # whether the model can be drawn with these settings
        self.step = SamplingStep(self.model)

    def settings(self) -> dict[str, Any]:
        """What is written to `sampling.json`: all that the loop around the program must know."""
        model, step = self.model, self.step
        options = model.generation.with_given({}, model.head)
        baked_in = model.head.sampling_settings(**options)
        names = ("guidance_schedule", "guidance_interval", "guidance_target", "context_guidance")
        baked_in |= {name: options.get(name) for name in names}
        settings = dict(
            program=FORMATS[self.format],
            inputs=step.inputs(),
            outputs=step.outputs,
            state=step.state,
            num_start=step.num_start,
            num_tokens=model.max_seq_len,
            dim_token=model.dim_input,
            temperature=step.temperature,
            baked_in=baked_in,
        )
        if model.conditioning.num_classes is not None:
            settings["num_classes"] = model.conditioning.num_classes
        if model.end_head is not None:
            settings["end_threshold"] = model.generation.end_threshold
        if self.tokenizer is not None:
            names = ("grid", "patch_size", "channels")
            images = {name: getattr(self.tokenizer, name) for name in names}
            settings["images"] = images | dict(value_range=[-1, 1])
        return settings

    def write(self, folder: str | Path) -> float:
        """Writes the program and `sampling.json` into a folder.

        Then some tokens are drawn from the same noise by the program and by PyTorch.

        Returns:
            their largest difference, in units of normalised tokens.

        Raises:
            ValueError: they differ by more than `TOLERANCE`; or torch cannot export the model.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._export(folder / FORMATS[self.format])
        settings = json.dumps(self.settings(), indent=2)
        atomic_write_text(folder / SETTINGS_FILE, settings)
        difference = self.difference(load_program(folder))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the program's tokens differ by up to {difference:.1e} from PyTorch's, more than "
                f"{TOLERANCE:g}"
            )
        return difference

    def _export(self, file: Path) -> None:
        with torch.no_grad(), _quietly():
            try:
                program = self._exported()
                if self.format == "onnx":
                    self._write_onnx(program, file)
                else:
                    torch.export.save(program, file)
            except Exception as error:  # the exporters have many
                reason = str(error).strip().partition("\n")[0]
                layers = self.model.config["decoder_kwargs"]
                own = f" with decoder_kwargs = {layers}" if layers else ""
                raise ValueError(f"torch cannot export this model{own}: {reason}") from error

    def _exported(self) -> torch.export.ExportedProgram:
        axes = {name: Dim(name, min=2) for name in ("batch", "count", "length")}
        sizes = dict(batch=3, count=5, length=7)  # any
        specified = self.step.inputs()
        inputs = {name: torch.from_numpy(x) for name, x in filled(specified, sizes).items()}
        dynamic = {
            name: {i: axes[size] for i, size in enumerate(of["shape"]) if size in axes}
            for name, of in specified.items()
        }
        # torch reasons of sizes of at least 2, but runs all. No layer here asks for smaller ones,
        # but attention, which leaves out the causal mask of one token: it masks nothing
        return torch.export.export(self.step, (inputs,), dynamic_shapes=(dynamic,), strict=False)

    def _write_onnx(self, program: torch.export.ExportedProgram, file: Path) -> None:
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        torch.onnx.export(
            program,
            f=file,
            input_names=list(self.step.inputs()),
            output_names=self.step.outputs,
            external_data=size > ONE_FILE,
            dynamo=True,
            verbose=False,
        )

    def difference(self, run: Callable[[Arrays], Arrays], count: int = NUM_COMPARED) -> float:
        """The largest one between tokens of a program and of PyTorch, from the same noise.

        In units of normalised tokens, of the first `count` of one sequence, and of two at a time.

        Args:
            run: the program, as of `load_program`.
        """
        inverse, zero = self.model.normalization.inverse, torch.zeros(self.model.dim_input)
        scale, differences = inverse(zero + 1) - inverse(zero), []
        for batch in (1, 2):
            generator = Generator().manual_seed(0)
            expected = [token[:, 0] for _, token in islice(self._generation(batch), count)]
            shape = (batch, 1, self.model.dim_input)  # as the sampler asks for them
            draw = partial(randn, shape, generator, torch.device("cpu"), torch.float32)
            noises = [[draw() for _ in range(self.step.sampler.num_noises)] for _ in expected]
            noises = (torch.cat(noise, dim=1).numpy() for noise in noises)
            drawn = draw_tokens(run, self.settings(), noises, self._labels(batch))
            for token, own in zip(drawn, expected, strict=True):
                differences.append(((torch.from_numpy(token) - own) / scale).abs().max())
        return torch.stack(differences).max().item()

    def _generation(self, batch: int) -> Generation:
        options = dict(generator=Generator().manual_seed(0), labels=self._labels(batch))
        if self.model.end_head is not None:
            options |= dict(end_threshold=1.0)  # none ends
        return Generation(self.model, batch, options)

    def _labels(self, batch: int) -> list[int] | None:
        classes = self.model.conditioning.num_classes
        return None if classes is None else [i % classes for i in range(batch)]


def load_program(folder: str | Path, num_threads: int | None = None) -> Callable[[Arrays], Arrays]:
    """The program of a folder: `run(inputs) -> outputs`, arrays by their names.

    Args:
        num_threads: of onnxruntime; by default as many as it likes.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    file, names = folder / settings["program"], settings["outputs"]
    if settings["program"] == FORMATS["torch"]:
        module = torch.export.load(file).module()

        def run(inputs: Arrays) -> Arrays:
            outputs = module({name: torch.from_numpy(value) for name, value in inputs.items()})
            return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    session = onnxruntime.InferenceSession(file, options)
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What `sampling.json` of a folder says, as of `Program.settings`."""
    return json.loads((Path(folder) / SETTINGS_FILE).read_text())


def draw_tokens(
    run: Callable[[Arrays], Arrays],
    settings: dict[str, Any],
    noises: Iterator[np.ndarray],
    labels: list[int] | None = None,
) -> Iterator[np.ndarray]:
    """Draws one token (b d) of each sequence from each of `noises` (b k d), of unit scale."""
    inputs = None
    for noise in noises:
        noise = (settings["temperature"] * noise).astype(np.float32)
        if inputs is None:
            sizes = dict(batch=len(noise), count=settings["num_start"], length=0)
            inputs = filled(settings["inputs"], sizes)
            if labels is not None:
                inputs["labels"] = np.array(labels)
        outputs = run(inputs | dict(noise=noise))
        yield outputs["token"]
        inputs |= {name: outputs[f"next_{name}"] for name in settings["state"]}
        inputs["tokens"] = outputs["token"][:, None]


def filled(inputs: dict[str, dict[str, Any]], sizes: dict[str, int]) -> Arrays:
    """The initial values of `SamplingStep.inputs`, with these sizes of their axes."""
    return {
        name: np.full([sizes.get(axis, axis) for axis in of["shape"]], of["initial"], of["type"])
        for name, of in inputs.items()
    }


def need_onnx() -> None:
    """Whether all is installed that writes and runs a program of ONNX."""
    try:
        import onnx  # noqa: F401 - asks whether they are there
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a program of ONNX needs {error.name}: "
            "pip install 'autoregressive-diffusion-pytorch[export]'"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of torch's exporters about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
