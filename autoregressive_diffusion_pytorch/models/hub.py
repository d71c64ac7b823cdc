"""Saving and loading a model as its constructor's arguments and its weights."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ..heads.head import Head, head_name
from ..heads.solvers import SOLVERS
from ..utils.files import utf8_path
from ..utils.manifests import best_checkpoint
from .card import MODEL_CARD, in_table, loop_of, sampling_facts, versions
from .settings import GENERATION_FILE, GenerationSettings

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CLASSES_FILE = "classes.json"


class OtherClassError(ValueError):
    """A saved model is not of the class that was to load it, but of one of `classes`, if any."""

    def __init__(self, message: str, classes: list[type[Pretrained]]):
        super().__init__(message)
        self.classes = classes


class Pretrained(
    PyTorchModelHubMixin,
    library_name="autoregressive-diffusion-pytorch",
    tags=["autoregressive", "diffusion", "rectified-flow"],
    model_card_template=MODEL_CARD,
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub.

    A model remembers the arguments it was made with. A saved one is `config.json`, which holds
    them, `generation.json`, its generation settings, `model.safetensors`, and `README.md`, a model
    card; with names of classes, `classes.json`. Loading runs no code from the files.

    Of a class with a constructor of its own, the arguments of that constructor are saved, as they
    were given: nobody else knows what it hands on to its base.
    """

    generation: GenerationSettings
    preset_arguments: ClassVar[tuple[str, ...]] = ()  # of a base, which this class itself sets

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls, *args, **kwargs)
        parameters = cls._constructor_parameters()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        # a copy: the caller may use a dictionary of arguments again, changed, for the next model
        instance._arguments = _copied(dict(zip(names, args, strict=False)) | kwargs)
        return instance

    @classmethod
    def _has_own_constructor(cls) -> bool:
        """Whether the constructor is none of this library's."""
        return cls.__init__.__module__.partition(".")[0] != __name__.partition(".")[0]

    @classmethod
    def _constructor_parameters(cls) -> list[inspect.Parameter]:
        """The constructor's parameters, and where it takes any further ones, those of its base."""
        found = {}
        for base in cls.__mro__:
            if issubclass(base, Pretrained) and "__init__" in vars(base):
                named, takes_any = _parameters_of(base)
                found |= {p.name: p for p in named if p.name not in found}
                if not takes_any:
                    break
        preset = () if cls._has_own_constructor() else cls.preset_arguments
        return [p for name, p in found.items() if name not in preset]

    @property
    def config(self) -> dict:
        """All the constructor's arguments as JSON values, with today's defaults.

        Raises:
            ValueError: if an argument is no such value.
        """
        own = self._has_own_constructor()
        parameters = _parameters_of(type(self))[0] if own else self._constructor_parameters()
        config = {p.name: p.default for p in parameters if p.default is not p.empty}
        config |= self._arguments | ({} if own else self._resolved_arguments())
        for name, value in config.items():
            try:
                config[name] = json.loads(json.dumps(value, default=_name_of_head))
            except TypeError as error:
                raise ValueError(
                    f"{type(self).__name__} cannot be saved, its argument {name} is no JSON value: "
                    f"{error}"
                ) from error
        return config

    def _resolved_arguments(self) -> dict:
        """Arguments that are dictionaries, with the defaults of what they are handed on to."""
        return {}

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / CONFIG_FILE).write_text(json.dumps(self.config, indent=2, sort_keys=True))
        self.generation.save(save_directory)
        super()._save_pretrained(save_directory)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: dict | None = None, **kwargs
    ) -> str | None:
        """Writes the model into a folder, as of `PyTorchModelHubMixin`.

        Args:
            model_card_kwargs: for the model card: a `title`; a `grid`, the file of a picture, which
                is copied into the folder; facts of the `training` and `metrics` by name; the names
                of the `classes`, which become `classes.json` too; `commands` that make the model;
                and the file of a `program` beside it. `push_to_hub` takes them too.
        """
        card, folder = dict(model_card_kwargs or {}), Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if card.get("grid") is not None:
            grid = Path(card["grid"])
            card["grid"] = f"samples{grid.suffix}"
            shutil.copyfile(grid, folder / card["grid"])
        if card.get("classes") is not None:
            (folder / CLASSES_FILE).write_text(json.dumps(card["classes"], indent=2))
        return super().save_pretrained(save_directory, model_card_kwargs=card, **kwargs)

    def generate_model_card(
        self,
        *,
        title: str | None = None,
        grid: str | None = None,
        training: dict[str, str] | None = None,
        metrics: dict[str, str] | None = None,
        classes: list[str] | None = None,
        commands: list[str] | None = None,
        program: str | None = None,
        **kwargs,
    ) -> ModelCard:
        """The card of `save_pretrained`: its `model_card_kwargs`, and what the model says."""
        tables = dict(Metrics=metrics, Sampling=sampling_facts(self), Training=training)
        tables["Classes, by label"] = dict(enumerate(map(in_table, classes or [])))
        is_onnx = program is not None and program.endswith(".onnx")
        return super().generate_model_card(
            title=title or type(self).__name__,
            grid=grid,
            tables=tables,
            commands=commands,
            versions=versions(),
            program=program,
            loop=loop_of(self) if is_onnx else None,
            class_name=type(self).__name__,
            labels=bool(self.config.get("num_classes")),
            parameters=f"{sum(p.numel() for p in self.parameters()):,}",
            config=json.dumps(self.config, indent=2, sort_keys=True),
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Loads a model, as of `PyTorchModelHubMixin`.

        Args:
            pretrained_model_name_or_path: the folder of a model or of a checkpoint; that of a run
                or of its checkpoints, of which the one with the lowest validation loss is taken,
                the newest if none has one; or a name on the Hugging Face Hub.
            kwargs: options of the Hub, and arguments of the constructor in place of saved ones.

        Raises:
            OSError: there is no such model.
            ValueError: it is a model of another class, or a file of it is damaged.
        """
        name, folder = pretrained_model_name_or_path, Path(pretrained_model_name_or_path)
        if folder.is_dir():
            model = super().from_pretrained(utf8_path(_model_folder(folder)), **kwargs)
            if (folder / GENERATION_FILE).exists():  # of a run: it has settings of its own
                model.generation = GenerationSettings.load(folder)
            return model
        if folder.exists():
            raise NotADirectoryError(f"{name} is a file: expected the folder of a model")
        if isinstance(name, Path):
            raise FileNotFoundError(f"the folder {name} does not exist")
        try:
            return super().from_pretrained(name, **kwargs)
        except HFValidationError as error:
            raise FileNotFoundError(f"the folder {name} does not exist") from error
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{name} is no folder here, and cannot be had from the Hugging Face Hub: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict | None = None, strict: bool = True, **kwargs
    ):
        if config is None:
            raise FileNotFoundError(
                f"{model_id} is no folder here, and no model of that name with a {CONFIG_FILE} can "
                "be had from the Hugging Face Hub"
            )
        known = inspect.signature(PyTorchModelHubMixin._from_pretrained).parameters
        options = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
        if misfit := cls._misfit(cls._upgraded(config)):
            others = _classes_that_fit(config)
            hint = f"it is loaded by {others[0].__name__}.from_pretrained" if others else misfit
            raise OtherClassError(f"the model in {model_id} is no {cls.__name__}: {hint}", others)
        try:
            # the mixin prints where it loads from, and by default ignores missing weights
            with contextlib.redirect_stdout(io.StringIO()):
                model = super()._from_pretrained(
                    model_id=model_id, strict=strict, **options, **cls._upgraded(kwargs)
                )
        except SafetensorError as error:
            raise ValueError(f"{WEIGHTS_FILE} of {model_id} is damaged: {error}") from error
        if Path(model_id).is_dir():
            model.generation = GenerationSettings.load(model_id)
        else:
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            try:
                download = {name: options[name] for name in names}
                file = hf_hub_download(model_id, GENERATION_FILE, **download)
                model.generation = GenerationSettings.load(Path(file).parent)
            except EntryNotFoundError as error:  # of a model without: it keeps the defaults
                offline = isinstance(error, LocalEntryNotFoundError)
                if offline and not options["local_files_only"]:
                    raise
        return model

    @classmethod
    def _upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a model that an earlier version has saved, as this one takes them."""
        return arguments

    @classmethod
    def _misfit(cls, arguments: dict[str, Any]) -> str | None:
        """Why the class cannot be made of a saved model's arguments; None where it can."""
        needed = known = cls._constructor_parameters()
        if cls._has_own_constructor():
            needed, takes_any = _parameters_of(cls)
            if needed and arguments and not any(p.name in arguments for p in needed):
                return f"it has no argument {needed[0].name!r}"
            if takes_any:
                return None
            # earlier versions saved the arguments of the bases beside them
            bases = (base for base in cls.__mro__ if issubclass(base, Pretrained))
            known = [p for base in bases for p in _parameters_of(base)[0]]
        names = {p.name for p in known}
        for name in arguments:
            if name not in names:
                return f"it has an argument {name!r}"
        for p in needed:
            if p.default is p.empty and p.name not in arguments:
                return f"it has no argument {p.name!r}"
        return None


def class_names(folder: str | Path) -> list[str] | None:
    """The names of a saved model's classes, by their labels; None where it has none.

    Raises:
        ValueError: `classes.json` holds something else than names.
    """
    file = Path(folder) / CLASSES_FILE
    try:
        names = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{file} must hold a list of names, got {names!r}")
    return names


def _parameters_of(cls: type) -> tuple[list[inspect.Parameter], bool]:
    """The named parameters of a class's constructor, and whether it takes any others too."""
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, len(named) < len(parameters)


def _classes_that_fit(config: dict[str, Any]) -> list[type[Pretrained]]:
    """The classes of this library that a saved model's arguments may be of."""
    presets = import_module(f"{__package__}.presets")  # by name: they build on this module
    classes = (cls for cls in vars(presets).values() if isinstance(cls, type))
    classes = (cls for cls in classes if issubclass(cls, Pretrained))
    return [cls for cls in classes if cls._misfit(cls._upgraded(config)) is None]


def _name_of_head(value: Any) -> str:
    """How JSON says a class of heads."""
    if isinstance(value, type) and issubclass(value, Head):
        return head_name(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _model_folder(folder: Path) -> Path:
    """The folder of a model: this one, or the best checkpoint of a run or of its checkpoints."""
    if (folder / WEIGHTS_FILE).exists():
        config = folder / CONFIG_FILE
        try:
            if isinstance(json.loads(config.read_text()), dict):
                return folder
            fault = "arguments by name are expected"
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds weights, but no {CONFIG_FILE} with the arguments of a model"
            ) from None
        except ValueError as error:
            fault = error
        raise ValueError(f"{config} is damaged: {fault}")
    best = best_checkpoint(folder) or best_checkpoint(folder / "checkpoints")
    if best is None:
        raise FileNotFoundError(
            f"{folder} holds no model ({CONFIG_FILE} and {WEIGHTS_FILE}), and no checkpoint of a "
            "training"
        )
    return _model_folder(best)


def _copied(value):
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def without_sampling_of_1_0(arguments: dict, head_argument: str) -> dict:
    """Arguments of a saved model, without those of the sampler that version 1.0.0 stored."""
    arguments = {name: value for name, value in arguments.items() if name != "context_guidance"}
    if not (head := dict(arguments.get(head_argument) or {})):
        return arguments
    if isinstance(head.get("num_sample_steps"), dict):
        clamp = bool(head["clamp_during_sampling"])
        head |= dict(num_sample_steps=None, clamp_during_sampling=clamp)
        head["solver"] = head["solver"] if head["solver"] in SOLVERS else None
    return arguments | {head_argument: head}
