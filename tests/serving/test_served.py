"""What is drawn for a page is what the commands draw."""

import io
import json
import zipfile
from itertools import pairwise

import pytest
import torch
from helpers import stir
from PIL import Image

from autoregressive_diffusion_pytorch import AutoregressiveFlow
from autoregressive_diffusion_pytorch.data.sequence_files import SequenceFormat
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images, draw_sequences
from autoregressive_diffusion_pytorch.serving.pictures import (
    png_bytes,
    zip_of_images,
    zip_of_sequences,
)
from autoregressive_diffusion_pytorch.serving.served import Request, Served

CLASSES = ["daisy", "rose", "tulip"]


def test_images_of_a_request_are_those_of_the_command(served):
    options = dict(temperature=0.9, guidance_scale=2.0)
    pictures = list(served.images(Request(5, seed=7, labels=[2, 0], options=options)))
    labels = torch.tensor([2, 2, 2, 0, 0, 0])
    expected = draw_images(served.model(), 6, batch_size=2, seed=7, labels=labels, **options)
    torch.testing.assert_close(pictures[-1], expected, rtol=1e-4, atol=1e-5)
    grey = [int((picture == 0.5).sum()) for picture in pictures]
    assert grey == sorted(grey, reverse=True)
    assert len(set(grey)) == len(pictures) == 16


def test_completions_of_each_class_have_their_own_noise(served):
    image = torch.rand(3, 8, 8)
    *_, both = served.completions(image, 4, Request(2, labels=[1, 2]))
    *_, one = served.completions(image, 4, Request(2, labels=[2]))
    torch.testing.assert_close(both[2:], one, rtol=1e-4, atol=1e-5)
    assert torch.equal(both[:, :, :4], image[:, :4].expand(4, -1, -1, -1))


def test_regions_are_filled(masked):
    image, mask = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, 2:6] = True
    *_, filled = masked.completions(image, mask, Request(3))
    assert filled.shape == (3, 3, 8, 8)
    assert torch.equal(filled[:, :, ~mask], image[:, ~mask].expand(3, -1, -1))


@pytest.fixture
def sequences():
    torch.manual_seed(0)
    sizes = dict(dim_input=2, max_seq_len=9, depth=1, heads=2, dim_head=8, mlp_depth=1)
    model = stir(AutoregressiveFlow(16, **sizes, num_classes=2, predict_end=True)).eval()
    return Served("notes", lambda step: model, ["low", "high"], SequenceFormat(".npy"))


def test_sequences_grow_to_those_of_the_command(sequences):
    steps = list(sequences.sequences(Request(4, seed=3, labels=[0, 1])))
    labels = torch.tensor([0, 0, 1, 1])
    expected = draw_sequences(sequences.model(), 4, batch_size=4, seed=3, labels=labels)
    for drawn, seq in zip(steps[-1], expected, strict=True):
        torch.testing.assert_close(drawn, seq, rtol=1e-4, atol=1e-5)
    for before, after in pairwise(steps):
        for short, long in zip(before, after, strict=True):
            assert torch.equal(long[: len(short)], short)
    prompt = torch.randn(3, 2)
    *_, continued = sequences.sequences(Request(2, labels=[1]), prompt)
    assert all(torch.equal(seq[:3], prompt) for seq in continued)
    with zipfile.ZipFile(io.BytesIO(zip_of_sequences(continued, sequences.format))) as archive:
        assert archive.namelist() == ["0.npy", "1.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=0), "count must be a whole number from 1 to 256, got 0"),
        (dict(count=1, seed=-1), "seed must be a whole number from 0 to 2147483647, got -1"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        Request(**arguments)


def test_too_much_at_once_is_refused(served):
    many = Request(200, labels=[0, 1])
    assert next(iter(served.images(many))).shape[0] == 200
    with pytest.raises(ValueError, match="count must be a whole number from 1 to 256, got 400"):
        served.completions(torch.rand(3, 8, 8), 4, many)


def test_the_last_checkpoints_stay_in_memory(served):
    loaded = []

    def load(step):
        loaded.append(step)
        return served.model()

    several = Served("flowers", load, CLASSES)
    for step in (10, 10, 20, 10, None):
        several.model(step)
    assert loaded == [None, 10, 20, None]


def test_files_tell_how_they_were_drawn():
    told = dict(seed=3, labels=["Rösle", "薔薇"], temperature=0.9)
    picture = Image.new("RGB", (3, 2), "red")
    read = Image.open(io.BytesIO(png_bytes(picture, told)))
    assert json.loads(read.text["settings"]) == told
    assert read.tobytes() == picture.tobytes()
    with zipfile.ZipFile(io.BytesIO(zip_of_images(torch.rand(2, 1, 4, 4), told))) as archive:
        assert archive.namelist() == ["00000.png", "00001.png"]
        one = Image.open(io.BytesIO(archive.read("00001.png")))
    assert json.loads(one.text["settings"]) == told | dict(image=1)
