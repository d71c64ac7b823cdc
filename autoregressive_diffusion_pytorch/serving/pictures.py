"""What a page shows, as HTML with its data inside: the server writes no files."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data.sequence_files import SequenceFormat

SETTINGS = "settings"  # the text of a PNG that tells how it was drawn


def png_bytes(picture: Image.Image, settings: dict[str, Any] | None = None) -> bytes:
    """A picture as a PNG file, with settings as the JSON of a text in it."""
    info, buffer = PngInfo(), io.BytesIO()
    if settings is not None:
        info.add_itxt("Software", "autoregressive-diffusion-pytorch")
        info.add_itxt(SETTINGS, json.dumps(settings, ensure_ascii=False))
    picture.save(buffer, format="png", pnginfo=info, compress_level=1)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_html(data: bytes, caption: str, links: Sequence[str] = (), kind: str = "grid") -> str:
    """A picture of PNG data, with a caption and links below.

    Args:
        kind: "grid" of images, whose pixels stay sharp, or "chart".
    """
    below = " ".join((f"<span>{escape(caption)}</span>", *links))
    image = f'<img alt="{escape(caption)}" src="{data_uri(data)}">'
    return f'<figure class="{kind}">{image}<figcaption>{below}</figcaption></figure>'


def download_link(data: bytes, name: str, text: str, kind: str = "image/png") -> str:
    uri = data_uri(data, kind)
    return f'<a class="download" download="{escape(name)}" href="{uri}">{escape(text)}</a>'


def table_html(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    lines = (line(head, "th"), *(line(row, "td") for row in rows))
    return f'<div class="scrolls"><table>{"".join(lines)}</table></div>'


def zip_of_images(images: Tensor, settings: dict[str, Any]) -> bytes:
    """Images (b c h w) in [0, 1] as PNG files by their numbers, each with its settings."""
    files = {}
    for i, image in enumerate(images.float()):
        picture = to_pil_image(image.mul(255).round().byte())
        files[f"{i:05}.png"] = png_bytes(picture, settings | dict(image=i))
    return _zipped(files)


def zip_of_sequences(seqs: Sequence[Tensor], kind: SequenceFormat) -> bytes:
    """Sequences (n d) as files of a run's kind."""
    return _zipped({f"{i}{kind.ending}": file_of(seq, kind) for i, seq in enumerate(seqs)})


def file_of(seq: Tensor, kind: SequenceFormat) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"sequence{kind.ending}"
        kind.write(seq, file)
        return file.read_bytes()


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
