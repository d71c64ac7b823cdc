import sys

import pytest
import torch
from helpers import reset_accelerate
from PIL import Image

# the networks here are so small that a second thread costs more than it gives
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    if "accelerate" in sys.modules:
        reset_accelerate()


@pytest.fixture
def class_folders(tmp_path):
    """Images of two classes, one of them with a folder within."""
    for i, path in enumerate(("tulip/b.png", "rose/a.png", "rose/more/c.png", "tulip/a.png")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (60 * i, 0, 0)).save(tmp_path / path)
    return tmp_path
