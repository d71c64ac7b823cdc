import json
import os
import shutil

import pytest

from autoregressive_diffusion_pytorch.training import checkpoints
from autoregressive_diffusion_pytorch.training.checkpoints import (
    finish_interrupted,
    remove_old_checkpoints,
    write_checkpoint,
)
from autoregressive_diffusion_pytorch.utils.manifests import (
    check_checkpoint,
    newest_checkpoint,
    read_manifest,
)


def two_files(text="weights"):
    def write(folder):
        (folder / "model").write_text(text)
        (folder / "deeper").mkdir()
        (folder / "deeper" / "rest").write_bytes(bytes(range(256)) * 5000)

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_files_and_a_manifest_of_them(tmp_path):
    path = write_checkpoint(tmp_path / "new", 7, two_files(), validation_loss=0.5)
    assert path == tmp_path / "new" / "checkpoint.7"
    assert names(tmp_path / "new") == ["checkpoint.7"]
    assert names(path) == ["deeper", "manifest.json", "model"]
    manifest = read_manifest(path)
    assert (manifest["step"], manifest["validation_loss"]) == (7, 0.5)
    # the hash as of `printf weights | sha256sum`
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert manifest["files"]["model"] == dict(bytes=7, sha256=digest)
    assert manifest["files"].keys() == {"model", "deeper/rest"}
    check_checkpoint(path)


def test_old_ones_are_removed_but_for_the_best(tmp_path):
    for step, loss in ((1, float("nan")), (2, 0.1), (3, 0.3), (4, None), (5, 0.2), (9, None)):
        write_checkpoint(tmp_path, step, two_files(), validation_loss=loss)
    # those of later steps are of no account: what a run resumed from an earlier one wrote last is
    # not to go for them
    remove_old_checkpoints(tmp_path, keep_last=2, up_to=5)
    assert names(tmp_path) == ["checkpoint.2", "checkpoint.4", "checkpoint.5", "checkpoint.9"]
    remove_old_checkpoints(tmp_path, keep_last=1, up_to=9)
    assert names(tmp_path) == ["checkpoint.2", "checkpoint.9"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    write_checkpoint(tmp_path, 1, two_files("old"))

    def fail(folder):
        (folder / "model").write_text("new")
        raise OSError("No space left on device")

    for step in (1, 2):
        with pytest.raises(
            OSError,
            match=rf"checkpoint\.{step} could not be written, what was saved before is untouched: "
            "No space",
        ):
            write_checkpoint(tmp_path, step, fail)
        assert names(tmp_path) == ["checkpoint.1"]
        check_checkpoint(tmp_path / "checkpoint.1")
        assert (tmp_path / "checkpoint.1" / "model").read_text() == "old"


def test_the_systems_error_is_reported(tmp_path):
    def fail(folder):
        try:
            raise OSError("No space left on device")
        except OSError:
            raise RuntimeError("unexpected position")  # noqa: B904 - as libraries do that write in C++

    with pytest.raises(OSError, match="untouched: No space left on device"):
        write_checkpoint(tmp_path, 1, fail)


def test_other_errors_are_raised_as_they_are(tmp_path):
    def fail(folder):
        raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match=r"^a fault of its own$"):
        write_checkpoint(tmp_path, 1, fail)
    assert names(tmp_path) == []


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("existing", [False, True])
def test_at_whatever_call_it_dies_there_is_the_old_one_or_the_new(tmp_path, monkeypatch, existing):
    """Ends a write at each of its calls to the system in turn, as `kill -9` would, and looks at
    what a later start finds."""
    outcomes = []
    for death in range(100):
        folder = tmp_path / str(death)
        write_checkpoint(folder, 1, two_files("first"))
        if existing:
            write_checkpoint(folder, 2, two_files("old"))
        calls = []

        def dying(function, calls=calls, death=death):
            def call(*args, **kwargs):
                if len(calls) >= death:
                    raise Died  # and from here on nothing more is done
                calls.append(function)
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in (
                (os, "replace"),
                (os, "fsync"),
                (shutil, "rmtree"),
                (checkpoints, "sha256"),
                (checkpoints.Path, "mkdir"),
                (checkpoints.Path, "write_text"),
            ):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                write_checkpoint(folder, 2, two_files("new"))
            except Died:
                died = True
            else:
                died = False
        finish_interrupted(folder)  # as a start does
        newest = newest_checkpoint(folder)
        text = (newest / "model").read_text()
        outcomes.append(text)
        assert text == (
            "new"
            if newest.name == "checkpoint.2" and text == "new"
            else "old"
            if existing
            else "first"
        )
        assert names(folder) == (
            ["checkpoint.1", "checkpoint.2"] if existing or text == "new" else ["checkpoint.1"]
        )
        if not died:
            assert text == "new"
            break
    assert not died
    assert len(outcomes) > 10
    # before the move the old one, after it the new
    assert outcomes == sorted(outcomes, key=["first", "old", "new"].index)


def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    def note_replace(source, target):
        events.append("moved")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_checkpoint(tmp_path, 1, two_files())
    partial = "checkpoint.1.partial"
    assert set(events[:-2]) == {
        f"{partial}/model",
        f"{partial}/deeper/rest",
        f"{partial}/manifest.json",
        partial,
    }
    assert events[-2:] == ["moved", "."]


def test_manifests_are_plain_json(tmp_path):
    path = write_checkpoint(tmp_path, 1, two_files(), validation_loss=None)
    assert json.loads((path / "manifest.json").read_text())["validation_loss"] is None
