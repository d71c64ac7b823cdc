"""Pages that a thread of a test serves, and a visitor who looks at them with a browser."""

import base64
import shutil
import threading
import time
from contextlib import contextmanager

# without them a browser asks its maker's servers, which no test may
BROWSER_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def serving(page):
    """The address of a page, while it is served."""
    from autoregressive_diffusion_pytorch.serving.server import Server, free_port

    started = threading.Event()
    port = free_port("127.0.0.1", None)
    server = Server(page, "127.0.0.1", port, started.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Visitor:
    """A page in the browser, and what it asked other servers for."""

    def __init__(self, browser, url, width=1280, height=900):
        self.page = browser.new_page(viewport=dict(width=width, height=height))
        self.page.set_default_timeout(20_000)
        self.errors, self.elsewhere = [], []
        self.is_narrow = width < 700
        own = (url, "data:", "blob:")
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda r: r.url.startswith(own) or self.elsewhere.append(r.url))
        self.page.goto(url)
        self.page.get_by_role("heading").first.wait_for()

    def tab(self, name):
        tab = self.page.get_by_role("tab", name=name).locator("visible=true")
        if self.is_narrow:
            self.page.wait_for_timeout(500)  # until it is decided which tabs have room
            if tab.count() == 0:
                self.page.get_by_label("More tabs").click()
                tab = self.page.locator(".overflow-dropdown").get_by_text(name)
        tab.click()

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def upload(self, where, file):
        self.page.locator(f"#{where} input[type=file]").set_input_files(file)

    def set(self, label, value):
        field = self.page.get_by_label(label, exact=True).locator("visible=true").first
        field.fill(str(value))
        field.press("Tab")

    def watch(self, where):
        """Counts from now on the pictures that are shown at a place."""
        self.page.evaluate(
            """where => {
                const place = document.querySelector(where), seen = new Set();
                window.seen = seen;
                new MutationObserver(() => {
                    const picture = place.querySelector("img");
                    if (picture) seen.add(picture.src);
                }).observe(place, {childList: true, subtree: true, attributes: true});
            }""",
            f"#{where}",
        )

    def number_seen(self):
        return self.page.evaluate("window.seen.size")

    def picture(self, where):
        """The bytes of the finished picture at a place."""
        link = self.page.locator(f"#{where} a.download").first
        link.wait_for()
        return base64.b64decode(link.get_attribute("href").partition(",")[2])

    def told(self):
        """The sentence of an error, which is then closed."""
        toast = self.page.locator(".toast-body")
        toast.wait_for()
        told = toast.inner_text()
        toast.get_by_test_id("toast-close").click()
        toast.wait_for(state="detached")
        return told

    def check_width(self):
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], "the page is wider than the screen"

    def close(self):
        self.check_width()
        assert self.errors == []
        assert self.elsewhere == [], "something is fetched from elsewhere"
        self.page.close()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
