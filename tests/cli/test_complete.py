from command_line import TINY, failed, succeeded
from PIL import Image


def test_completes_an_image(call, tmp_path, drawn):
    succeeded(call("train", *TINY))
    (tmp_path / "mine").mkdir()
    image = Image.effect_noise((8, 8), 100)
    image.save(tmp_path / "mine" / "digit.png")
    result = succeeded(
        call(
            "complete",
            "runs/digits",
            "mine/digit.png",
            "--keep-rows",
            4,
            "--count",
            3,
            "--seed",
            7,
            "--files",
            "files",
        )
    )
    assert result.stdout.splitlines() == [
        "runs/digits/samples/complete.digit.7.png",
        "files: 3 files",
    ]
    completions = [Image.open(tmp_path / "files" / f"0000{i}.png") for i in range(3)]
    for completion in completions:
        assert completion.crop((0, 0, 8, 4)).tobytes() == image.crop((0, 0, 8, 4)).tobytes()
    assert completions[0].tobytes() != completions[1].tobytes()
    drawn.clear()
    succeeded(
        call(
            "complete",
            "runs/digits",
            "mine/digit.png",
            "--keep-rows",
            4,
            "--count",
            3,
            "--batch-size",
            2,
        )
    )
    assert [seen["num_completions"] for seen in drawn] == [2, 1]


def test_completes_an_image_for_each_label(call, labelled, drawn, tmp_path):
    succeeded(
        call(
            "complete",
            "run",
            labelled / "rose" / "0.jpg",
            "--keep-rows",
            4,
            "--count",
            2,
            "--output",
            "grid.png",
        )
    )
    assert [(seen["labels"], seen["num_completions"]) for seen in drawn] == [(0, 2), (1, 2), (2, 2)]
    assert Image.open(tmp_path / "grid.png").height == 3 * 50 + 2
    drawn.clear()
    succeeded(
        call(
            "complete",
            "run",
            labelled / "rose" / "0.jpg",
            "--keep-rows",
            4,
            "--label",
            "rose",
            "--guidance",
            2,
        )
    )
    assert [
        (seen["labels"], seen["num_completions"], seen["guidance_scale"]) for seen in drawn
    ] == [(1, 8, 2)]


def test_labels_and_completions_that_cannot_be(call, labelled, tmp_path):
    assert "'lily' is none of daisy, rose, tulip, nor the number of one" in failed(
        call("sample", "run", "--label", "lily")
    )
    assert "'3' is none of" in failed(call("sample", "run", "--label", 3))
    assert "--guidance 0 draws without labels" in failed(
        call("sample", "run", "--label", "rose", "--guidance", 0)
    )
    image = labelled / "rose" / "0.jpg"
    assert "--keep-rows must be a multiple of the patch height 4" in failed(
        call("complete", "run", image, "--keep-rows", 3)
    )
    image.write_bytes(b"nothing")
    assert "0.jpg is a text file, not an image" in failed(
        call("complete", "run", image, "--keep-rows", 4)
    )
    succeeded(call("train", *TINY))
    assert "the run has no labels" in failed(call("sample", "runs/digits", "--label", "3"))
    assert "--guidance other than 1 needs" in failed(call("sample", "runs/digits", "--guidance", 2))
