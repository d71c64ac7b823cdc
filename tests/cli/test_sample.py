import pytest
import torch
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.utils.modes import best_precision


def test_samples_follow_the_seed_and_the_checkpoint(call):
    succeeded(call("train", *TINY, "--checkpoint-every", 1))
    pixels = []
    for options in (("--seed", 1), ("--seed", 1), ("--seed", 2), ("--seed", 1, "--checkpoint", 1)):
        succeeded(
            call(
                "sample",
                "runs/digits",
                "--count",
                4,
                "--steps",
                2,
                "--output",
                "grid.png",
                *options,
            )
        )
        pixels.append(Image.open("grid.png").tobytes())
    assert pixels[0] == pixels[1]
    assert pixels[0] != pixels[2]
    assert pixels[0] != pixels[3]


def test_sampling_options_reach_the_sampler(call, monkeypatch):
    succeeded(call("train", *TINY))
    seen = {}

    def sample(model, batch_size, **options):
        seen.update(options)
        return torch.zeros(batch_size, 1, 8, 8)

    monkeypatch.setattr(ImageAutoregressiveFlow, "sample", sample)
    succeeded(call("sample", "runs/digits", "--count", 1))
    assert (seen["solver"], seen["num_steps"], seen["compile"], seen["precision"]) == (
        None,
        None,
        False,
        best_precision(),
    )
    succeeded(
        call(
            "sample",
            "runs/digits",
            "--count",
            1,
            "--solver",
            "heun",
            "--steps",
            3,
            "--temperature",
            0.5,
            "--compile",
            "--precision",
            "bf16",
        )
    )
    assert (seen["solver"], seen["num_steps"], seen["compile"], seen["precision"]) == (
        "heun",
        3,
        True,
        "bf16",
    )
    assert seen["temperature"] == 0.5


def test_samples_in_other_precisions(call, tmp_path):
    succeeded(call("train", *TINY))
    pixels = []
    for precision in ("no", "bf16", "int8"):
        options = ("--precision", precision, "--output", "grid.png")
        succeeded(call("sample", "runs/digits", "--count", 2, *options))
        pixels.append(Image.open("grid.png").tobytes())
    assert len(set(pixels)) == 3


def test_an_unknown_solver_is_refused(call):
    succeeded(call("train", *TINY))
    assert "solver must be one of 'dpmpp_2m'" in failed(
        call("sample", "runs/digits", "--solver", "rk4")
    )


def test_labels_of_folders_by_name_and_number(call, labelled, drawn):
    for options, labels, guidance in (
        (["--label", "tulip", "--guidance", 3], [2, 2, 2, 2], 3),
        (["--label", "rose", "--label", 0], [1, 1, 0, 0], None),
        ([], [0, 0, 1, 1, 2, 2], None),
        (["--guidance", 0], None, 0),
        (["--guidance", 0, "--guidance-schedule", "linear"], [0, 0, 1, 1, 2, 2], 0),
    ):
        drawn.clear()
        succeeded(call("sample", "run", "--count", 4, "--steps", 1, *options))
        (seen,) = drawn
        assert (seen["labels"] if labels is None else seen["labels"].tolist()) == labels
        assert seen["guidance_scale"] == guidance


def test_guidance_options_reach_the_sampler(call, labelled, drawn):
    options = [
        "--guidance",
        2,
        "--guidance-schedule",
        "linear",
        "--guidance-interval",
        0.1,
        5,
        "--temperature",
        0.9,
    ]
    options += ["--context-guidance", 1.25]
    succeeded(call("sample", "run", "--count", 3, *options))
    (seen,) = drawn
    assert seen["guidance_schedule"] == "linear"
    assert seen["guidance_interval"] == (0.1, 5)
    assert seen["context_guidance"] == 1.25
    assert seen["temperature"] == 0.9
    assert "--guidance-interval must be two noise levels" in failed(
        call("sample", "run", "--guidance-interval", 5, 1)
    )


def test_a_missing_checkpoint_is_named(call):
    succeeded(call("train", *TINY))
    assert "grid.jpg must end in .png" in failed(
        call("sample", "runs/digits", "--output", "grid.jpg")
    )
    assert "holds no checkpoint of step 7" in failed(
        call("sample", "runs/digits", "--checkpoint", 7)
    )


def test_damaged_checkpoints(call):
    succeeded(call("train", *TINY, "--checkpoint-every", 1))
    weights = "runs/digits/checkpoints/checkpoint.2/model.safetensors"
    with open(weights, "ab") as file:
        file.write(b"more")
    with pytest.warns(
        UserWarning, match="a damaged checkpoint is passed over: .*checkpoint.2/model.safetensors"
    ):
        succeeded(call("sample", "runs/digits", "--count", 1))
    assert "model.safetensors holds" in failed(
        call("sample", "runs/digits", "--count", 1, "--checkpoint", 2)
    )
    assert "no checkpoint of step 7" in failed(
        call("export", "runs/digits", "out", "--checkpoint", 7)
    )


def pixels_of(folder):
    return {path.name: Image.open(path).tobytes() for path in folder.iterdir()}


def test_an_image_of_a_seed_can_be_drawn_again_alone(call, tmp_path):
    succeeded(call("train", *TINY))
    run = ("sample", "runs/digits", "--steps", 2, "--precision", "no")
    succeeded(call(*run, "--count", 6, "--files", "six"))
    succeeded(call(*run, "--count", 3, "--batch-size", 2, "--files", "three"))
    succeeded(call(*run, "--only", 5, "--only", 1, "--files", "two"))
    six, three, two = (pixels_of(tmp_path / name) for name in ("six", "three", "two"))
    assert three.keys() == {"00000.png", "00001.png", "00002.png"}
    assert two.keys() == {"00005.png", "00001.png"}
    for some in (three, two):
        assert some == {name: six[name] for name in some}


def test_with_labels_it_is_that_number_of_each_label(call, labelled, tmp_path):
    run = ("sample", "run", "--steps", 2, "--precision", "no")
    succeeded(call(*run, "--count", 9, "--files", "all"))
    succeeded(call(*run, "--only", 2, "--label", "rose", "--files", "one"))
    # a row per class, three columns
    assert pixels_of(tmp_path / "one")["00000.png"] == pixels_of(tmp_path / "all")["00005.png"]


def test_a_completion_of_a_seed_can_be_drawn_again_alone(call, tmp_path):
    succeeded(call("train", *TINY))
    succeeded(call("sample", "runs/digits", "--count", 1, "--files", "image"))
    options = ("image/00000.png", "--keep-rows", 4, "--steps", 2, "--precision", "no")
    succeeded(call("complete", "runs/digits", *options, "--count", 3, "--files", "three"))
    succeeded(call("complete", "runs/digits", *options, "--only", 2, "--files", "one"))
    three, one = (pixels_of(tmp_path / name) for name in ("three", "one"))
    assert one == {"00002.png": three["00002.png"]}
