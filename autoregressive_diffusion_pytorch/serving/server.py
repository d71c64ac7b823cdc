"""The server of a page, on this machine alone unless another host is asked for."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import gradio as gr
import uvicorn
from fastapi import FastAPI

from .page import FONTS, STYLE

QUEUE = 64  # events that may wait
CONCURRENT = 4  # events at once, but for those that use the model
MAX_UPLOAD = "64mb"
SECONDS_TO_END = 2  # for what is on its way when the server is stopped
FIRST_PORT, TRIES = 7860, 100


def free_port(host: str, port: int | None) -> int:
    """A port that is free: the one asked for, or else the first from `FIRST_PORT` on.

    Raises:
        OSError: there is none; or the host is none of this machine's.
    """
    candidates = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + TRIES)
    for candidate in candidates:
        try:
            with socket.create_server((host, candidate), family=_family(host)):
                return candidate
        except OSError as error:
            reason = error
    which = f"port {port}" if port is not None else f"a port from {FIRST_PORT} on"
    raise OSError(f"host {host} with {which} cannot be served: {reason.strerror}")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def serve(page: gr.Blocks, host: str, port: int, started: Callable[[], None]) -> None:
    """Serves a page until SIGINT or SIGTERM; `started` is called once it can be opened."""
    server = Server(page, host, port, started)
    # uvicorn ends in its own time, and then raises the signal again
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        server.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """The server of a page. Arguments as of `serve`."""

    def __init__(self, page: gr.Blocks, host: str, port: int, started: Callable[[], None]):
        page.queue(max_size=QUEUE, default_concurrency_limit=CONCURRENT)
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            page,
            path="/",
            footer_links=[],
            ssr_mode=False,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            theme=gr.themes.Default(**FONTS),
            css_paths=STYLE,
            enable_monitoring=False,
        )
        own = dict(log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
        super().__init__(uvicorn.Config(app, host=host, port=port, **own))
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # browsers that are cut off are what is asked for, no errors to tell
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)
