"""What gradio reads before it is imported: nothing is sent, uploads lie in a folder that ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def gradio_environment() -> Iterator[None]:
    """Inside, gradio may be imported; uploads are gone after it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if find_spec("gradio") is None:
        raise ModuleNotFoundError(
            "a page needs gradio: pip install 'autoregressive-diffusion-pytorch[serve]'"
        )
    with tempfile.TemporaryDirectory(prefix="ardiff-") as uploads:
        own = dict(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads)
        before = {name: os.environ.pop(name, None) for name in own}
        os.environ |= own
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
