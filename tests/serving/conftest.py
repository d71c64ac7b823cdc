"""A page that is served by a thread of the test, and a browser that looks at it."""

import os

import pytest
import torch
from browsing import BROWSER_ARGUMENTS, find_browser
from helpers import stir

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.models.presets import ImageMaskedAutoregressive

CLASSES = ["daisy", "rose", "tulip"]
SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
IMAGES = dict(image_size=8, patch_size=2, channels=3)


@pytest.fixture(scope="session")
def uploads(tmp_path_factory):
    """The folder of uploads; what gradio reads of the environment is set before it is imported."""
    folder = tmp_path_factory.mktemp("uploads")
    os.environ |= dict(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder))
    pytest.importorskip("gradio", reason="pages need gradio")
    return folder


def labelled_model():
    torch.manual_seed(0)
    return stir(ImageAutoregressiveFlow(**IMAGES, num_classes=3, model=SIZES)).eval()


def masked_model():
    torch.manual_seed(0)
    return stir(ImageMaskedAutoregressive(**IMAGES, model=SIZES | dict(head="energy"))).eval()


@pytest.fixture
def served(uploads):
    from autoregressive_diffusion_pytorch.serving.served import Served

    model = labelled_model()
    command = lambda request: f"draw --seed {request.seed}"  # noqa: E731
    return Served("flowers", lambda step: model, classes=CLASSES, command=command)


@pytest.fixture
def masked(uploads):
    from autoregressive_diffusion_pytorch.serving.served import Served

    model = masked_model()
    return Served("masked", lambda step: model)


@pytest.fixture(scope="module")
def browser(uploads):
    api = pytest.importorskip("playwright.sync_api", reason="a browser needs playwright")
    found = find_browser()
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()
