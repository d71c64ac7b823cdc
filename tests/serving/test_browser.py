"""Pages as a browser shows them. `--run RUN --screenshots DIR` shows a trained run, and keeps
pictures of it for the documentation."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import Visitor, serving, wait_until
from PIL import Image

from autoregressive_diffusion_pytorch.data.image_grids import image_grid
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def settings(data):
    return json.loads(Image.open(io.BytesIO(data)).text["settings"])


@pytest.fixture
def every_frame(monkeypatch):
    """Shows every picture that grows."""
    from autoregressive_diffusion_pytorch.serving import drawing

    monkeypatch.setattr(drawing.frames, "__defaults__", (0,))


def drawn_grid(served, labels, count, **options):
    labels = torch.tensor(labels).repeat_interleave(count)
    images = draw_images(served.model(), len(labels), batch_size=64, labels=labels, **options)
    rows = [served.classes[label] for label in labels[::count].tolist()]
    return np.asarray(image_grid(images, count, rows))


def test_a_picture_grows_and_is_that_of_the_command(served, browser, every_frame):
    from autoregressive_diffusion_pytorch.serving.page import model_page

    with serving(model_page(served)) as url:
        visitor = Visitor(browser, url)
        assert visitor.page.title() == "flowers"
        visitor.set("Seed", 3)
        visitor.watch("drawn")
        visitor.press("Draw")
        data = visitor.picture("drawn")
        assert visitor.number_seen() > 3
        np.testing.assert_array_equal(pixels(data), drawn_grid(served, [0, 1, 2], 4, seed=3))
        assert settings(data)["seed"] == 3
        assert settings(data)["command"] == "draw --seed 3"
        # of one class, guided
        visitor.page.get_by_label("What to draw").click()
        visitor.page.get_by_role("option", name="rose").click()
        visitor.set("number input for Guidance", 2)
        visitor.press("Next seed")
        wait_until(lambda: settings(visitor.picture("drawn"))["seed"] == 4)
        data = visitor.picture("drawn")
        expected = drawn_grid(served, [1], 12, seed=4, guidance_scale=2.0)
        np.testing.assert_array_equal(pixels(data), expected)
        assert settings(data)["labels"] == ["rose"]
        assert settings(data)["guidance_scale"] == 2
        visitor.close()


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file)
    return file


def test_an_upload_is_completed_and_measured_and_a_wrong_one_told(served, browser, photo, tmp_path):
    from autoregressive_diffusion_pytorch.serving.page import model_page
    from autoregressive_diffusion_pytorch.serving.served import Request

    wrong = tmp_path / "page.png"
    wrong.write_text("<html>")
    with serving(model_page(served)) as url:
        visitor = Visitor(browser, url)
        visitor.tab("Complete")
        visitor.press("Complete")
        assert "upload an image first" in visitor.told()
        visitor.upload("image-to-complete", wrong)
        told = visitor.told()
        assert "\npage.png is an HTML page" in told
        visitor.page.locator("#image-to-complete").get_by_label("Clear").click()
        visitor.upload("image-to-complete", photo)
        visitor.page.locator(".preview img").locator("visible=true").wait_for()
        visitor.set("number input for Completions of each class", 2)
        visitor.press("Complete")
        data = visitor.picture("completed")
        image = served.read_image(photo)
        *_, completions = served.completions(image, 4, Request(2, labels=[0, 1, 2]))
        expected = image_grid(completions, 2, served.classes)
        np.testing.assert_array_equal(pixels(data), np.asarray(expected))
        assert settings(data)["completes"] == "photo.png"
        visitor.tab("Surprise")
        visitor.upload("image-to-measure", photo)
        visitor.press("Map the surprise")
        visitor.page.locator("#surprised img").wait_for()
        visitor.close()


def test_a_painted_region_is_drawn_anew(masked, browser, photo):
    from autoregressive_diffusion_pytorch.serving.page import model_page

    with serving(model_page(masked)) as url:
        visitor = Visitor(browser, url, width=390, height=844)
        visitor.tab("Complete")
        visitor.upload("image-to-complete", photo)
        visitor.page.get_by_text("Paint on the picture").wait_for()
        visitor.press("Complete")
        assert "nothing is painted yet" in visitor.told()
        canvas = visitor.page.locator("#painted canvas").first
        canvas.scroll_into_view_if_needed()
        canvas = canvas.bounding_box()
        x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
        visitor.page.mouse.move(x - 5, y - 5)
        visitor.page.mouse.down()
        visitor.page.mouse.move(x + 5, y + 5, steps=5)
        visitor.page.mouse.up()
        visitor.page.wait_for_timeout(500)
        visitor.press("Complete")
        first = pixels(visitor.picture("completed"))[2:50, 2:50][3::6, 3::6]
        kept = np.asarray(Image.open(photo)) == first
        assert kept[0].all()
        assert kept[:, 0].all()
        assert not kept.all()
        visitor.close()


def test_several_pages_draw_at_once(served, browser):
    from autoregressive_diffusion_pytorch.serving.page import model_page

    with serving(model_page(served)) as url:
        visitors = [Visitor(browser, url) for _ in range(2)]
        for seed, visitor in enumerate(visitors):
            visitor.set("Seed", seed)
        for visitor in visitors:
            visitor.press("Draw")
        for seed, visitor in enumerate(visitors):
            expected = drawn_grid(served, [0, 1, 2], 4, seed=seed)
            np.testing.assert_array_equal(pixels(visitor.picture("drawn")), expected)
            visitor.close()


def test_a_training_is_seen_to_go_on(uploads, trained, browser, tmp_path, monkeypatch):
    from autoregressive_diffusion_pytorch.runs.record import RunRecord
    from autoregressive_diffusion_pytorch.serving import training
    from autoregressive_diffusion_pytorch.serving.page import run_page

    monkeypatch.setattr(training, "EVERY", 0.2)
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    with serving(run_page(RunRecord(folder))) as url:
        visitor = Visitor(browser, url)
        status, grid = visitor.page.locator("#status"), visitor.page.locator("#grid")
        expect = visitor.page.get_by_text
        expect("ended", exact=True).wait_for()
        assert "step 4 of 4" in status.inner_text()
        assert "step 4" in grid.inner_text()
        table = visitor.page.locator("#checkpoints").inner_text()
        assert re.search(r"4( \(best\))?\s+\d\.\d{4}", table)
        # as the training would
        progress = json.loads((folder / "progress.json").read_text())
        progress |= dict(state="running", step=5, num_train_steps=8, pid=os.getpid())
        (folder / "progress.json").write_text(json.dumps(progress))
        Image.new("RGB", (50, 50)).save(folder / "samples" / "results.5.png")
        expect("running", exact=True).wait_for()
        expect("step 5 of 8").wait_for()
        expect("step 5", exact=True).wait_for()  # of the grid
        # an earlier grid stays while others come
        visitor.set("number input for Grids, from the first to the last", 0)
        expect(re.compile(r"step 2, validation loss \d\.\d{4}")).wait_for()
        visitor.page.wait_for_timeout(500)
        assert "step 2" in grid.inner_text()
        visitor.close()


def test_the_page_of_a_run_on_a_phone(uploads, trained, browser, photo, tmp_path, request):
    """`pytest tests/serving -k phone --run RUN --image FILE --screenshots DIR` keeps pictures, of a
    desktop, too."""
    from autoregressive_diffusion_pytorch.cli.serve import served_run
    from autoregressive_diffusion_pytorch.serving.page import model_page

    run = Path(request.config.getoption("run") or trained)
    image = request.config.getoption("image") or photo
    kept = request.config.getoption("screenshots")
    with serving(model_page(served_run(run, None, "no"))) as url:
        for width in (390, 1280) if kept else (390,):
            visit(Visitor(browser, url, width=width, height=850), image, Path(kept or tmp_path))


def visit(visitor, image, pictures):
    """Looks at all tabs of a run on images, with a picture of each."""

    def keep(name):
        visitor.page.wait_for_timeout(300)
        visitor.check_width()
        width = visitor.page.viewport_size["width"]
        visitor.page.screenshot(path=pictures / f"page-{name}-{width}.png")

    visitor.press("Draw")
    visitor.picture("drawn")
    keep("draw")
    visitor.tab("Complete")
    visitor.upload("image-to-complete", image)
    visitor.page.locator(".preview img").locator("visible=true").wait_for()
    visitor.press("Complete")
    visitor.picture("completed")
    keep("complete")
    visitor.tab("Surprise")
    visitor.upload("image-to-measure", image)
    visitor.press("Map the surprise")
    visitor.page.locator("#surprised img").wait_for()
    keep("surprise")
    visitor.tab("Training")
    visitor.page.locator("#losses canvas, #losses svg").first.wait_for()
    keep("training")
    visitor.close()
