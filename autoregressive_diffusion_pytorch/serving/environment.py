"""What gradio reads before it is imported: nothing is sent, uploads lie in a folder that ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gradio_environment() -> Iterator[None]:
    """Inside, gradio may be imported; uploads are gone after it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="ardiff-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        try:
            import gradio  # noqa: F401 - asks whether it is there
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a page needs gradio: pip install 'autoregressive-diffusion-pytorch[serve]'"
            ) from error
        yield
