import json
import shutil

import pytest
from command_line import TINY, failed, succeeded

from autoregressive_diffusion_pytorch import ImageTrainer
from autoregressive_diffusion_pytorch.cli.run import read_config
from autoregressive_diffusion_pytorch.utils.manifests import best_checkpoint, check_checkpoint


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
    message = (
        "has other classes than when the run was started: "
        "daisy, tulip, violet instead of daisy, rose, tulip"
    )
    assert message in failed(call("resume", "run", "--steps", 4))


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
    assert sorted(path.name for path in (tmp_path / "runs/digits/checkpoints").iterdir()) == [
        "checkpoint.2",
        "checkpoint.3",
    ]
    assert "is at step 3 of 3: --steps asks for more" in failed(
        call("resume", "runs/digits", "--minutes", 1)
    )


SIZES = ("--image-size", 8, "--patch-size", 4)


def test_a_run_without_a_checkpoint_starts_by_either_command(call, flowers, tmp_path):
    (flowers / "3.jpg").write_bytes(b"nothing")
    # the first batch holds all images
    start = ("train", flowers, *TINY, *SIZES, "--batch-size", 6, "--run", "run")
    output = failed(call(*start))
    assert "leave such files out with: ardiff resume run --skip-damaged" in output
    config = (tmp_path / "run/config.json").read_text()
    with pytest.warns(UserWarning, match="1 of 6 image files are left out"):
        succeeded(call("resume", "run", "--skip-damaged"))
    assert best_checkpoint(tmp_path / "run/checkpoints").name == "checkpoint.2"
    assert read_config(tmp_path / "run")["dataset"]["skip_damaged"] is True
    message = "already holds a run with checkpoint.2: `ardiff resume run` goes on with it"
    assert message in failed(call(*start))

    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(config)
    with pytest.warns(UserWarning, match="1 of 6 image files are left out"):
        succeeded(call(*start, "--skip-damaged", "--seed", 3))
    assert read_config(tmp_path / "run")["seed"] == 3


def test_a_run_started_by_resume_is_that_of_train(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "whole"))
    (tmp_path / "late").mkdir()
    (tmp_path / "late/config.json").write_text((tmp_path / "whole/config.json").read_text())
    succeeded(call("resume", "late"))
    weights = [
        (tmp_path / run / "checkpoints/checkpoint.2/online.safetensors").read_bytes()
        for run in ("whole", "late")
    ]
    assert weights[0] == weights[1]


def test_a_run_with_damaged_checkpoints_alone_starts_again(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "run"))
    (tmp_path / "run/checkpoints/checkpoint.2/training.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="a damaged checkpoint is passed over"):
        succeeded(call("resume", "run"))
    check_checkpoint(tmp_path / "run/checkpoints/checkpoint.2")


def test_images_that_were_moved(call, flowers, tmp_path):
    succeeded(call("train", flowers, *TINY, *SIZES, "--hold-out", 0.3, "--run", "run"))
    flowers.rename(tmp_path / "moved")
    for command in (("resume", "run", "--steps", 3), ("evaluate", "run"), ("tune", "run")):
        output = failed(call(*command))
        assert f"folder {flowers} of the run's images does not exist" in output
        assert "`ardiff resume RUN --source FOLDER` says where they are now" in output
    # it is remembered of a run that is at its end, too
    assert "is at step 2 of 2" in failed(call("resume", "run", "--source", "moved"))
    succeeded(call("resume", "run", "--steps", 3))
    assert read_config(tmp_path / "run")["source"] == str(tmp_path / "moved")
    output = failed(call("resume", "run", "--source", tmp_path, "--steps", 4))
    assert f"run lies in {tmp_path}" in output


def test_what_is_held_out_stays_when_a_file_is_left_out(call, flowers, tmp_path, monkeypatch):
    split = {}
    init = ImageTrainer.__init__

    def record(trainer, model, **kwargs):
        for name in ("dataset", "validation_dataset"):
            part = kwargs[name]
            split[name] = [part.dataset.paths[i].name for i in part.indices]
        init(trainer, model, **kwargs)

    monkeypatch.setattr(ImageTrainer, "__init__", record)
    succeeded(call("train", flowers, *TINY, *SIZES, "--hold-out", 0.3, "--run", "run"))
    before = dict(split)
    lost = before["dataset"][0]
    (flowers / lost).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="left out|the dataset holds 3 images, 4"):
        succeeded(call("resume", "run", "--skip-damaged", "--steps", 3))
    before["dataset"].remove(lost)
    assert split == before
    (flowers / lost).unlink()
    output = failed(call("resume", "run", "--steps", 4))
    assert "holds 5 images, 6 when the run was started: other ones would be held out" in output
    assert "`ardiff resume --hold-out 0.3` holds out some anew" in output
    succeeded(call("resume", "run", "--steps", 4, "--hold-out", 0.3))
    succeeded(call("resume", "run", "--steps", 5))


def test_options_that_can_change_are_remembered(call, flowers, tmp_path):
    succeeded(call("train", flowers, *TINY, *SIZES, "--run", "run"))
    options = (
        *("--steps", 4, "--batch-size", 3, "--accumulate", 2, "--workers", 1, "--cache"),
        *("--precision", "auto", "--sample-every", 3, "--checkpoint-every", 1, "--keep-last", 2),
        *("--lr-schedule", "cosine", "--max-grad-norm", 0.5, "--nonfinite", "skip", "--flip"),
        *("--weight-decay", 0.3, "--max-pixels", 10_000),
        *("--learning-rate", 0.01, "--log-with", "tensorboard", "--gradient-checkpointing"),
    )
    succeeded(call("resume", "run", *options))
    config = read_config(tmp_path / "run")
    assert (config["accumulate"], config["workers"], config["precision"]) == (2, 1, "auto")
    assert config["dataset"]["cache_in_memory"] is config["dataset"]["augment_horizontal_flip"]
    expected = dict(
        num_train_steps=4,
        num_epochs=None,
        batch_size=3,
        save_results_every=3,
        checkpoint_every=1,
        keep_last=2,
        lr_schedule="cosine",
        max_grad_norm=0.5,
        nonfinite="skip",
        learning_rate=0.01,
        gradient_checkpointing=True,
        adam_kwargs=dict(weight_decay=0.3),
    )
    assert config["dataset"]["max_pixels"] == 10_000
    assert expected.items() <= config["trainer"].items()
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "checkpoint.3",
        "checkpoint.4",
    ]
    succeeded(call("resume", "run", "--epochs", 6, "--no-gradient-checkpointing"))
    config = read_config(tmp_path / "run")["trainer"]
    assert (config["num_train_steps"], config["num_epochs"]) == (None, 6)
    assert config["gradient_checkpointing"] is False
    assert "--epochs: give --steps" in failed(call("resume", "run", "--batch-size", 2))
    succeeded(call("resume", "run", "--steps", 10))
    config = read_config(tmp_path / "run")
    assert config["dataset"]["cache_in_memory"] is config["dataset"]["augment_horizontal_flip"]
    assert config["dataset"]["cache_in_memory"] is True
    succeeded(call("resume", "run", "--steps", 11, "--no-cache", "--gradient-checkpointing"))
    assert read_config(tmp_path / "run")["dataset"]["cache_in_memory"] is False
    assert read_config(tmp_path / "run")["trainer"]["gradient_checkpointing"] is True
    assert "exclude each other" in failed(call("resume", "run", "--steps", 9, "--epochs", 9))


def test_a_grid_that_a_finished_run_lacks_is_drawn(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "run"))
    (tmp_path / "run/samples/results.2.png").unlink()
    assert succeeded(call("resume", "run")).stdout == "run/samples/results.2.png\n"
    assert "--steps asks for more" in failed(call("resume", "run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "run/config.json cannot be read: "),
        (lambda text: "[]", "run/config.json must hold keys and values, got []"),
        (lambda text: text.replace('"precision"', '"p"'), "run/config.json lacks the key 'prec"),
        (lambda text: text.replace('"channels"', '"p"'), "lacks the key 'model.channels'"),
        (lambda text: text.replace('"batch_size": 4', '"batch_size": "x"'), "'trainer.batch_size'"),
        (
            lambda text: text.replace('"keep_last"', '"keep"'),
            "run/config.json: Trainer.__init__() got an unexpected",
        ),
        (lambda text: text.replace('"flow"', '"flaw"'), "head must be one of"),
        (
            lambda text: json.dumps(json.loads(text) | dict(hold_out={})),
            "config.json: 'hold_out' must not be {}",
        ),
    ],
)
def test_a_broken_configuration_is_told_in_one_line(call, tmp_path, change, message):
    succeeded(call("train", *TINY, "--run", "run"))
    file = tmp_path / "run/config.json"
    file.write_text(change(file.read_text()))
    output = failed(call("resume", "run", "--steps", 3))
    assert message in output
    assert output.strip().count("\n") == 0
    failed(call("sample", "run", "--count", 1)) if "__init__" not in message else None
