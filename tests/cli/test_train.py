import json
import os
import signal
import sys
from itertools import pairwise

import pytest
import torch
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer
from autoregressive_diffusion_pytorch.cli.train import SIZES
from autoregressive_diffusion_pytorch.utils.manifests import newest_checkpoint, read_manifest
from autoregressive_diffusion_pytorch.utils.modes import best_precision


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_trains_on_the_digits_and_samples(call, tmp_path, head):
    result = succeeded(call("train", *TINY, "--head", head))
    assert result.stdout == "runs/digits/samples/results.2.png\n"
    assert sorted(path.name for path in (tmp_path / "runs/digits").iterdir()) == [
        "checkpoints",
        "config.json",
        "logs",
        "progress.json",
        "samples",
    ]

    result = succeeded(
        call(
            "sample",
            "runs/digits",
            "--count",
            5,
            "--batch-size",
            2,
            "--steps",
            2,
            "--files",
            "files",
        )
    )
    assert result.stdout.splitlines() == ["runs/digits/samples/sample.0.png", "files: 5 files"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        f"0000{i}.png" for i in range(5)
    ]
    assert Image.open("files/00000.png").size == (8, 8)
    # three in a row, each enlarged to 48 pixels
    assert Image.open("runs/digits/samples/sample.0.png").size == (3 * 50 + 2, 2 * 50 + 2)


def test_trains_on_a_folder(call, flowers, tmp_path):
    succeeded(
        call(
            "train",
            flowers,
            *TINY,
            "--image-size",
            8,
            "--patch-size",
            4,
            "--flip",
            "--run",
            "my/run",
        )
    )
    config = json.loads((tmp_path / "my/run/config.json").read_text())
    assert config["source"] == str(flowers)
    assert config["dataset"] == dict(
        labels_from_folders=False,
        augment_horizontal_flip=True,
        cache_in_memory=False,
        skip_damaged=False,
        max_pixels=500_000_000,
    )
    assert config["classes"] is None
    assert config["model"]["model"]["flow_kwargs"] == dict(num_noise_draws=1)
    succeeded(call("sample", "my/run", "--count", 1, "--steps", 1))


SMALLEST = (
    "--image-size",
    8,
    "--patch-size",
    4,
    "--batch-size",
    2,
    "--steps",
    1,
    "--sample-every",
    9,
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), dict(dim=256, depth=6, heads=4, mlp_width=384, mlp_depth=3, learning_rate=1e-3)),
        (
            ("--size", "tiny"),
            dict(dim=128, depth=4, heads=4, mlp_width=128, mlp_depth=3, learning_rate=2e-3),
        ),
        (
            ("--size", "tiny", "--depth", 1, "--learning-rate", 0.1),
            dict(dim=128, depth=1, heads=4, mlp_width=128, mlp_depth=3, learning_rate=0.1),
        ),
    ],
)
def test_a_size_is_a_width_a_depth_and_all_that_goes_with_them(
    call, flowers, tmp_path, options, expected
):
    succeeded(call("train", flowers, *SMALLEST, *options, "--run", "run"))
    config = json.loads((tmp_path / "run/config.json").read_text())
    given = config["model"]["model"] | config["trainer"]
    assert {name: given[name] for name in expected} == expected


def test_each_size_is_larger_than_the_one_before():
    sizes = list(SIZES.values())
    for smaller, larger in pairwise(sizes):
        assert all(
            smaller[name] <= larger[name]
            for name in ("dim", "depth", "heads", "mlp_width", "mlp_depth")
        )
        assert smaller["learning_rate"] > larger["learning_rate"]


def test_digits_with_labels(call, tmp_path):
    succeeded(call("train", *TINY, "--labels"))
    assert json.loads((tmp_path / "runs/digits/config.json").read_text())["classes"] == list(
        "0123456789"
    )
    result = succeeded(call("sample", "runs/digits", "--count", 12, "--files", "files"))
    assert result.stdout.splitlines()[-1] == "files: 20 files"  # two of each
    grids = [
        Image.open(tmp_path / "runs/digits/samples" / name)
        for name in ("results.2.png", "sample.0.png")
    ]
    assert grids[0].height == 10 * 50 + 2  # a row a class
    assert grids[1].height == 10 * 50 + 2
    assert grids[1].width > 2 * 50 + 2


def test_each_training_has_a_folder_of_its_own(call, tmp_path):
    for _ in range(3):
        succeeded(call("train", *TINY))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "digits",
        "digits-2",
        "digits-3",
    ]


def test_a_run_within_its_images_is_refused(call, flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    assert "its samples would be trained on" in failed(
        call("train", ".", *TINY, "--image-size", 8, "--patch-size", 4)
    )


@pytest.mark.parametrize(
    ("precision", "expected"), [("no", "no"), ("bf16", "bf16"), ("auto", best_precision())]
)
def test_precision(call, monkeypatch, precision, expected):
    seen = []
    monkeypatch.setattr(
        ImageTrainer, "__call__", lambda trainer: seen.append(trainer.accelerator.mixed_precision)
    )
    succeeded(call("train", *TINY, "--precision", precision))
    assert seen == [expected]


def test_workers_read_the_images(call, flowers):
    succeeded(call("train", flowers, *TINY, "--image-size", 8, "--patch-size", 4, "--workers", 2))


def test_the_same_seed_trains_the_same_model(call, tmp_path):
    for seed in (0, 0, 1):
        succeeded(call("train", *TINY, "--seed", seed))
    weights = [
        (tmp_path / f"runs/{name}/checkpoints/checkpoint.2/model.safetensors").read_bytes()
        for name in ("digits", "digits-2", "digits-3")
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_a_damaged_image_is_named_or_left_out(call, flowers):
    (flowers / "3.jpg").write_bytes(b"nothing")
    sizes = ["--image-size", 8, "--patch-size", 4]
    assert "3.jpg is a text file, not an image" in failed(
        call("train", flowers, *TINY, *sizes, "--batch-size", 6)
    )
    with pytest.warns(UserWarning, match="1 of 6 image files are left out"):
        succeeded(call("train", flowers, *TINY, *sizes, "--skip-damaged"))


def test_options_reach_the_trainer(call, flowers, monkeypatch):
    seen = {}
    init = ImageTrainer.__init__

    def record(trainer, model, **kwargs):
        seen.update(kwargs)
        init(trainer, model, **kwargs)

    monkeypatch.setattr(ImageTrainer, "__init__", record)
    few = TINY[: TINY.index("--steps")]
    sizes = ("--image-size", 8, "--patch-size", 4)
    options = (
        *(
            "--epochs",
            2,
            "--accumulate",
            2,
            "--weight-decay",
            0.3,
            "--max-grad-norm",
            0.5,
            "--nonfinite",
            "skip",
            "--hold-out",
            0.3,
        ),
        *(
            "--cache",
            "--gradient-checkpointing",
            "--keep-last",
            7,
            "--seed",
            5,
            "--log-with",
            "tensorboard",
        ),
    )
    succeeded(call("train", flowers, *few, *sizes, *options, "--run", "run"))
    expected = dict(
        num_train_steps=None,
        num_epochs=2,
        max_grad_norm=0.5,
        nonfinite="skip",
        gradient_checkpointing=True,
        keep_last=7,
    )
    assert expected.items() <= seen.items()
    assert seen["adam_kwargs"] == dict(weight_decay=0.3)
    assert seen["seed"] == 5
    assert seen["accelerate_kwargs"]["gradient_accumulation_steps"] == 2
    assert (len(seen["dataset"]), len(seen["validation_dataset"])) == (4, 2)
    assert set(seen["dataset"].indices).isdisjoint(seen["validation_dataset"].indices)
    assert seen["dataset"].dataset._cache is not None
    assert read_manifest(newest_checkpoint("run/checkpoints"))["validation_loss"] > 0
    assert "exclude each other" in failed(call("train", *TINY, "--epochs", 2))
    assert "leaves none of 6 images to train on" in failed(
        call("train", flowers, *TINY, *sizes, "--hold-out", 0.9)
    )

    held_out = seen["validation_dataset"].indices
    succeeded(call("resume", "run", "--steps", 3, "--learning-rate", 0.5, "--nonfinite", "stop"))
    assert seen["validation_dataset"].indices == held_out
    assert (
        seen["num_train_steps"],
        seen["num_epochs"],
        seen["learning_rate"],
        seen["nonfinite"],
    ) == (3, None, 0.5, "stop")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_how_to_go_on(call, monkeypatch, number, code):
    all_reduce = ImageTrainer._all_reduce

    def signalled(trainer, *args):
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return all_reduce(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrainer, "_all_reduce", signalled)
        result = call("train", *TINY, "--steps", 4)
    assert result.exit_code == code
    assert "stopped after step 2 and saved as runs/digits/checkpoints/checkpoint.2" in result.stderr
    assert result.stderr.strip().endswith("go on with: ardiff resume runs/digits")
    result = succeeded(call("resume", "runs/digits"))
    assert result.stdout == "runs/digits/samples/results.4.png\n"


def test_a_nonfinite_loss_is_reported_in_one_line(call, monkeypatch):
    monkeypatch.setattr(
        ImageAutoregressiveFlow,
        "forward",
        lambda model, images, **_: model.model.start_token.sum() * float("nan"),
    )
    output = failed(call("train", *TINY))
    assert "not finite at step 1" in output
    assert "go on from the last checkpoint with: ardiff resume runs/digits" in output


def test_a_damaged_image_is_named_by_a_worker_too(call, flowers):
    (flowers / "0.jpg").write_bytes(b"no picture")
    output = failed(
        call("train", flowers, *TINY, "--image-size", 8, "--patch-size", 4, "--workers", 1)
    )
    assert "flowers/0.jpg is a text file, not an image" in output
    assert "leave such files out with: ardiff resume runs/flowers --skip-damaged" in output
    assert "Traceback" not in output


def test_a_damaged_image_that_is_held_out_costs_no_training(call, flowers, tmp_path, caplog):
    held_out = torch.randperm(6, generator=torch.Generator().manual_seed(0))[4:].tolist()
    file = flowers / f"{held_out[1]}.jpg"
    file.write_bytes(file.read_bytes()[:200])
    sizes = ("--image-size", 8, "--patch-size", 4, "--hold-out", 0.3)
    succeeded(call("train", flowers, *TINY, *sizes, "--checkpoint-every", 1, "--run", "run"))
    for step in (1, 2):
        manifest = read_manifest(tmp_path / f"run/checkpoints/checkpoint.{step}")
        assert manifest["validation_loss"] is None
        message = f"the validation of step {step} failed, the training goes on without: {file}"
        assert message in caplog.text
    with pytest.warns(UserWarning, match="1 of 6 image files are left out"):
        succeeded(call("resume", "run", "--steps", 3, "--skip-damaged"))
    assert read_manifest(tmp_path / "run/checkpoints/checkpoint.3")["validation_loss"] > 0


def test_a_limit_of_pixels(call, flowers):
    sizes = ("--image-size", 8, "--patch-size", 4)
    output = failed(call("train", flowers, *TINY, *sizes, "--max-pixels", 319, "--run", "run"))
    assert "more pixels than the limit of 319: scale it down, or raise --max-pixels\n" in output
    succeeded(call("resume", "run", "--max-pixels", 320))


def test_images_held_out_are_not_mirrored(call, flowers, monkeypatch):
    seen = {}
    init = ImageTrainer.__init__

    def record(trainer, model, **kwargs):
        seen.update(kwargs)
        init(trainer, model, **kwargs)

    monkeypatch.setattr(ImageTrainer, "__init__", record)
    for path in flowers.iterdir():
        Image.linear_gradient("L").rotate(90).save(path)  # mirrored ones differ
    sizes = ("--image-size", 8, "--patch-size", 4, "--channels", 1, "--run", "run")
    succeeded(call("train", flowers, *TINY, *sizes, "--flip", "--hold-out", 0.3))
    train, held_out = seen["dataset"], seen["validation_dataset"]
    assert set(train.indices).isdisjoint(held_out.indices)
    for images, expected in ((held_out, 1), (train, 2)):
        assert len({tuple(images[i % 2].flatten().tolist()) for i in range(40)}) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_not_utf8(call, flowers, tmp_path):
    name, run = os.fsdecode(b"caf\xe9"), os.fsdecode(b"r\xe4n")
    sizes = ("--image-size", 8, "--patch-size", 4)
    for folder in (name, "猫"):
        (tmp_path / name / folder).mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(tmp_path / name / folder / "0.png")
    result = succeeded(call("train", name, *TINY, *sizes, "--labels"))
    assert result.stdout == "runs/caf\\xe9/samples/results.2.png\n"
    succeeded(call("train", name, *TINY, *sizes, "--labels", "--run", run))
    assert list((tmp_path / run / "logs" / "training").iterdir())
    result = succeeded(call("resume", run, "--steps", 3))
    assert os.fsdecode(result.stdout_bytes) == f"{run}/samples/results.3.png\n"
    succeeded(call("sample", run, "--label", name, "--count", 1, "--steps", 1))
    succeeded(call("export", run, "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert r"# r\xe4n: flow" in card
    assert r"| images | caf\xe9 |" in card
    assert "\n| 0 | caf\\xe9 |\n| 1 | 猫 |\n" in card
