"""Saving and loading a model as its constructor's arguments and its weights."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..heads.solvers import SOLVERS
from .settings import GENERATION_FILE, GenerationSettings

MODEL_CARD = """---
{{ card_data }}
---

# {{ title }}
{% if grid %}
![samples]({{ grid }})
{% endif %}
Autoregression over continuous tokens, of {{ parameters }} parameters.

```python
# pip install autoregressive-diffusion-pytorch
from autoregressive_diffusion_pytorch import {{ class_name }}

model = {{ class_name }}.from_pretrained("path or name of this folder")

sampled = model.sample(batch_size=4)
```
{% if training %}
## Training

| | |
| --- | --- |
{%- for name, value in training.items() %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% endif %}
## Arguments of the model

```json
{{ config }}
```
"""


class Pretrained(
    PyTorchModelHubMixin,
    library_name="autoregressive-diffusion-pytorch",
    tags=["autoregressive", "diffusion", "rectified-flow"],
    model_card_template=MODEL_CARD,
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub.

    A model remembers the arguments it was made with. A saved one is `config.json`, which holds
    them, `generation.json`, its generation settings, `model.safetensors`, and `README.md`, a model
    card. Loading runs no code from the files.
    """

    generation: GenerationSettings

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls, *args, **kwargs)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        # a copy: the caller may use a dictionary of arguments again, changed, for the next model
        instance._arguments = _copied(dict(zip(names, args, strict=False)) | kwargs)
        return instance

    @property
    def config(self) -> dict:
        """All the constructor's arguments as JSON values, with today's defaults.

        Raises:
            ValueError: if an argument is no such value.
        """
        config = {}
        for base in reversed(type(self).__mro__):
            if issubclass(base, Pretrained) and "__init__" in vars(base):
                parameters = inspect.signature(base.__init__).parameters.values()
                config |= {p.name: p.default for p in parameters if p.default is not p.empty}
        config |= self._arguments | self._resolved_arguments()
        for name, value in config.items():
            try:
                config[name] = json.loads(json.dumps(value))
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
        (save_directory / "config.json").write_text(
            json.dumps(self.config, indent=2, sort_keys=True)
        )
        self.generation.save(save_directory)
        super()._save_pretrained(save_directory)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: dict | None = None, **kwargs
    ) -> str | None:
        """Writes the model into a folder, as of `PyTorchModelHubMixin`.

        Args:
            model_card_kwargs: for the model card: a `title`, facts of the `training` by name, and a
                `grid`, the file of a picture, which is copied into the folder. `push_to_hub` takes
                them too.
        """
        card = dict(model_card_kwargs or {})
        if card.get("grid") is not None:
            grid = Path(card["grid"])
            card["grid"] = f"samples{grid.suffix}"
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(grid, Path(save_directory) / card["grid"])
        return super().save_pretrained(save_directory, model_card_kwargs=card, **kwargs)

    def generate_model_card(
        self,
        *,
        title: str | None = None,
        grid: str | None = None,
        training: dict[str, str] | None = None,
        **kwargs,
    ) -> ModelCard:
        """The card of `save_pretrained`: its `model_card_kwargs`, and the model's arguments."""
        return super().generate_model_card(
            title=title or type(self).__name__,
            grid=grid,
            training=training,
            class_name=type(self).__name__,
            parameters=f"{sum(p.numel() for p in self.parameters()):,}",
            config=json.dumps(self.config, indent=2, sort_keys=True),
            **kwargs,
        )

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **kwargs):
        # the mixin prints where it loads from, and by default ignores missing weights
        with contextlib.redirect_stdout(io.StringIO()):
            model = super()._from_pretrained(model_id=model_id, strict=strict, **kwargs)
        if Path(model_id).is_dir():
            model.generation = GenerationSettings.load(model_id)
        else:
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            try:
                options = {name: kwargs[name] for name in names}
                file = hf_hub_download(model_id, GENERATION_FILE, **options)
                model.generation = GenerationSettings.load(Path(file).parent)
            except EntryNotFoundError as error:  # of a model without: it keeps the defaults
                offline = isinstance(error, LocalEntryNotFoundError)
                if offline and not kwargs["local_files_only"]:
                    raise
        return model


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
