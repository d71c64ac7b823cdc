"""The template of model cards, and the loop around a program."""

from __future__ import annotations

from importlib import metadata

import torch
from torch.nn import Module

from ..utils.text import printable

# what draws by a program, of which `sampling.json` says all that differs between models
LOOP = """# pip install numpy onnxruntime pillow
import json

import numpy as np
import onnxruntime
from PIL import Image

settings = json.load(open("sampling.json"))
session = onnxruntime.InferenceSession(settings["program"])
batch, rng = 4, np.random.default_rng(seed=0)

sizes = dict(batch=batch, count=settings["num_start"], length=0)
inputs = {
    name: np.full([sizes.get(axis, axis) for axis in of["shape"]], of["initial"], of["type"])
    for name, of in settings["inputs"].items()
}
if "labels" in inputs:
    inputs["labels"][:] = np.arange(batch) % settings["num_classes"]

tokens = []
for _ in range(settings["num_tokens"]):
    noise = settings["temperature"] * rng.standard_normal(inputs["noise"].shape)
    inputs["noise"] = noise.astype(np.float32)
    outputs = dict(zip(settings["outputs"], session.run(None, inputs)))
    inputs |= {name: outputs[f"next_{name}"] for name in settings["state"]}
    inputs["tokens"] = outputs["token"][:, None]
    tokens.append(outputs["token"])
tokens = np.stack(tokens, axis=1)
"""
OF_SEQUENCES = LOOP.replace("from PIL import Image\n", "").replace(" pillow", "")
ENDS = """    ends.append(rng.random(batch) < outputs["end_probability"])
tokens, ends = np.stack(tokens, axis=1), np.stack(ends, axis=1)
ends[:, 0] = False  # at least one token
lens = np.where(ends.any(axis=1), ends.argmax(axis=1), settings["num_tokens"])
sequences = [seq[:length] for seq, length in zip(tokens, lens)]
"""
WITH_ENDS = OF_SEQUENCES.replace("tokens = []", "tokens, ends = [], []")
WITH_ENDS = WITH_ENDS.replace("tokens = np.stack(tokens, axis=1)\n", ENDS)
TO_IMAGES = """
of = settings["images"]
(rows, columns), (height, width), channels = of["grid"], of["patch_size"], of["channels"]
low, high = of["value_range"]
images = tokens.reshape(batch, rows, columns, channels, height, width)
images = images.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * height, columns * width, channels)
images = ((images - low) / (high - low)).clip(0, 1)
for i, image in enumerate(np.round(255 * images).astype(np.uint8)):
    Image.fromarray(image[:, :, 0] if channels == 1 else image).save(f"{i}.png")
"""

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

sampled = model.sample({% if labels %}labels=[0]{% else %}batch_size=4{% endif %})
```
{%- for heading, rows in tables.items() if rows %}

## {{ heading }}

| | |
| --- | --- |
{%- for name, value in rows.items() %}
| {{ name }} | {{ value }} |
{%- endfor %}
{%- endfor %}
{%- if commands %}

## Reproduce

Exported by {{ versions }}.

```bash
{%- for command in commands %}
{{ command }}
{%- endfor %}
```
{%- endif %}
{%- if program %}

## Program

`{{ program }}` is the sampling step, and `sampling.json` what the loop around it must know.
{%- if loop %} These lines draw with it, in this folder:

```python
{{ loop -}}
```
{%- else %} `torch.export.load("{{ program }}").module()` runs it.
{%- endif %}
{%- endif %}

## Arguments of the model

```json
{{ config }}
```
"""


def in_table(text: str) -> str:
    """A text as a cell of a table."""
    return printable(text).replace("|", "\\|")


def loop_of(model: Module) -> str:
    """The lines that draw with a model's program of ONNX."""
    if hasattr(model, "tokenizer"):
        return LOOP + TO_IMAGES
    return OF_SEQUENCES if model.end_head is None else WITH_ENDS


def sampling_facts(model: Module) -> dict[str, str]:
    """The defaults of a model's `sample`, those of its head too."""
    options = model.generation.with_given({}, model.head)
    options |= model.head.sampling_settings(**options)
    facts = {name.replace("_", " "): str(value) for name, value in options.items()}
    return facts | {"evaluations per token": str(model.head.num_evaluations(**options))}


def versions() -> str:
    """Those of this library and of torch."""
    try:
        own = metadata.version("autoregressive-diffusion-pytorch")
    except metadata.PackageNotFoundError:
        own = "of a checkout"  # that is not installed
    return f"autoregressive-diffusion-pytorch {own} and torch {torch.__version__}"
