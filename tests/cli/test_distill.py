import json

import pytest
from command_line import TINY, failed, succeeded

from autoregressive_diffusion_pytorch import ImageAutoregressiveEnergy, ImageAutoregressiveFlowMap
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings
from autoregressive_diffusion_pytorch.utils.manifests import list_checkpoints


@pytest.fixture
def teacher(call, tmp_path):
    succeeded(call("train", *TINY, "--labels", "--steps", 20, "--run", "teacher"))
    GenerationSettings(num_steps=4, temperature=0.9).save(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_run_becomes_one_of_one_evaluation(call, teacher, tmp_path):
    result = succeeded(call("distill", "teacher", "--noise-draws", 2))
    run = tmp_path / "runs/teacher-flow_map"
    assert "checkpoint.20 (no validation loss)" in result.stderr
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint.5"]
    config = json.loads((run / "config.json").read_text())
    assert (config["head"], config["teacher"]) == ("flow_map", "flow")
    assert config["trainer"]["lr_schedule"] == "cosine"
    # what was tuned of the transformer counts, the steps of another solver do not
    assert GenerationSettings.load(run) == GenerationSettings(temperature=0.9)
    model = ImageAutoregressiveFlowMap.from_pretrained(run)
    assert model.head.num_noise_draws == 2

    # it goes on by itself, and draws, like any run
    (teacher / "checkpoints").rename(tmp_path / "elsewhere")
    succeeded(call("resume", run, "--steps", 6))
    succeeded(call("sample", run, "--label", "3", "--count", 1, "--steps", 2))


def test_another_head_learns_from_the_images(call, teacher, tmp_path):
    succeeded(call("distill", teacher, "--head", "energy", "--run", "fast", "--steps", 1))
    assert ImageAutoregressiveEnergy.from_pretrained(tmp_path / "fast").num_classes == 10


def test_what_cannot_be_a_teacher_is_told_before_the_work(call, teacher, tmp_path):
    succeeded(call("distill", teacher, "--head", "energy", "--run", "fast", "--steps", 1))
    message = failed(call("distill", "fast", "--run", "again"))
    assert "must be a diffusion or flow head, is EnergyScore" in message
    assert not (tmp_path / "again").exists()
    assert "already holds a run with checkpoint.1" in failed(
        call("distill", teacher, "--run", "fast")
    )
