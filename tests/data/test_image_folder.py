import struct
import warnings

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, features
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from autoregressive_diffusion_pytorch import ImageDataset
from autoregressive_diffusion_pytorch.data.image_files import DamagedImageError

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="needs Pillow with AVIF")

# one colour a corner: top left red, top right green, bottom left blue, bottom right white
CORNERS = (
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    .repeat(8, 0)
    .repeat(8, 1)
)


EXPECTED = torch.from_numpy(CORNERS).permute(2, 0, 1) / 255


def one(tmp_path, image, name="image.png", image_size=16, **kwargs):
    """The only image of a folder, through the dataset; `image` is saved by Pillow or written as it
    is."""
    options = {key: kwargs.pop(key) for key in ("exif", "quality", "lossless") if key in kwargs}
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        image.save(tmp_path / name, **options)
    (tensor,) = ImageDataset(tmp_path, image_size, **kwargs)
    return tensor


def corners(tensor):
    """The corner pixels, which lie far from where colours meet."""
    return tensor[:, [1, 1, -2, -2], [1, -2, 1, -2]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.PNG", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.TIFF", {}),
        ("a.webp", dict(lossless=True)),
        ("a.jpg", dict(quality=100)),
        ("a.JPEG", dict(quality=100)),
        ("a.jpe", dict(quality=100)),
        ("a.jfif", dict(quality=100)),
        ("a.gif", {}),
        ("a.ppm", {}),
        pytest.param("a.avif", dict(quality=100), marks=needs_avif),
    ],
)
def test_file_types(tmp_path, name, options):
    tensor = one(tmp_path, Image.fromarray(CORNERS), name, **options)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(corners(tensor), corners(EXPECTED), rtol=0, atol=0.02)


def test_rgb_is_exact(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tensor = one(tmp_path, Image.fromarray(pixels))
    assert torch.equal((tensor * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))
    assert tensor.min() >= 0
    assert tensor.max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_every_mode_in_every_number_of_channels(tmp_path, mode, channels):
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("older versions of Pillow cannot read such files, not even their own")
    # the left half is black and the right half white, in every mode
    grey = np.zeros((16, 16), dtype=np.uint8)
    grey[:, 8:] = 255
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert(mode)
    assert image.mode == mode
    tensor = one(tmp_path, image, "image.tiff", channels=channels)
    assert tensor.shape == (channels, 16, 16)
    colours = tensor[: 1 if channels <= 2 else 3]
    assert (colours[:, :, :7] < 0.01).all()
    assert (colours[:, :, 9:] > 0.99).all()
    if channels in (2, 4):
        assert (tensor[-1] == 1).all()


@pytest.mark.parametrize("name", ["image.png", "image.tiff"])
def test_16_bits_keep_their_scale(tmp_path, name):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16)[:, None].repeat(16, 1)
    tensor = one(tmp_path, Image.fromarray(ramp), name, channels=1)
    torch.testing.assert_close(
        tensor[0, :, 0], torch.linspace(0, 1, 16), rtol=0, atol=0.5 / 255 + 1e-6
    )


def test_transparent_parts_show_white(tmp_path):
    pixels = np.dstack((CORNERS, np.full((16, 16), 255, dtype=np.uint8)))
    pixels[:8, :8, 3] = 0
    pixels[:8, 8:, 3] = 128
    tensor = corners(one(tmp_path, Image.fromarray(pixels)))
    torch.testing.assert_close(tensor[:, 0], torch.ones(3), rtol=0, atol=0.01)
    torch.testing.assert_close(tensor[:, 1], torch.tensor([0.5, 1.0, 0.5]), rtol=0, atol=0.01)
    torch.testing.assert_close(tensor[:, 2:], corners(EXPECTED)[:, 2:], rtol=0, atol=0.01)


def test_a_transparent_grey_of_16_bits_shows_white(tmp_path):
    pixels = np.full((16, 16), 20_000, dtype=np.uint16)
    pixels[:8] = 0
    Image.fromarray(pixels).save(tmp_path / "image.png", transparency=0)
    (tensor,) = ImageDataset(tmp_path, 16)
    assert (tensor[:, :7] == 1).all()
    torch.testing.assert_close(
        tensor[:, 9:], torch.full((3, 7, 16), 20_000 / 65535), rtol=0, atol=0.01
    )


def test_cmyk_jpeg(tmp_path):
    tensor = one(tmp_path, Image.fromarray(CORNERS).convert("CMYK"), "image.jpg", quality=100)
    torch.testing.assert_close(corners(tensor), corners(EXPECTED), rtol=0, atol=0.05)


def test_large_photographs(tmp_path):
    # decoded at a part of their size
    large = Image.fromarray(CORNERS).resize((1000, 2000), Image.Resampling.NEAREST)
    tensor = one(tmp_path, large, "image.jpg", image_size=(16, 8), quality=95)
    assert tensor.shape == (3, 16, 8)
    torch.testing.assert_close(corners(tensor), corners(EXPECTED), rtol=0, atol=0.05)


def test_opacity_is_kept_where_wanted(tmp_path):
    pixels = np.dstack((CORNERS, np.full((16, 16), 255, dtype=np.uint8)))
    pixels[:8, :8, 3] = 0
    opacity = corners(one(tmp_path, Image.fromarray(pixels), channels=4))[3]
    assert opacity.tolist() == [0, 1, 1, 1]


def test_a_transparent_colour_of_a_palette_shows_white(tmp_path):
    image = Image.fromarray(CORNERS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.info["transparency"] = image.getpixel((0, 0))
    image.save(tmp_path / "image.png", transparency=image.getpixel((0, 0)))
    (tensor,) = ImageDataset(tmp_path, 16)
    torch.testing.assert_close(corners(tensor)[:, 0], torch.ones(3), rtol=0, atol=0.01)
    torch.testing.assert_close(corners(tensor)[:, 1:], corners(EXPECTED)[:, 1:], rtol=0, atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # what undoes each orientation, by the EXIF standard; so its inverse makes the stored picture
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        # stored turned to the left: the inverse of turning it right by 90 degrees
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(CORNERS)
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    tensor = one(tmp_path, stored, "image.jpg", exif=exif, quality=100)
    torch.testing.assert_close(corners(tensor), corners(EXPECTED), rtol=0, atol=0.05)


def test_small_images_are_enlarged_and_others_cropped_around_the_centre(tmp_path):
    wide = np.full((10, 30, 3), 255, dtype=np.uint8)
    wide[:, 10:20] = 0  # a black square between two white ones
    assert one(tmp_path, Image.fromarray(wide))[:, :, 3:-3].max() < 0.05
    assert (
        one(tmp_path, Image.fromarray(wide.transpose(1, 0, 2)), image_size=(40, 40))[
            :, 5:-5, 5:-5
        ].max()
        < 0.05
    )
    assert one(tmp_path, Image.fromarray(wide), image_size=(10, 30)).shape == (3, 10, 30)
    assert one(tmp_path, Image.fromarray(wide[:1, :1]), image_size=(6, 4)).shape == (3, 6, 4)


def test_nested_folders_in_the_order_of_their_names(tmp_path):
    names = ["b/2.png", "a/z/9.JPG", "10.png", "a/1.webp", "b/notes.txt", "9.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in ImageDataset(tmp_path, 4).paths]
    assert found == ["10.png", "9.png", "a/1.webp", "a/z/9.JPG", "b/2.png"]
    assert len(ImageDataset(str(tmp_path), 4, exts=["PNG"])) == 3
    assert len(ImageDataset(str(tmp_path), 4, exts=[".webp"])) == 1


def test_half_of_the_images_are_flipped(tmp_path):
    for i in range(1000):
        Image.fromarray(CORNERS[::8, ::8]).save(tmp_path / f"{i}.bmp")
    flipped = [
        bool(image[1, 0, 0] > 0.5)
        for image in ImageDataset(tmp_path, 2, augment_horizontal_flip=True)
    ]
    # five standard deviations of a fair coin
    assert abs(sum(flipped) / 1000 - 0.5) < 5 * 0.5 / 1000**0.5
    assert not any(image[1, 0, 0] > 0.5 for image in ImageDataset(tmp_path, 2))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ImageDataset(tmp_path / "nowhere", 8)
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(
        NotADirectoryError, match=r"file.png is a file; expected a folder of images"
    ):
        ImageDataset(tmp_path / "file.png", 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(
        ValueError, match=r"empty holds no image: looked for the endings .*\.bmp, .*\.jpeg, "
    ):
        ImageDataset(tmp_path / "empty", 8)


@pytest.mark.parametrize("channels", [0, 5, "RGB"])
def test_bad_channels(tmp_path, channels):
    with pytest.raises(ValueError, match="channels must be one of 1, 2, 3, 4"):
        ImageDataset(tmp_path, 8, channels=channels)


@pytest.mark.parametrize("image_size", [0, (8, 0), (1, 2, 3), 8.0])
def test_bad_sizes(tmp_path, image_size):
    with pytest.raises(ValueError, match="image_size must be a whole number of at least 1"):
        ImageDataset(tmp_path, image_size)


def damaged_files(folder):
    """Three good images and four damaged files: the message for each of these."""
    for name in ("a.png", "c.jpg", "z.bmp"):
        Image.fromarray(CORNERS.repeat(4, 0).repeat(4, 1)).save(folder / name)
    whole = (folder / "c.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.webp").write_text("this is no image")
    (folder / "wide.bmp").write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -1, 10, 1, 24, 0, 0, 1, 1, 0, 0)
    )
    return {
        "b.jpg": "is cut off",
        "empty.png": "is empty",
        "text.webp": "is a text file, not an image",
        "wide.bmp": "has more pixels than the limit of 500,000,000",
    }


def test_a_damaged_file_is_named(tmp_path):
    damaged = damaged_files(tmp_path)
    dataset = ImageDataset(tmp_path, 8)
    assert len(dataset) == 7
    for i, path in enumerate(dataset.paths):
        if path.name in damaged:
            with pytest.raises(DamagedImageError, match=f"{path.name} {damaged[path.name]}"):
                dataset[i]
        else:
            assert dataset[i].shape == (3, 8, 8)


def test_damaged_files_are_left_out_with_one_warning(tmp_path):
    damaged = damaged_files(tmp_path)
    with pytest.warns(UserWarning, match="4 of 7 image files are left out") as caught:
        dataset = ImageDataset(tmp_path, 8, skip_damaged=True)
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in damaged)
    assert caught[0].filename == __file__
    assert [path.name for path in dataset.paths] == ["a.png", "c.jpg", "z.bmp"]
    assert len(list(dataset)) == 3


def test_a_folder_without_damage_gives_no_warning(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ImageDataset(tmp_path, 8, skip_damaged=True)) == 1


def test_a_folder_of_nothing_but_damage(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match=r"none of its 1 image files can be read; the first: .*a\.png"
    ):
        ImageDataset(tmp_path, 8, skip_damaged=True)


def test_labels_are_those_of_torchvision(class_folders):
    dataset = ImageDataset(class_folders, 8, labels_from_folders=True)
    theirs = ImageFolder(class_folders)
    assert dataset.classes == theirs.classes == ["rose", "tulip"]
    assert dataset.class_to_idx == theirs.class_to_idx
    labels = {str(path): label for path, (_, label) in zip(dataset.paths, dataset, strict=True)}
    assert labels == dict(theirs.samples)
    assert dataset.targets == list(labels.values())
    image, label = dataset[0]
    assert image.shape == (3, 8, 8)
    assert type(label) is int
    # without, the same images alone
    without = ImageDataset(class_folders, 8)
    assert torch.equal(without[0], image)
    with pytest.raises(AttributeError, match="targets needs labels_from_folders = True, got False"):
        _ = without.targets


def test_images_of_no_class_are_left_out_with_a_warning(class_folders):
    Image.new("RGB", (9, 8)).save(class_folders / "loose.png")
    with pytest.warns(
        UserWarning, match=r"1 image in no class's folder, such as loose\.png"
    ) as seen:
        dataset = ImageDataset(class_folders, 8, labels_from_folders=True)
    assert seen[0].filename == __file__
    assert len(dataset) == 4
    assert dataset.classes == ["rose", "tulip"]


def test_classes_stay_when_damaged_files_are_left_out(class_folders):
    (class_folders / "rose" / "a.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="1 of 4 image files are left out"):
        dataset = ImageDataset(class_folders, 8, labels_from_folders=True, skip_damaged=True)
    assert [label for _, label in dataset] == dataset.targets == [0, 1, 1]


def test_classes_without_images_go_and_are_named(class_folders):
    for name in ("empty", "notes"):
        (class_folders / name).mkdir()
    (class_folders / "notes" / "text.txt").write_text("no image")
    message = "2 folders without images are no classes: empty, notes"
    with pytest.warns(UserWarning, match=message) as caught:
        dataset = ImageDataset(class_folders, 8, labels_from_folders=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert dataset.class_to_idx == {"rose": 0, "tulip": 1}
    for path in class_folders.glob("rose/**/*.png"):
        path.write_bytes(b"nothing")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ImageDataset(class_folders, 8, labels_from_folders=True, skip_damaged=True)
    assert [str(w.message).partition(":")[0] for w in caught] == [
        "2 of 4 image files are left out",
        "3 folders without images are no classes",
    ]
    assert (dataset.classes, dataset.targets) == (["tulip"], [0, 0])


def test_a_folder_of_images_alone_has_no_classes(class_folders):
    message = "tulip holds no folder of images: labels need a folder for each class in it"
    with pytest.raises(ValueError, match=message):
        ImageDataset(class_folders / "tulip", 8, labels_from_folders=True)


def test_what_is_left_out_is_counted_in_one_warning(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.png")
    Image.fromarray(CORNERS).save(tmp_path / ".b.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "a.CR2").write_bytes(b"raw")
    with pytest.warns(UserWarning, match="left out of") as caught:
        assert len(ImageDataset(tmp_path, 8)) == 1
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert sorted(str(caught[0].message).splitlines()[1:]) == [
        "  1 hidden file or folder, such as .b.png",
        "  1 link that leads nowhere, such as gone.png",
        "  2 images of other formats (.cr2, .svg), such as a.CR2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # other files are no images: captions, for instance
        (tmp_path / "plain").mkdir()
        Image.fromarray(CORNERS).save(tmp_path / "plain" / "a.png")
        (tmp_path / "plain" / "a.txt").write_text("four colours")
        (tmp_path / "plain" / ".DS_Store").write_bytes(b"")
        assert len(ImageDataset(tmp_path / "plain", 8)) == 1


@pytest.mark.filterwarnings("ignore:left out of")
@pytest.mark.parametrize("labelled", [False, True])
def test_links_are_followed_and_leftovers_are_no_images(tmp_path, labelled):
    folder, store = tmp_path / "images", tmp_path / "store"
    for path in (folder / "dog", store, folder / "__MACOSX" / "dog", folder / ".ipynb_checkpoints"):
        path.mkdir(parents=True)
        Image.fromarray(CORNERS).save(path / "a.png")
    (folder / "__MACOSX" / "dog" / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(99))
    (folder / "cat").symlink_to(store)
    (folder / "dog" / "self.png").symlink_to("self.png")
    (folder / "dog" / "up").symlink_to("..")
    dataset = ImageDataset(folder, 16, labels_from_folders=labelled)
    assert [path.relative_to(folder).as_posix() for path in dataset.paths] == [
        "cat/a.png",
        "dog/a.png",
    ]
    if labelled:
        assert dataset.classes == ["cat", "dog"]
        assert [label for _, label in dataset] == [0, 1]


def test_without_augmentation_the_images_are_as_they_are(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.png")
    dataset = ImageDataset(tmp_path, 16, augment_horizontal_flip=True, cache_in_memory=True)
    plain = dataset.without_augmentation()
    assert all(torch.equal(plain[0], EXPECTED) for _ in range(8))
    assert plain._cache is dataset._cache
    assert any(not torch.equal(dataset[0], EXPECTED) for _ in range(32))


def test_a_limit_of_pixels(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.png")
    assert ImageDataset(tmp_path, 8, max_pixels=16 * 16)[0].shape == (3, 8, 8)
    message = r"a.png has more pixels than the limit of 120: scale it down, or raise max_pixels$"
    with pytest.raises(DamagedImageError, match=message):
        ImageDataset(tmp_path, 8, max_pixels=120)[0]
    with pytest.raises(ValueError, match="max_pixels must be a whole number of at least 1, got 0"):
        ImageDataset(tmp_path, 8, max_pixels=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_gives_the_same_images_without_their_files(tmp_path, num_workers):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    expected = list(ImageDataset(tmp_path, 8))
    dataset = ImageDataset(tmp_path, 8, cache_in_memory=True)
    first, second = (
        list(DataLoader(dataset, batch_size=None, num_workers=num_workers)) for _ in range(2)
    )
    for path in tmp_path.iterdir():
        # from here on only the cache knows them, also what other processes read
        path.write_bytes(b"")
    for images in (first, second, list(dataset)):
        for image, original in zip(images, expected, strict=True):
            assert torch.equal(image, original)
    with pytest.raises(DamagedImageError):
        ImageDataset(tmp_path, 8)[0]


def test_a_cached_image_is_flipped_anew_and_keeps_its_label(class_folders):
    dataset = ImageDataset(
        class_folders,
        8,
        cache_in_memory=True,
        labels_from_folders=True,
        augment_horizontal_flip=True,
    )
    plain = ImageDataset(class_folders, 8, labels_from_folders=True)
    seen = [dataset[0] for _ in range(64)]
    assert {label for _, label in seen} == {plain[0][1]}
    image = plain[0][0]
    assert all(torch.equal(other, image) or torch.equal(other, image.flip(-1)) for other, _ in seen)
