import io
import os

import numpy as np
import pytest
from PIL import Image

from autoregressive_diffusion_pytorch.data import folder_report
from autoregressive_diffusion_pytorch.data.folder_report import remark_on_jpeg, report_on


def jpeg():
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_sound_folder(class_folders):
    for path in class_folders.glob("**/*.png"):
        Image.effect_noise((40, 48), 50).save(path)
    report = report_on(class_folders, labels=True)
    assert report.is_sound
    assert report.classes == {"rose": 2, "tulip": 2}
    assert (report.remarks, report.faults) == ({}, [])
    assert report.lines() == [
        f"{class_folders}: 4 image files",
        "can be read: 4",
        "  shorter side: 40 to 40 pixels, median 40",
        "  formats: PNG 4",
        "  modes: L 4",
        "  classes: rose 2, tulip 2",
    ]


def test_all_that_is_odd_is_reported(class_folders):
    for path in class_folders.glob("**/*.png"):
        Image.effect_noise((40, 48), 50).save(path)
    rose, tulip = class_folders / "rose", class_folders / "tulip"
    whole = jpeg()
    (rose / "stray.jpg").write_bytes(whole[:-2] + b"\x12" * 65 + whole[-2:])
    (rose / "cut.jpg").write_bytes(whole[:999])
    (rose / "empty.jpg").write_bytes(b"")
    (rose / "page.jpg").write_text("<html>")
    (rose / "copy.png").write_bytes((rose / "a.png").read_bytes())
    (rose / "wrong.png").write_bytes(whole)
    Image.new("RGB", (500, 9)).save(rose / "bar.png")
    Image.new("CMYK", (40, 40)).save(tulip / "cmyk.jpg")
    frames = [Image.new("L", (40, 40), grey) for grey in (0, 255)]
    frames[0].save(tulip / "film.gif", save_all=True, append_images=frames[1:])
    (class_folders / "bare").mkdir()
    (class_folders / "bare" / "notes.txt").write_text("none")
    (class_folders / ".hidden").mkdir()
    (tulip / "link.png").symlink_to(tulip / "cmyk.jpg")
    (tulip / "gone.png").symlink_to("nowhere")
    report = report_on(class_folders, labels=True)
    assert not report.is_sound
    assert {f.kind for f in report.faults} == {"damaged", "empty", "no image"}
    assert report.classes == {"bare": 0, "rose": 6, "tulip": 5}
    (suspicious,) = report.remarks.pop("suspicious (their decoder warns)")
    assert suspicious.startswith("rose/stray.jpg: Corrupt JPEG data: ")
    assert report.remarks == {
        "duplicates (the same bytes)": [
            "rose/copy.png: as rose/a.png",
            "tulip/link.png: as tulip/cmyk.jpg",
        ],
        "below 32 pixels in height or width": ["rose/bar.png: 500 x 9"],
        "more than 3 times as long as wide": ["rose/bar.png: 500 x 9"],
        "of other modes, to be converted": [
            "tulip/cmyk.jpg: CMYK",
            "tulip/film.gif: P",
            "tulip/link.png: CMYK",
        ],
        "of several frames, the first is read": ["tulip/film.gif: 2"],
        "of another format than their ending": ["rose/wrong.png: JPEG", "tulip/link.png: JPEG"],
    }
    lines = report.lines()
    for line in (
        "  classes: rose 6, tulip 5",
        "  no classes, without images: bare",
        "cannot be read, empty: 1",
        f"  {rose}/empty.jpg is empty",
        f"  {rose}/page.jpg is an HTML page, not an image",
        f"  {rose}/cut.jpg is cut off",
        "left out: 1 hidden file or folder, such as .hidden",
        "left out: 1 link that leads nowhere, such as tulip/gone.png",
        "reached by links: 1",
        "files that are no images: 1",
    ):
        assert line in lines, line


def test_long_lists_are_cut(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"")
    lines = report_on(tmp_path).lines()
    assert lines[2:] == [
        "cannot be read, empty: 7",
        *(f"  {tmp_path}/{i}.png is empty" for i in range(5)),
        "  …",
    ]


def test_a_jpeg_whose_data_were_changed_is_suspicious():
    """JPEG has no checksum, yet most changes are no valid code any more."""
    pytest.importorskip("simplejpeg")
    random = np.random.default_rng(0)
    original = jpeg()
    noticed = 0
    for _ in range(50):
        start = int(random.integers(len(original) // 2, len(original) - 70))
        changed = original[:start] + random.bytes(64) + original[start + 64 :]
        noticed += remark_on_jpeg(changed) is not None
    assert noticed >= 45
    assert remark_on_jpeg(original) is None


def test_without_the_strict_decoder_nothing_is_suspicious(monkeypatch):
    whole = jpeg()
    monkeypatch.setattr(folder_report, "find_spec", lambda name: None)
    assert remark_on_jpeg(whole[:-2] + b"\x12" * 65 + whole[-2:]) is None


def test_a_folder_that_cannot_be_opened_is_not_sound(tmp_path, monkeypatch):
    Image.effect_noise((40, 48), 50).save(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    assert report_on(tmp_path).is_sound
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = report_on(tmp_path)
    assert not report.is_sound
    assert "left out: 1 folder that cannot be opened, such as locked" in report.lines()


def test_a_later_frame_that_is_damaged_does_not_matter(tmp_path):
    frames = [Image.effect_noise((40, 40), sigma) for sigma in (50, 60, 70)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: 2 * len(data) // 3])
    assert report_on(tmp_path).is_sound
