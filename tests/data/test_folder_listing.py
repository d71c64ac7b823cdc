import os
import sys
from types import ModuleType

import pytest
from PIL import Image

from autoregressive_diffusion_pytorch.data import image_formats
from autoregressive_diffusion_pytorch.data.folder_listing import (
    BROKEN,
    HIDDEN,
    LOCKED,
    LOOSE,
    OTHER,
    REPEATED,
    SPECIAL,
    list_folder,
)


def images_at(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def found(listing):
    return [str(path.relative_to(listing.folder)) for path in listing.images]


def left_out(listing):
    return {
        reason: sorted(str(path.relative_to(listing.folder)) for path in paths)
        for reason, paths in listing.left_out.items()
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_links_are_followed(folder, tmp_path):
    images_at(tmp_path, "store/cat/a.png", "store/cat/more/b.png", "store/c.png")
    images_at(folder, "dog/d.png")
    (folder / "cat").symlink_to(tmp_path / "store/cat")
    (folder / "dog/c.png").symlink_to(tmp_path / "store/c.png")
    listing = list_folder(folder)
    assert found(listing) == ["cat/a.png", "cat/more/b.png", "dog/c.png", "dog/d.png"]
    assert listing.num_links == 3
    assert listing.classes == ["cat", "dog"]
    assert not listing.left_out
    (tmp_path / "link").symlink_to(folder)
    assert len(list_folder(tmp_path / "link").images) == 4


def test_circles_of_links_are_cut(folder):
    images_at(folder, "a/1.png", "b/2.png")
    (folder / "a/up").symlink_to("..")
    (folder / "a/to b").symlink_to("../b")
    (folder / "b/to a").symlink_to("../a")
    listing = list_folder(folder)
    assert found(listing) == ["a/1.png", "b/2.png"]  # the real folders, not the links to them
    assert left_out(listing) == {REPEATED: ["a/to b", "a/up", "b/to a"]}
    by_class = list_folder(folder, by_class=True)  # each class holds what its links lead to
    assert found(by_class) == ["a/1.png", "a/to b/2.png", "b/2.png", "b/to a/1.png"]


def test_two_classes_may_share_a_folder(folder, tmp_path):
    images_at(tmp_path, "store/a.png")
    for name in ("cat", "kitty", "loop"):
        (folder / name).symlink_to(folder if name == "loop" else tmp_path / "store")
    listing = list_folder(folder, by_class=True)
    assert found(listing) == ["cat/a.png", "kitty/a.png"]
    assert listing.classes == ["cat", "kitty"]
    assert left_out(listing) == {REPEATED: ["loop"]}


def test_links_that_lead_nowhere_are_counted(folder):
    images_at(folder, "a.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "gone").symlink_to("nowhere")
    (folder / "ping.jpg").symlink_to("pong.jpg")
    (folder / "pong.jpg").symlink_to("ping.jpg")
    listing = list_folder(folder)
    assert found(listing) == ["a.png"]
    assert left_out(listing) == {BROKEN: ["gone", "ping.jpg", "pong.jpg", "self.png"]}


LEFT_BEHIND = [
    "__MACOSX/cat/._a.png",
    "cat/._a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "cat/.ipynb_checkpoints/a.png",
    "@eaDir/a.png",
    "#recycle/a.png",
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "lost+found/a.png",
    ".thumbnails/a.png",
]


@pytest.mark.parametrize("by_class", [False, True])
def test_hidden_files_and_leftovers_are_no_images(folder, by_class):
    images_at(folder, "cat/a.png", *LEFT_BEHIND)
    (folder / "cat/Thumbs.db").write_bytes(b"")
    (folder / "cat/.DS_Store").write_bytes(b"")
    listing = list_folder(folder, by_class=by_class)
    assert found(listing) == ["cat/a.png"]
    assert listing.classes == ["cat"]
    expected = {name.partition("/")[0] for name in LEFT_BEHIND} - {"cat"}
    assert left_out(listing) == {
        HIDDEN: sorted(expected | {"cat/._a.png", "cat/.ipynb_checkpoints"})
    }


def test_a_hidden_folder_itself_can_be_searched(tmp_path):
    images_at(tmp_path, ".cache/a.png")
    assert found(list_folder(tmp_path / ".cache")) == ["a.png"]


def test_other_formats_are_named_unless_endings_are_given(folder):
    images_at(folder, "a.png", "b.jpg")
    for name in ("c.svg", "d.NEF", "e.psd", "f.txt", "g"):
        (folder / name).write_bytes(b"")
    listing = list_folder(folder)
    assert left_out(listing) == {OTHER: ["c.svg", "d.NEF", "e.psd"]}
    assert listing.summary() == ["3 images of other formats (.nef, .psd, .svg), such as c.svg"]
    assert listing.num_others == 2
    assert found(listing) == ["a.png", "b.jpg"]
    only_png = list_folder(folder, ["PNG"])
    assert (found(only_png), only_png.left_out) == (["a.png"], {})


def test_loose_images_are_of_no_class(folder):
    images_at(folder, "a.png", "cat/b.png")
    listing = list_folder(folder, by_class=True)
    assert (found(listing), left_out(listing)) == (["cat/b.png"], {LOOSE: ["a.png"]})


def test_folders_and_files_that_cannot_be_searched(folder, monkeypatch):
    images_at(folder, "a.png", "locked/b.png")
    os.mkfifo(folder / "pipe.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert left_out(list_folder(folder)) == {SPECIAL: ["pipe.png"], LOCKED: ["locked"]}
    with pytest.raises(PermissionError, match="locked cannot be opened: permission denied"):
        list_folder(folder / "locked")


def test_heic_is_read_where_its_plugin_is_installed(folder, monkeypatch):
    (folder / "a.heic").write_bytes(b"")
    plugin = ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_extension("HEIF", ".heic")
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    for module, expected in ((None, []), (plugin, ["a.heic"])):
        monkeypatch.setitem(sys.modules, "pillow_heif", module)
        image_formats.readable_endings.cache_clear()
        assert found(list_folder(folder)) == expected
    monkeypatch.undo()
    image_formats.readable_endings.cache_clear()
