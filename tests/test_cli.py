import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from command_line import TINY, failed, succeeded
from huggingface_hub import ModelCard
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer
from autoregressive_diffusion_pytorch.checkpoints import best_checkpoint, newest_checkpoint, read_manifest
from autoregressive_diffusion_pytorch.cli import SIZES, main
from autoregressive_diffusion_pytorch.modes import best_precision
from autoregressive_diffusion_pytorch.run_folder import read_config


@pytest.fixture
def flowers(tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 16), (40 * i, 250 - 40 * i, 9)).save(folder / f"{i}.jpg")
    return folder


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_trains_on_the_digits_and_samples(call, tmp_path, head):
    result = succeeded(call("train", *TINY, "--head", head))
    assert result.stdout == "runs/digits/samples/results.2.png\n"
    assert sorted(path.name for path in (tmp_path / "runs/digits").iterdir()) == ["checkpoints", "config.json", "logs", "samples"]

    result = succeeded(call("sample", "runs/digits", "--count", 5, "--batch-size", 2, "--steps", 2, "--files", "files"))
    assert result.stdout.splitlines() == ["runs/digits/samples/sample.0.png", "files: 5 files"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [f"0000{i}.png" for i in range(5)]
    assert Image.open("files/00000.png").size == (8, 8)
    # three in a row, each enlarged to 48 pixels
    assert Image.open("runs/digits/samples/sample.0.png").size == (3 * 50 + 2, 2 * 50 + 2)


def test_samples_follow_the_seed_and_the_checkpoint(call):
    succeeded(call("train", *TINY, "--checkpoint-every", 1))
    pixels = []
    for options in (("--seed", 1), ("--seed", 1), ("--seed", 2), ("--seed", 1, "--checkpoint", 1)):
        succeeded(call("sample", "runs/digits", "--count", 4, "--steps", 2, "--output", "grid.png", *options))
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
    assert (seen["solver"], seen["num_steps"], seen["compile"], seen["precision"]) == (None, None, False, best_precision())
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
    assert (seen["solver"], seen["num_steps"], seen["compile"], seen["precision"]) == ("heun", 3, True, "bf16")
    assert seen["temperature"] == 0.5


def test_samples_in_bf16(call, tmp_path):
    succeeded(call("train", *TINY))
    succeeded(call("sample", "runs/digits", "--count", 2, "--precision", "bf16", "--output", "grid.png"))
    assert (tmp_path / "grid.png").exists()


def test_an_unknown_solver_is_told(call):
    succeeded(call("train", *TINY))
    assert "solver must be one of 'dpmpp_2m'" in failed(call("sample", "runs/digits", "--solver", "rk4"))


def test_trains_on_a_folder(call, flowers, tmp_path):
    succeeded(call("train", flowers, *TINY, "--image-size", 8, "--patch-size", 4, "--flip", "--run", "my/run"))
    config = json.loads((tmp_path / "my/run/config.json").read_text())
    assert config["source"] == str(flowers)
    assert config["dataset"] == dict(
        labels_from_folders=False, augment_horizontal_flip=True, cache_in_memory=False, skip_damaged=False
    )
    assert config["classes"] is None
    assert config["model"]["model"]["flow_kwargs"] == dict(num_noise_draws=1)
    succeeded(call("sample", "my/run", "--count", 1, "--steps", 1))


SMALLEST = ("--image-size", 8, "--patch-size", 4, "--batch-size", 2, "--steps", 1, "--sample-every", 9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), dict(dim=256, depth=6, heads=4, mlp_width=384, mlp_depth=3, learning_rate=1e-3)),
        (("--size", "tiny"), dict(dim=128, depth=4, heads=4, mlp_width=128, mlp_depth=3, learning_rate=2e-3)),
        (
            ("--size", "tiny", "--depth", 1, "--learning-rate", 0.1),
            dict(dim=128, depth=1, heads=4, mlp_width=128, mlp_depth=3, learning_rate=0.1),
        ),
    ],
)
def test_a_size_is_a_width_a_depth_and_all_that_goes_with_them(call, flowers, tmp_path, options, expected):
    succeeded(call("train", flowers, *SMALLEST, *options, "--run", "run"))
    config = json.loads((tmp_path / "run/config.json").read_text())
    given = config["model"]["model"] | config["trainer"]
    assert {name: given[name] for name in expected} == expected


def test_each_size_is_larger_than_the_one_before():
    sizes = list(SIZES.values())
    for smaller, larger in pairwise(sizes):
        assert all(smaller[name] <= larger[name] for name in ("dim", "depth", "heads", "mlp_width", "mlp_depth"))
        assert smaller["learning_rate"] > larger["learning_rate"]


@pytest.fixture
def labelled(call, flowers):
    """A run on flowers of three classes, and their folder."""
    for i, name in enumerate(("daisy", "rose", "tulip")):
        (flowers / name).mkdir()
        for j in range(2):
            (flowers / f"{2 * i + j}.jpg").rename(flowers / name / f"{j}.jpg")
    succeeded(call("train", flowers, *TINY, "--labels", "--image-size", 8, "--patch-size", 4, "--run", "run"))
    return flowers


@pytest.fixture
def drawn(monkeypatch):
    """What the model is asked to draw."""
    calls = []
    for name in ("sample", "complete"):
        method = getattr(ImageAutoregressiveFlow, name)

        def record(model, *args, method=method, **kwargs):
            calls.append(kwargs)
            return method(model, *args, **kwargs)

        monkeypatch.setattr(ImageAutoregressiveFlow, name, record)
    return calls


def test_digits_with_labels(call, tmp_path):
    succeeded(call("train", *TINY, "--labels"))
    assert json.loads((tmp_path / "runs/digits/config.json").read_text())["classes"] == list("0123456789")
    result = succeeded(call("sample", "runs/digits", "--count", 12, "--files", "files"))
    assert result.stdout.splitlines()[-1] == "files: 20 files"  # two of each
    grids = [Image.open(tmp_path / "runs/digits/samples" / name) for name in ("results.2.png", "sample.0.png")]
    assert grids[0].height == 10 * 50 + 2  # a row a class
    assert grids[1].height == 10 * 50 + 2
    assert grids[1].width > 2 * 50 + 2


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
    options = ["--guidance", 2, "--guidance-schedule", "linear", "--guidance-interval", 0.1, 5, "--temperature", 0.9]
    options += ["--context-guidance", 1.25]
    succeeded(call("sample", "run", "--count", 3, *options))
    (seen,) = drawn
    assert seen["guidance_schedule"] == "linear"
    assert seen["guidance_interval"] == (0.1, 5)
    assert seen["context_guidance"] == 1.25
    assert seen["temperature"] == 0.9
    assert "guidance_interval must be two noise levels" in failed(call("sample", "run", "--guidance-interval", 5, 1))


def test_a_run_from_before_there_were_labels_goes_on(call, tmp_path):
    succeeded(call("train", *TINY))
    file = tmp_path / "runs/digits/config.json"
    config = json.loads(file.read_text())
    del config["classes"], config["model"]["num_classes"], config["dataset"]["labels_from_folders"]
    file.write_text(json.dumps(config))
    succeeded(call("sample", "runs/digits", "--count", 1))
    succeeded(call("resume", "runs/digits", "--steps", 3))


def test_the_same_classes_are_asked_for_when_a_run_goes_on(call, labelled):
    succeeded(call("resume", "run", "--steps", 3))
    (labelled / "rose").rename(labelled / "violet")
    message = "has other classes than when the run was started: daisy, tulip, violet instead of daisy, rose, tulip"
    assert message in failed(call("resume", "run", "--steps", 4))


def test_completes_an_image(call, tmp_path, drawn):
    succeeded(call("train", *TINY))
    (tmp_path / "mine").mkdir()
    image = Image.effect_noise((8, 8), 100)
    image.save(tmp_path / "mine" / "digit.png")
    result = succeeded(
        call("complete", "runs/digits", "mine/digit.png", "--keep-rows", 4, "--count", 3, "--seed", 7, "--files", "files")
    )
    assert result.stdout.splitlines() == ["runs/digits/samples/complete.digit.7.png", "files: 3 files"]
    completions = [Image.open(tmp_path / "files" / f"0000{i}.png") for i in range(3)]
    for completion in completions:
        assert completion.crop((0, 0, 8, 4)).tobytes() == image.crop((0, 0, 8, 4)).tobytes()
    assert completions[0].tobytes() != completions[1].tobytes()
    drawn.clear()
    succeeded(call("complete", "runs/digits", "mine/digit.png", "--keep-rows", 4, "--count", 3, "--batch-size", 2))
    assert [seen["num_completions"] for seen in drawn] == [2, 1]


def test_completes_an_image_for_each_label(call, labelled, drawn, tmp_path):
    succeeded(call("complete", "run", labelled / "rose" / "0.jpg", "--keep-rows", 4, "--count", 2, "--output", "grid.png"))
    assert [(seen["labels"], seen["num_completions"]) for seen in drawn] == [(0, 2), (1, 2), (2, 2)]
    assert Image.open(tmp_path / "grid.png").height == 3 * 50 + 2
    drawn.clear()
    succeeded(call("complete", "run", labelled / "rose" / "0.jpg", "--keep-rows", 4, "--label", "rose", "--guidance", 2))
    assert [(seen["labels"], seen["num_completions"], seen["guidance_scale"]) for seen in drawn] == [(1, 8, 2)]


def test_labels_and_completions_that_cannot_be(call, labelled, tmp_path):
    assert "'lily' is none of daisy, rose, tulip, nor the number of one" in failed(call("sample", "run", "--label", "lily"))
    assert "'3' is none of" in failed(call("sample", "run", "--label", 3))
    assert "--guidance 0 draws without labels" in failed(call("sample", "run", "--label", "rose", "--guidance", 0))
    image = labelled / "rose" / "0.jpg"
    assert "keep_rows must be a multiple of the patch height 4" in failed(call("complete", "run", image, "--keep-rows", 3))
    image.write_bytes(b"nothing")
    assert "0.jpg cannot be read as an image" in failed(call("complete", "run", image, "--keep-rows", 4))
    succeeded(call("train", *TINY))
    assert "the run has no labels" in failed(call("sample", "runs/digits", "--label", "3"))
    assert "guidance_scale other than 1 needs" in failed(call("sample", "runs/digits", "--guidance", 2))


def test_each_training_has_a_folder_of_its_own(call, tmp_path):
    for _ in range(3):
        succeeded(call("train", *TINY))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits", "digits-2", "digits-3"]


def test_what_a_run_of_before_context_guidance_did_not_name(call, tmp_path):
    succeeded(call("train", *TINY))
    file = tmp_path / "runs/digits/config.json"
    config = json.loads(file.read_text())
    assert config["model"]["model"].pop("context_drop_prob") == 0.1
    file.write_text(json.dumps(config))
    assert read_config(tmp_path / "runs/digits")["model"]["model"]["context_drop_prob"] == 0


def test_resumes_a_run(call, tmp_path):
    succeeded(call("train", *TINY))
    assert "ardiff resume runs/digits" in failed(call("train", *TINY, "--run", "runs/digits"))
    succeeded(call("resume", "runs/digits", "--steps", 3))
    assert sorted(path.name for path in (tmp_path / "runs/digits/checkpoints").iterdir()) == ["checkpoint.2", "checkpoint.3"]
    assert "is at step 3 of 3: --steps asks for more" in failed(call("resume", "runs/digits", "--minutes", 1))


def test_a_run_within_its_images_is_refused(call, flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    assert "its samples would be trained on" in failed(call("train", ".", *TINY, "--image-size", 8, "--patch-size", 4))


@pytest.mark.parametrize(("precision", "expected"), [("no", "no"), ("bf16", "bf16"), ("auto", best_precision())])
def test_precision(call, monkeypatch, precision, expected):
    seen = []
    monkeypatch.setattr(ImageTrainer, "__call__", lambda trainer: seen.append(trainer.accelerator.mixed_precision))
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "nowhere does not exist"),
        (["train", "digits", "--image-size", "16"], "the digits are grey images of 8 x 8 pixels"),
        (["train", "digits", "--patch-size", "3"], "patch_size 3 does not divide image_size 8"),
        (["train", "digits", "--head", "gan"], "'gan' is not one of 'diffusion', 'flow'"),
        (["train", "digits", "--steps", "0"], "0 is not in the range x>=1"),
        (["train", "--seed", "-1"], "-1 is not in the range"),
        (["train", ".", "--labels", "--run", "../elsewhere"], "holds no image"),
        (["sample", "nowhere"], "'nowhere' does not exist"),
        (["complete", ".", "nowhere.png", "--keep-rows", "8"], "'nowhere.png' does not exist"),
        (["sample", "."], "holds no config.json: it is not the folder of a run"),
        (["resume", "."], "holds no config.json: it is not the folder of a run"),
    ],
)
def test_bad_arguments_are_told_in_a_line(call, tmp_path, arguments, message):
    assert message in failed(call(*arguments))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_missing_checkpoint_is_told(call):
    succeeded(call("train", *TINY))
    assert "grid.jpg must end in .png" in failed(call("sample", "runs/digits", "--output", "grid.jpg"))
    assert "holds no checkpoint of step 7" in failed(call("sample", "runs/digits", "--checkpoint", 7))


def test_a_damaged_image_is_named_or_left_out(call, flowers):
    (flowers / "3.jpg").write_bytes(b"nothing")
    sizes = ["--image-size", 8, "--patch-size", 4]
    assert "3.jpg cannot be read as an image" in failed(call("train", flowers, *TINY, *sizes, "--batch-size", 6))
    with pytest.warns(UserWarning, match="1 of 6 image files are left out"):
        succeeded(call("train", flowers, *TINY, *sizes, "--skip-damaged"))


@pytest.mark.parametrize("command", [[], ["train"], ["resume"], ["sample"], ["complete"], ["evaluate"], ["tune"], ["export"]])
def test_help_comes_fast_and_explains_every_option(command):
    code = (
        "import sys; from autoregressive_diffusion_pytorch.cli import main\n"
        f"try: main({[*command, '--help']})\n"
        "finally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in result.stdout
    for parameter in main.commands[command[0]].params if command else []:
        assert parameter.param_type_name == "argument" or parameter.help


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
        *("--cache", "--gradient-checkpointing", "--keep-last", 7, "--seed", 5, "--log-with", "tensorboard"),
    )
    succeeded(call("train", flowers, *few, *sizes, *options, "--run", "run"))
    expected = dict(
        num_train_steps=None, num_epochs=2, max_grad_norm=0.5, nonfinite="skip", gradient_checkpointing=True, keep_last=7
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
    assert "leaves none of 6 images to train on" in failed(call("train", flowers, *TINY, *sizes, "--hold-out", 0.9))

    held_out = seen["validation_dataset"].indices
    succeeded(call("resume", "run", "--steps", 3, "--learning-rate", 0.5, "--nonfinite", "stop"))
    assert seen["validation_dataset"].indices == held_out
    assert (seen["num_train_steps"], seen["num_epochs"], seen["learning_rate"], seen["nonfinite"]) == (3, None, 0.5, "stop")


def test_a_signal_ends_with_how_to_go_on(call, monkeypatch):
    agree = ImageTrainer._agree

    def signalled(trainer, *args):
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrainer, "_agree", signalled)
        result = call("train", *TINY, "--steps", 4)
    assert result.exit_code == 143
    assert "stopped after step 2 and saved as runs/digits/checkpoints/checkpoint.2" in result.stderr
    assert result.stderr.strip().endswith("go on with: ardiff resume runs/digits")
    result = succeeded(call("resume", "runs/digits"))
    assert result.stdout == "runs/digits/samples/results.4.png\n"


def test_a_loss_that_is_not_finite_is_told_in_a_line(call, monkeypatch):
    monkeypatch.setattr(ImageAutoregressiveFlow, "forward", lambda model, images, **_: model.model.start_token.sum() * float("nan"))
    output = failed(call("train", *TINY))
    assert "not finite at step 1" in output
    assert "go on from the last checkpoint with: ardiff resume runs/digits" in output


def test_a_damaged_image_is_named_by_a_worker_too(call, flowers):
    (flowers / "0.jpg").write_bytes(b"no picture")
    output = failed(call("train", flowers, *TINY, "--image-size", 8, "--patch-size", 4, "--workers", 1))
    assert "flowers/0.jpg cannot be read as an image" in output
    assert "--skip-damaged leaves such files out" in output
    assert "Traceback" not in output


def test_damaged_checkpoints(call):
    succeeded(call("train", *TINY, "--checkpoint-every", 1))
    weights = "runs/digits/checkpoints/checkpoint.2/model.safetensors"
    with open(weights, "ab") as file:
        file.write(b"more")
    with pytest.warns(UserWarning, match="a damaged checkpoint is passed over: .*checkpoint.2/model.safetensors"):
        succeeded(call("sample", "runs/digits", "--count", 1))
    assert "model.safetensors holds" in failed(call("sample", "runs/digits", "--count", 1, "--checkpoint", 2))
    assert "no checkpoint of step 7" in failed(call("export", "runs/digits", "out", "--checkpoint", 7))


@pytest.mark.parametrize("labels", [(), ("--labels",)])
def test_exports_a_model_with_its_card(call, tmp_path, labels):
    succeeded(call("train", *TINY, *labels, "--hold-out", 0.01, "--checkpoint-every", 1))
    result = succeeded(call("export", "runs/digits", "out/model"))
    assert result.stdout == "out/model\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model"}
    files = {path.name for path in (tmp_path / "out/model").iterdir()}
    assert files == {"README.md", "config.json", "generation.json", "model.safetensors", "samples.png"}
    card = ModelCard.load("out/model/README.md")
    assert card.data.library_name == "autoregressive-diffusion-pytorch"
    assert "![samples](samples.png)" in card.text
    for fact in ("| images | digits |", "| steps | ", "| validation loss | ", "on 1.0% of the images", "ImageAutoregressiveFlow"):
        assert fact in card.text, fact
    assert ("| labels | 0, 1, 2" in card.text) == bool(labels)
    best = best_checkpoint("runs/digits/checkpoints")
    model, expected = (ImageAutoregressiveFlow.from_pretrained(folder) for folder in ("out/model", best))
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert "is not empty: name another one" in failed(call("export", "runs/digits", "out/model"))
    (tmp_path / "empty").mkdir()
    succeeded(call("export", "runs/digits", "empty", "--checkpoint", 1))


def test_two_processes_share_a_run_its_samples_and_its_evaluation(call, tmp_path, mean_network):
    environment = os.environ | dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def launch(*arguments):
        command = [*launcher, "-m", "autoregressive_diffusion_pytorch", "--", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    assert launch("train", *TINY, "--hold-out", 0.008) == "runs/digits/samples/results.2.png\n"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]
    options = ("sample", "runs/digits", "--count", 5, "--batch-size", 2, "--steps", 2, "--output")
    assert launch(*options, "two.png") == "two.png\n"
    succeeded(call(*options, "one.png"))
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "two.png").tobytes()

    options = ("evaluate", "runs/digits", "--features", mean_network, "--count", 11, "--batch-size", 4, "--steps", 1, "--output")
    assert launch(*options, "two.json").splitlines()[-1] == "two.json"
    succeeded(call(*options, "one.json"))
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads((tmp_path / "two.json").read_text())
