import shutil
from datetime import datetime, timedelta, timezone

import pytest

from autoregressive_diffusion_pytorch.runs.record import RunRecord
from autoregressive_diffusion_pytorch.runs.summary import TABLE, ago, short_count, summary, table


def test_a_row_says_what_a_run_is_and_how_far_it_has_come(trained):
    run = RunRecord(trained)
    row = summary(run)
    lowest = min(point.validation_loss for point in run.checkpoints)
    assert row == dict(
        folder=str(trained),
        **run.facts(),
        parameters=run.num_parameters,
        step=4,
        num_train_steps=4,
        loss=lowest,
        loss_of="validation",
        distance=None,
        measure=None,
        updated=run.updated.isoformat(timespec="seconds"),
        state="ended",
    )
    assert datetime.now(timezone.utc) - run.updated < timedelta(minutes=10)


def test_without_a_validation_the_loss_is_that_of_the_training(trained, tmp_path):
    run = RunRecord(shutil.copytree(trained, tmp_path / "run"))
    for point in run.checkpoints:
        (point.folder / "manifest.json").unlink()
    row = summary(run)
    assert (row["loss"], row["loss_of"]) == (run.progress["loss"], "training")
    (run.folder / "progress.json").unlink()
    assert summary(run)["loss"] == run.curves()["loss_average"][-1][1]
    shutil.rmtree(run.folder / "logs")
    assert (summary(run)["loss"], summary(run)["loss_of"]) == (None, None)


def test_a_broken_run_is_a_row(trained, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{")
    row = summary(RunRecord(tmp_path))
    assert row.keys() == {"folder", "error"}
    assert "config.json cannot be read" in row["error"]
    rows = [summary(RunRecord(trained)), row | dict(folder=str(trained.parent / "b"))]
    head, first, second = table(rows, trained.parent)
    assert head.split() == list(TABLE)
    assert first.split()[:4] == ["digits", "images", "flow", "raster"]
    assert first.split()[-1] == "ended"
    assert second.startswith("b       ")
    assert second.endswith(row["error"])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        *((None, "–"), (0, "0"), (999, "999"), (1000, "1.0 k"), (12_345, "12.3 k")),
        *((999_900, "1.0 M"), (1_234_567, "1.2 M"), (120e6, "120 M"), (2.5e9, "2.5 B")),
    ],
)
def test_counts_are_short(count, expected):
    assert short_count(count) == expected


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        (dict(seconds=-5), "just now"),
        (dict(seconds=59), "just now"),
        (dict(minutes=3), "3 min ago"),
        (dict(minutes=60), "1 h ago"),
        (dict(hours=24), "1 day ago"),
        (dict(days=6), "6 days ago"),
    ],
)
def test_times_are_in_words(earlier, expected):
    now = datetime(2026, 7, 15, 12, tzinfo=timezone.utc)
    assert ago(now - timedelta(**earlier), now) == expected


def test_a_time_a_week_ago_is_a_date():
    now = datetime(2026, 7, 15, 12, tzinfo=timezone.utc)
    assert ago(now - timedelta(days=7), now) == "2026-07-08"
