import os

import pytest
from command_line import failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch.cli.options import max_pixels_option
from autoregressive_diffusion_pytorch.data import folder_report
from autoregressive_diffusion_pytorch.data.image_files import MAX_PIXELS


def test_a_sound_folder(call, folder):
    result = succeeded(call("check", folder, "--labels"))
    assert result.stdout.splitlines()[:2] == [f"{folder}: 20 image files", "can be read: 20"]
    assert "  classes: a 10, b 10" in result.stdout


def test_a_folder_with_files_that_cannot_be_read(call, folder):
    (folder / "a" / "0.png").write_bytes(b"")
    (folder / "bad.png").symlink_to("nowhere")
    result = call("check", folder)
    assert result.exit_code == 1
    assert f"cannot be read, empty: 1\n  {folder}/a/0.png is empty\n" in result.stdout
    assert "left out: 1 link that leads nowhere, such as bad.png" in result.stdout
    assert "`ardiff train --skip-damaged` leaves out what cannot be read" in result.stderr


def test_limit_of_pixels(call, folder):
    assert max_pixels_option(lambda: None).__click_params__[0].default == MAX_PIXELS
    assert call("check", folder, "--max-pixels", 64).exit_code == 0
    result = call("check", folder, "--max-pixels", 63)
    assert result.exit_code == 1
    assert "cannot be read, too large: 20" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "folder nowhere does not exist"),
        (["images/a/0.png"], "is a file; expected a folder of images"),
        (["images/a", "--labels"], "labels need a folder for each class in it"),
        (["empty"], "holds no image: looked for the endings"),
    ],
)
def test_what_is_no_folder_of_images_is_told_in_one_line(call, folder, arguments, message):
    (folder.parent / "empty").mkdir()
    assert message in failed(call("check", *arguments)).strip().splitlines()[-1]


def test_names_that_are_not_utf8(call, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "images" / name).mkdir(parents=True)
    Image.new("L", (40, 40)).save(tmp_path / "images" / name / "a.png")
    result = succeeded(call("check", "images", "--labels"))
    assert r"  classes: caf\xe9 1" in result.stdout


def test_says_how_to_read_more_strictly(call, folder, monkeypatch):
    monkeypatch.setattr(folder_report, "find_spec", lambda name: None)
    assert "autoregressive-diffusion-pytorch[check]" in call("check", folder).stderr
