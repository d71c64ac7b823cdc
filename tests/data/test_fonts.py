import pytest
from PIL import Image, ImageDraw, ImageFont

from autoregressive_diffusion_pytorch.data import fonts
from autoregressive_diffusion_pytorch.data.fonts import readable

NAMES = [
    "Žluť",
    "Ελληνικά",
    "кошка",
    "猫",
    "ねこ",
    "고양이",
    "😀 cat",
    "قطة",
    "חתול",
    "बिल्ली",
    "แมว",
]
NAMES += ["❤️", "👨‍👩‍👧", "\ue000", "½", "𓃠"]


def picture(font, text):
    image = Image.new("L", (400, 40))
    ImageDraw.Draw(image).text((4, 4), text, fill=255, font=font)
    return image.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_letter_is_an_empty_box(name):
    text, font = readable(name, 16)
    box = picture(font, fonts.ABSENT)
    assert text
    for letter in text.replace(" ", ""):
        assert picture(font, letter) != box, letter


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Žluť", "Zlut"),
        ("Ελληνικά", "Ellenika"),
        ("Кошка", "Koshka"),
        ("щенок", "shchienok"),
        ("ねこ", "neko"),
        ("고양이", "goyangi"),
        ("חתול", "htvl"),
        ("猫", "U+732B"),
        ("🐱", "(cat face)"),
        ("ａｂｃ", "abc"),
        ("\ue000", "U+E000"),
    ],
)
def test_letters_that_no_font_has_are_written_in_latin(monkeypatch, name, expected):
    monkeypatch.setattr(fonts, "_files", lambda text: [])
    assert readable(name, 16)[0] == expected


def test_a_font_of_the_system_is_found(monkeypatch, tmp_path):
    known = next(fonts._files("Ω"), None)
    if known is None:
        pytest.skip("needs a font with Greek letters")
    (tmp_path / "deep").mkdir()
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "deep" / "font.ttf").symlink_to(known)
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(tmp_path),))
    fonts._system_fonts.cache_clear()
    text, font = readable("Ωμέγα", 16)
    assert text == "Ωμέγα"
    assert font.path == str(tmp_path / "deep" / "font.ttf")
    fonts._system_fonts.cache_clear()


def test_latin_is_written_in_the_font_of_pillow():
    text, font = readable("daisy", 12)
    assert text == "daisy"
    assert font.getname() == ImageFont.load_default(size=12).getname()
