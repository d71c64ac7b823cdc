import json

from command_line import TINY, failed, succeeded

from autoregressive_diffusion_pytorch.cli.run import read_config


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
