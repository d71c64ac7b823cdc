import pytest

from autoregressive_diffusion_pytorch.utils.text import counted, printable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("daisy 猫 é", "daisy 猫 é"),
        ("caf\udce9", r"caf\xe9"),
        ("two\nlines\x7f", r"two\x0alines\x7f"),
        ("\ud800\u2028", r"\ud800\u2028"),
    ],
)
def test_names_can_be_written_in_one_line(name, expected):
    assert printable(name) == expected
    assert len(printable(name).encode().splitlines()) == 1


def test_counts():
    assert counted(1, "file", "files") == "1 file"
    assert counted(1200, "file", "files") == "1,200 files"
