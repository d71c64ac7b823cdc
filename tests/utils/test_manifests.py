"""Checkpoints as they are read: what is damaged is passed over, and one is the best."""

import json
import shutil

import pytest

from autoregressive_diffusion_pytorch.training.checkpoints import write_checkpoint
from autoregressive_diffusion_pytorch.utils.manifests import (
    DamagedCheckpointError,
    best_checkpoint,
    check_checkpoint,
    list_checkpoints,
    newest_checkpoint,
    validation_loss,
)


def write(folder):
    (folder / "model").write_text("weights")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "rest").write_bytes(b"rest")


DAMAGES = {
    "a file is missing": lambda path: (path / "model").unlink(),
    "a file is cut off": lambda path: (path / "deeper" / "rest").write_bytes(b""),
    "a bit is flipped": lambda path: (path / "model").write_text("weightt"),
    "the manifest is missing": lambda path: (path / "manifest.json").unlink(),
    "the manifest is cut off": lambda path: (path / "manifest.json").write_text('{"files": {'),
    "the manifest is of another kind": lambda path: (path / "manifest.json").write_text(
        '{"files": {"model": 3}}'
    ),
    "the manifest holds nothing": lambda path: (path / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage):
    for step in (9, 10):
        write_checkpoint(tmp_path, step, write)
    assert newest_checkpoint(tmp_path).name == "checkpoint.10"
    DAMAGES[damage](tmp_path / "checkpoint.10")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint\.10"):
        check_checkpoint(tmp_path / "checkpoint.10")
    with pytest.warns(
        UserWarning, match=r"a damaged checkpoint is passed over: .*checkpoint\.10/.*"
    ):
        assert newest_checkpoint(tmp_path).name == "checkpoint.9"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint.9", "checkpoint.10"]


def test_only_names_of_checkpoints_count(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    write_checkpoint(tmp_path, 3, write)
    for name in ("checkpoint.11.partial", "checkpoint.12.replaced", "checkpoint.x", "other"):
        shutil.copytree(tmp_path / "checkpoint.3", tmp_path / name)
    assert newest_checkpoint(tmp_path).name == "checkpoint.3"


def test_the_best_has_the_lowest_validation_loss(tmp_path):
    assert best_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 1, write)
    write_checkpoint(tmp_path, 2, write)
    assert best_checkpoint(tmp_path).name == "checkpoint.2"  # none has one: the newest
    for step, loss in ((3, 0.4), (4, 0.2), (5, 0.3), (6, None)):
        write_checkpoint(tmp_path, step, write, validation_loss=loss)
    assert best_checkpoint(tmp_path).name == "checkpoint.4"
    write_checkpoint(tmp_path, 7, write, validation_loss=float("nan"))
    assert best_checkpoint(tmp_path).name == "checkpoint.4"
    (tmp_path / "checkpoint.4" / "model").write_text("damaged")
    with pytest.warns(UserWarning, match="passed over"):
        assert best_checkpoint(tmp_path).name == "checkpoint.5"


@pytest.mark.parametrize("loss", ["0.1", [0.1], {}, None, float("nan"), float("inf")])
def test_what_is_no_finite_number_is_no_validation_loss(tmp_path, loss):
    write_checkpoint(tmp_path, 1, write, validation_loss=0.5)
    path = write_checkpoint(tmp_path, 2, write)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | dict(validation_loss=loss)))
    assert validation_loss(path) is None
    assert best_checkpoint(tmp_path).name == "checkpoint.1"
