import errno
import tempfile

import pytest

from autoregressive_diffusion_pytorch.utils.files import check_file, check_folder


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    check_folder("--run", tmp_path / "a" / "b")
    check_file("--output", tmp_path / "c" / "d.png")
    assert list((tmp_path / "a" / "b").iterdir()) == list((tmp_path / "c").iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(OSError, match=rf"^--run {folder} cannot be written: .*file is a file$"):
            check_folder("--run", folder)
    with pytest.raises(OSError, match=r"^--output .*file/x.png cannot be written: .* is a file$"):
        check_file("--output", tmp_path / "file" / "x.png")
    with pytest.raises(OSError, match=rf"^--output {tmp_path} cannot be written: it is a folder$"):
        check_file("--output", tmp_path)

    def fail(**kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(OSError, match=r"^--run .* cannot be written: Read-only file system$"):
        check_folder("--run", tmp_path)
