"""Pages without a browser: their widgets, and their server."""

import base64
import re
import socket
import time

import numpy as np
import pytest
import torch

from autoregressive_diffusion_pytorch import AutoregressiveFlow, ImageAutoregressiveEnergy
from autoregressive_diffusion_pytorch.data.sequence_files import SequenceFormat
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings
from autoregressive_diffusion_pytorch.serving.served import Request, Served


def widgets_of(served):
    import gradio as gr

    from autoregressive_diffusion_pytorch.serving.options import Widgets

    with gr.Blocks() as page:
        return Widgets(served, page, 16, "Pictures")


def values_of(widgets, **changes):
    widgets_by_name = widgets.own | widgets.options
    return [changes.get(name, widget.value) for name, widget in widgets_by_name.items()]


def test_widgets_are_of_what_a_model_has(served, masked):
    assert widgets_of(served).own.keys() == {"labels", "count", "seed"}
    assert {"guidance_scale", "context_guidance", "num_steps", "solver"} <= widgets_of(
        served
    ).options.keys()
    # without labels, in any order, in one evaluation
    found = widgets_of(masked).options.keys()
    assert {"order", "num_iterations", "context_guidance"} <= found
    assert not {"guidance_scale", "num_steps", "solver"} & found


def test_what_is_left_as_it_is_is_not_passed_on(served):
    served.model().generation = GenerationSettings(temperature=0.9, num_steps=5)
    widgets = widgets_of(served)
    assert widgets.options["temperature"].value == 0.9
    assert widgets.options["num_steps"].value == 5
    request = widgets.request(values_of(widgets))
    assert (request.options, request.labels) == ({}, [0, 1, 2])
    request = widgets.request(values_of(widgets, labels=[1], temperature=1.0, seed=4.0))
    assert (request.options, request.labels, request.seed) == ({"temperature": 1.0}, [1], 4)
    request = widgets.request(values_of(widgets, low_sigma=0.5, guidance_scale=2))
    assert request.options["guidance_interval"] == (0.5, float("inf"))
    # without guidance there are no labels
    assert widgets.request(values_of(widgets, guidance_scale=0)).labels is None
    with pytest.raises(ValueError, match="seed must be a whole number, got none"):
        widgets.request(values_of(widgets, seed=None))


def test_all_options_can_be_drawn_with(served, masked):
    for model in (served, masked):
        widgets = widgets_of(model)
        changed = dict(temperature=0.5, guidance_scale=1.5, context_guidance=1.5, num_steps=2)
        changed |= dict(solver="euler", order="raster", num_iterations=3, low_sigma=0.1)
        changed |= dict(guidance_schedule="linear")
        request = widgets.request(values_of(widgets, count=3, **changed))
        *_, images = model.images(request)
        assert torch.isfinite(images).all()


def test_regions_are_painted_or_below_the_rows_to_keep(uploads):
    from autoregressive_diffusion_pytorch.serving.drawing import PAINTED, ROWS, _mask_of

    layer = np.zeros((64, 64, 4), dtype=np.uint8)
    layer[10, 20, 3] = 1
    touched = _mask_of(PAINTED, dict(layers=[None, layer]), 4, (8, 8))
    assert touched.nonzero().tolist() == [[1, 2]]
    below = _mask_of(ROWS, None, 6, (8, 8))
    assert below.sum(dim=1).tolist() == [0] * 6 + [8] * 2
    for nothing in (None, dict(layers=[np.zeros_like(layer)])):
        with pytest.raises(ValueError, match="nothing is painted yet"):
            _mask_of(PAINTED, nothing, 4, (8, 8))


def test_frames_show_some_pictures_and_the_last(uploads):
    from autoregressive_diffusion_pytorch.serving.drawing import frames

    assert list(frames(iter(range(5)), every=0)) == [*((i, False) for i in range(5)), (4, True)]
    assert list(frames(iter(range(5)), every=60)) == [(0, False), (4, True)]
    assert list(frames(iter(()))) == []

    def slow():
        for i in range(4):
            time.sleep(0.02)
            yield i

    assert [item for item, _ in frames(slow(), every=0.03)] == [0, 2, 3]


def test_tabs_are_of_what_a_model_can(served, masked):
    from autoregressive_diffusion_pytorch.serving.page import model_page

    def tabs(served):
        components = model_page(served).config["components"]
        return [one["props"]["label"] for one in components if one["type"] == "tabitem"]

    assert tabs(served) == ["Draw", "Complete", "Surprise"]
    sizes = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
    energy = ImageAutoregressiveEnergy(image_size=8, patch_size=4, model=sizes).eval()
    assert tabs(Served("energy", lambda step: energy)) == ["Draw", "Complete"]
    assert tabs(masked) == ["Draw", "Complete"]


def test_ports(uploads):
    from autoregressive_diffusion_pytorch.serving.server import free_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"host 127.0.0.1 with port {port} cannot be served"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", None) >= 7860
    with pytest.raises(OSError, match=r"host 192\.0\.2\.1 with a port from 7860 on"):
        free_port("192.0.2.1", None)


def test_audio_can_be_heard(uploads):
    from autoregressive_diffusion_pytorch.serving.sequences import growing_plots

    model = AutoregressiveFlow(16, dim_input=40, max_seq_len=3, depth=1, heads=2, dim_head=8).eval()
    kind = SequenceFormat(".wav", frame=40, sample_rate=8000)
    *_, shown = growing_plots(Served("voices", lambda step: model, format=kind), Request(2))
    heard = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"', shown)
    assert [base64.b64decode(data)[:4] for data in heard] == [b"RIFF"] * 2
    assert "Download files" in shown
