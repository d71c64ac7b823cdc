"""`ardiff serve` and `ardiff watch`, as processes of their own."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, failed, succeeded
from PIL import Image

COMMAND = [sys.executable, "-W", "ignore", "-m", "autoregressive_diffusion_pytorch"]


@pytest.fixture
def start(tmp_path):
    """Starts a command that serves a page; gives the process and the page's address."""
    pytest.importorskip("gradio", reason="pages need gradio")
    processes = []

    def start(*arguments):
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        environment = os.environ | dict(ACCELERATE_USE_CPU="true", TMPDIR=str(temporary))
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, **pipes)
        processes.append(process)
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (line, process.stderr.read())
        return process, line.split()[0]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
def test_a_served_run_draws_and_ends_at_a_signal_in_the_midst(start, trained, tmp_path):
    from gradio_client import Client

    process, url = start("serve", trained, "--precision", "no")
    client = Client(url, verbose=False, analytics_enabled=False)
    # pictures, seed, checkpoint, context guidance, temperature, steps, solver, guidance's target
    settings = [0, 1.0, 1.0, 64, "heun", "tokens"]
    assert "data:image/png" in client.predict(4, 3, *settings, api_name="/draw")
    long = client.submit(64, 3, *settings, api_name="/draw")
    assert "data:image/png" in next(iter(long))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture
def served_page(monkeypatch):
    """The page that a command would serve."""
    pytest.importorskip("gradio", reason="pages need gradio")
    from autoregressive_diffusion_pytorch.serving import server

    pages = []
    monkeypatch.setattr(server, "serve", lambda page, *where: pages.append(page))
    return pages


def test_models_are_served_and_runs_watched(served_page, trained, call, tmp_path):
    succeeded(call("export", trained, tmp_path / "model"))
    succeeded(call("serve", tmp_path / "model"))
    succeeded(call("serve", trained, "--checkpoint", 2))
    succeeded(call("watch", trained))
    tabs = [
        [one["props"]["label"] for one in page.config["components"] if one["type"] == "tabitem"]
        for page in served_page
    ]
    drawn = ["Draw", "Complete", "Surprise"]
    assert tabs == [drawn, [*drawn, "Training"], []]


def test_the_command_below_a_picture_draws_it_again(labelled, call, tmp_path):
    pytest.importorskip("gradio", reason="pages need gradio")
    from autoregressive_diffusion_pytorch.cli.serve import served_run
    from autoregressive_diffusion_pytorch.data.image_grids import image_grid
    from autoregressive_diffusion_pytorch.serving.served import Request

    served = served_run(Path("run"), None, "no")
    options = dict(temperature=0.8, guidance_scale=2.0, guidance_interval=(0.5, math.inf))
    request = Request(4, seed=5, labels=[2, 0], step=2, options=options)
    *_, images = served.images(request)
    words = shlex.split(served.command(request))
    succeeded(call(*words[1:], "--precision", "no", "--output", "again.png"))
    again = np.asarray(Image.open(tmp_path / "again.png"), dtype=int)
    expected = np.asarray(image_grid(images, 2, ["tulip", "daisy"]), dtype=int)
    assert abs(again - expected).max() <= 1  # of 255: the command draws in batches of its own


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_not_utf8(labelled, served_page, call, tmp_path):
    from autoregressive_diffusion_pytorch.cli.serve import served_run
    from autoregressive_diffusion_pytorch.serving.served import Request

    run = Path(os.fsdecode(b"r\xe4n"))
    Path("run").rename(run)
    config = json.loads((run / "config.json").read_text())
    config["classes"][1] = os.fsdecode(b"caf\xe9")
    (run / "config.json").write_text(json.dumps(config))
    succeeded(call("serve", run))
    served = served_run(run, None, "no")
    assert (served.name, served.classes[1]) == (r"r\xe4n", r"caf\xe9")
    command = served.command(Request(1, labels=[1, 2]))
    assert command.endswith("--label 1 --label tulip")


def test_what_cannot_be_served_is_told(call, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="pages need gradio")
    from autoregressive_diffusion_pytorch.serving import environment

    assert "holds no config.json" in failed(call("watch", tmp_path))
    assert "does not exist" in failed(call("serve", tmp_path / "none"))
    (tmp_path / "checkpoints").mkdir()
    assert "holds no config.json" in failed(call("serve", tmp_path))
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    message = "pip install 'autoregressive-diffusion-pytorch[serve]'"
    assert message in failed(call("serve", tmp_path / "none"))


def test_a_training_shows_itself(trained, call, tmp_path, monkeypatch):
    from autoregressive_diffusion_pytorch.cli import options

    started = []

    class Process:
        def __init__(self, command, **pipes):
            started.append(command[1:])

        def terminate(self):
            started.append("terminate")

        def wait(self):
            started.append("wait")

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(options, "find_spec", lambda name: True)
    succeeded(call("train", "digits", *TINY, "--run", "run", "--serve"))
    watch = ["-m", "autoregressive_diffusion_pytorch", "watch", "run"]
    assert started == [watch, "terminate", "wait"]
    assert "serve" not in (tmp_path / "run" / "config.json").read_text()
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    output = failed(call("resume", "run", "--steps", "3", "--serve"))
    assert "--serve needs gradio: pip install 'autoregressive-diffusion-pytorch[serve]'" in output
