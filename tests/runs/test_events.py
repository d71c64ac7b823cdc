import math
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from autoregressive_diffusion_pytorch.runs.events import EventFiles


def write(folder, values, **kwargs):
    """Writes an event file: values of `loss` by step."""
    with SummaryWriter(folder, **kwargs) as writer:
        for step, value in values.items():
            writer.add_scalar("loss", value, step)


def test_reads_numbers_by_name(tmp_path):
    with SummaryWriter(tmp_path / "training") as writer:
        for step in (1, 2):
            writer.add_scalar("loss", 0.5 * step, step)
        writer.add_scalar("speed", 7.0, 2)
        writer.add_text("words", "none", 2)
    assert EventFiles(tmp_path).scalars() == dict(loss=[(1, 0.5), (2, 1.0)], speed=[(2, 7.0)])


def test_no_folder_holds_no_numbers(tmp_path):
    assert EventFiles(tmp_path / "logs").scalars() == {}


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0}, filename_suffix=".a")
    write(tmp_path, {3: 4.0}, purge_step=2, filename_suffix=".b")
    assert EventFiles(tmp_path).scalars() == dict(loss=[(1, 1.0), (3, 4.0)])


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    write(tmp_path, {1: 1.0, 2: math.nan, 3: math.inf})
    assert EventFiles(tmp_path).scalars() == dict(loss=[(1, 1.0)])


def test_a_file_that_grows_is_read_on(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    files, found = EventFiles(tmp_path), []
    for end in range(0, len(whole) + 1, 5):
        file.write_bytes(whole[:end])
        found.append(len(files.scalars().get("loss", [])))
    file.write_bytes(whole)
    assert files.scalars() == dict(loss=[(1, 1.0), (2, 2.0), (3, 3.0)])
    assert found == sorted(found)
    assert {0, 1, 2} <= set(found)


def test_a_damaged_file_gives_what_came_before(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20] + b"\xff" * 300)
    assert EventFiles(tmp_path).scalars() == dict(loss=[(1, 1.0)])


def test_what_is_known_is_not_read_again(tmp_path, monkeypatch):
    write(tmp_path, {1: 1.0, 2: 2.0})
    files = EventFiles(tmp_path)
    found = files.scalars()
    monkeypatch.setattr(Path, "open", None)
    assert files.scalars() == found == dict(loss=[(1, 1.0), (2, 2.0)])
