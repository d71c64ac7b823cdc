import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from small_trainings import SIZES

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.models.presets import ImageAutoregressiveEnergy
from autoregressive_diffusion_pytorch.runs.record import RunRecord, find_runs


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run that has ended."""
    return RunRecord(shutil.copytree(trained, tmp_path / "run"))


def change_progress(run, **changes):
    file = run.folder / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_config(run, **changes):
    file = run.folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_report(run, name, at=0, **contents):
    file = run.folder / "evaluation" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(contents))
    os.utime(file, (at, at))


def test_tells_what_a_run_holds(trained):
    run = RunRecord(trained)
    assert (run.state, run.step, run.num_train_steps) == ("ended", 4, 4)
    assert run.progress["item"] == "image"
    assert [point.step for point in run.checkpoints] == [2, 4]
    assert run.checkpoints[-1].folder == trained / "checkpoints" / "checkpoint.4"
    losses = {point.step: point.validation_loss for point in run.checkpoints}
    assert run.best_step == min(losses, key=losses.get)
    assert run.grids == {step: trained / "samples" / f"results.{step}.png" for step in (2, 4)}
    curves = run.curves()
    assert [step for step, _ in curves["validation_loss"]] == [2, 4]
    assert curves["validation_loss"][-1][1] == pytest.approx(losses[4])
    assert curves["loss_average"][-1] == (4, pytest.approx(run.progress["loss"]))
    assert run.facts() == dict(kind="images", head="flow", order="raster", dims="8 × 8 × 1")
    assert run.config["source"] == "digits"
    assert (run.evaluations, run.distance, run.distances, run.generation) == ([], None, {}, {})


def test_counts_the_parameters(trained, tmp_path):
    run = RunRecord(trained)
    model = ImageAutoregressiveFlow.from_pretrained(run.checkpoints[-1].folder)
    assert run.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    checkpoint = tmp_path / "checkpoints" / "checkpoint.1"
    model = ImageAutoregressiveEnergy(image_size=4, patch_size=2, channels=1, model=SIZES)
    model.save_pretrained(checkpoint)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert RunRecord(tmp_path).num_parameters == count
    # before there is a checkpoint, those of the model that a fine-tuning starts with
    (tmp_path / "checkpoints" / "checkpoint.1").rename(tmp_path / "initial")
    assert RunRecord(tmp_path).num_parameters == count


@pytest.mark.parametrize(
    "contents",
    [b"\x00", b"\xff" * 9, b"\x00" * 5 + b"\x01\x00\x00{", b"\x02" + b"\x00" * 7 + b"[]"],
    ids=["short", "too-long", "longer-than-it-may-be", "a-list"],
)
def test_damaged_weights_have_no_number(run, contents):
    for point in run.checkpoints:
        (point.folder / "model.safetensors").write_bytes(contents)
    assert run.num_parameters is None


def test_tells_the_arguments_of_the_model(run):
    model = run.arguments["model"]
    assert (run.arguments["image_size"], model["dim"]) == (8, 16)
    assert "dim_head" not in run.config["model"]["model"]
    assert model["dim_head"] == 64  # by default
    shutil.rmtree(run.folder / "checkpoints")
    assert run.arguments == {}


def test_is_read_anew(run):
    assert run.step == 4
    change_progress(run, step=3, state="stopped")
    assert (run.step, run.state) == (3, "stopped")
    shutil.rmtree(run.folder / "checkpoints" / "checkpoint.4")
    assert [point.step for point in run.checkpoints] == [2]


def now(**earlier):
    return (datetime.now(timezone.utc) - timedelta(**earlier)).isoformat()


def test_a_run_is_running_while_its_process_lives(run):
    change_progress(run, state="running", pid=os.getpid(), started=now())
    assert run.state == "running"
    # the number of a process is given again
    change_progress(run, started=now(days=300))
    assert run.state == "stopped"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    change_progress(run, pid=process.pid, started=now())
    assert run.state == "stopped"


def test_a_process_of_another_user_lives(run, monkeypatch):
    def fail(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "create_time", fail)
    change_progress(run, state="running", pid=os.getpid(), started=now())
    assert run.state == "running"


def test_a_dead_process_that_nobody_has_waited_for_does_not_live(run):
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()  # until it is over
    change_progress(run, state="running", pid=process.pid, started=now())
    states = {run.state for _ in range(1000)}
    process.wait()
    assert "stopped" in states


def test_on_another_machine_it_is_running_while_it_writes(run):
    change_progress(run, state="running", host="elsewhere", updated=now(minutes=9))
    assert run.state == "running"
    change_progress(run, updated=now(minutes=11))
    assert run.state == "stopped"


def test_runs_of_earlier_versions_have_no_progress(run):
    (run.folder / "progress.json").unlink()
    assert (run.state, run.step, run.num_train_steps, run.progress) == ("ended", 4, 4, None)
    shutil.rmtree(run.folder / "checkpoints" / "checkpoint.4")
    assert (run.state, run.step) == ("stopped", 2)
    # without a checkpoint the log tells
    shutil.rmtree(run.folder / "checkpoints")
    assert (run.state, run.step) == ("ended", 4)
    shutil.rmtree(run.folder / "logs")
    assert (run.state, run.step) == ("stopped", 0)


@pytest.mark.parametrize("changes", [dict(step=None), dict(state=3), dict(loss="low")])
def test_a_progress_of_other_values_is_none(run, changes):
    change_progress(run, **changes)
    assert run.progress is None
    (run.folder / "progress.json").write_text("[1]")
    assert run.progress is None


def test_the_newest_report_counts(run):
    def generated(**distances):
        return dict(count=10, evaluations=8, **distances)

    both = generated(frechet_distance=3.0, sliced_wasserstein=0.2)
    write_report(run, "report.2", 1, checkpoint="checkpoint.2", generated=both)
    one = generated(sliced_wasserstein=0.1)
    write_report(run, "report.4", 2, checkpoint="checkpoint.4", generated=one)
    write_report(run, "tune.4", 4, checkpoint="checkpoint.4", chosen=both)
    assert [name for name, _ in run.evaluations] == ["report.2", "report.4", "tune.4"]
    assert run.distance == ("sliced_wasserstein", 0.1)
    assert run.distances == {4: 0.1}
    both = generated(frechet_distance=2.0, sliced_wasserstein=0.3)
    write_report(run, "report.4-2", 3, checkpoint="checkpoint.4", generated=both)
    assert run.distance == ("frechet_distance", 2.0)
    assert run.distances == {2: 3.0, 4: 2.0}
    write_report(run, "report.4-3", 5, checkpoint="checkpoint.4", bits_per_dim=dict(mean=1.0))
    assert run.distance == ("frechet_distance", 2.0)


def test_tells_the_generation_settings(run):
    (run.folder / "generation.json").write_text(json.dumps(dict(temperature=0.9)))
    assert run.generation == dict(temperature=0.9)


def test_names_what_is_wrong_with_a_configuration(run):
    (run.folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json lacks the key 'source'"):
        _ = run.config
    change_config(run, kind=["images"])
    with pytest.raises(ValueError, match=r"'kind' must not be \['images'\]"):
        _ = run.config
    (run.folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        run.facts()


def test_a_head_of_ones_own_is_no_reason_not_to_look(run):
    change_config(run, head="mine:Head")
    assert run.facts()["head"] == "mine:Head"


def test_finds_runs_below_a_folder(trained, tmp_path):
    for name in ("b", "a", "more/deep/c", ".hidden/d"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "a" / "inner" / "logs").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "config.json").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "linked").symlink_to(trained)
    (tmp_path / "circle").symlink_to(tmp_path)
    names = ["a", "b", "linked", "more/deep/c"]
    assert find_runs(tmp_path) == [tmp_path / name for name in names]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    assert find_runs(tmp_path / "nowhere") == []


def test_folders_that_may_not_be_read_are_passed_over(trained, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "linked").symlink_to(trained)
    is_file = Path.is_file

    def refuse(path):
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert find_runs(tmp_path) == [tmp_path / "linked"]


def test_torch_is_not_loaded(trained):
    script = (
        "import sys\n"
        "from autoregressive_diffusion_pytorch.runs.record import RunRecord, find_runs\n"
        "(folder,) = find_runs(sys.argv[1])\n"
        "run = RunRecord(folder)\n"
        "run.state, run.checkpoints, run.curves(), run.facts(), run.num_parameters, run.distance\n"
        "print([name for name in ('torch', 'tensorflow', 'accelerate') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(trained)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
