import os

import pytest
from click.testing import CliRunner
from command_line import TINY, succeeded
from helpers import reset_accelerate

from autoregressive_diffusion_pytorch.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run that has ended, with a validation loss: not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "digits"
    every = ("--checkpoint-every", "2", "--sample-every", "2", "--steps", "4")
    options = (*TINY, *every, "--hold-out", "0.5", "--run", str(folder))
    before = os.environ.get("ACCELERATE_USE_CPU")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        succeeded(CliRunner().invoke(main, ["train", "digits", *options]))
    finally:
        os.environ.pop("ACCELERATE_USE_CPU")
        if before is not None:
            os.environ["ACCELERATE_USE_CPU"] = before
        reset_accelerate()
    return folder
