"""The page on a port, and the files of what was made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# gradio writes down its last 10,000 requests and after each makes a table of all of them, for a page we do not show.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**31))

import gradio as gr
import PIL.Image
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from vqvdm.app.gallery import MEDIA_TYPES, Gallery
from vqvdm.app.page import looks, make_page
from vqvdm.app.settings import MOST_VIDEOS
from vqvdm.app.studio import Studio
from vqvdm.app.uploads import swept_folder
from vqvdm.app.waiting import bound
from vqvdm.errors import InputError

_LARGEST_UPLOAD = "100mb"
_PORTS = 20  # tried one after the other


def make_server(studio: Studio, page: gr.Blocks) -> FastAPI:
    """The whole application: page, HTTP API, and `media/` for the files."""
    PIL.Image.MAX_IMAGE_PIXELS = None  # gradio opens pictures for their headers alone; `vqvdm.decode` has a limit
    app = FastAPI(title="vqvdm", docs_url=None, redoc_url=None, openapi_url=None)
    _serve_media(app, studio.gallery)
    bound(page)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        max_file_size=_LARGEST_UPLOAD,
        show_error=True,
        footer_links=["api"],
        ssr_mode=False,
        enable_monitoring=False,
        **looks(),
    )


def _serve_media(app: FastAPI, gallery: Gallery) -> None:
    def asked(tokens: str) -> list[str]:
        listed = tokens.split(",")
        if len(listed) > MOST_VIDEOS:
            raise InputError(f"{len(listed)} videos are asked for; {MOST_VIDEOS} is the most")
        return listed

    @app.get("/media/all.zip")
    def archive(tokens: str, form: str = "mp4") -> Response:
        with _missing():
            return _download(gallery.archive(asked(tokens), form), "zip", f"videos-{form}.zip")

    @app.get("/media/sheet.png")
    def sheet(tokens: str) -> Response:
        with _missing():
            return _download(gallery.sheet(asked(tokens)), "png", "sheet.png")

    @app.get("/media/{name}")
    def media(name: str, download: bool = False) -> Response:
        token, _, form = name.partition(".")
        with _missing():
            item, path = gallery.get(token), gallery.file(token, form)
        kind = "attachment" if download else "inline"
        return FileResponse(
            path, media_type=MEDIA_TYPES[form], filename=f"{item.name}.{form}", content_disposition_type=kind
        )


def _download(data: bytes, form: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=MEDIA_TYPES[form], headers=headers)


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise HTTPException(404, str(error)) from error


class Server:
    """The application on a port of this machine; a context, since it holds the port and a folder for uploads.

    Args:
        studio: the model.
        runs: a folder of runs to watch.
        host: the address to listen on.
        port: of the address, 0 any free one; None takes the first free one from 7860 on.

    Raises:
        InputError: on entering, if the port is taken or the address is not this machine's.
    """

    def __init__(self, studio: Studio, runs: Path, host: str, port: int | None) -> None:
        self._studio, self._runs, self._host, self._port = studio, runs, host, port
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            self._listener = stack.enter_context(_listening(self._host, self._port))
            uploads = stack.enter_context(swept_folder(self._forget))
            os.environ["GRADIO_TEMP_DIR"] = str(uploads)
            self._page = make_page(self._studio, self._runs)
            app = make_server(self._studio, self._page)
            self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
            self._held = stack.pop_all()
        return self

    def _forget(self, files: set[str]) -> None:
        """Let gradio forget files that are gone."""
        for known in self._page.temp_file_sets:
            known.difference_update(files)

    def __exit__(self, *problem: object) -> None:
        self._held.close()

    @property
    def address(self) -> str:
        """Where the page is."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._listener.getsockname()[1]}"

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        return self._server.started

    def run(self) -> None:
        """Serve until Ctrl-C, or `stop` from another thread."""
        # A tab that is open when the page ends is cut off, which is no error of anybody's.
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(_not_cut_off)
        try:
            self._server.run(sockets=[self._listener])
        finally:
            logger.removeFilter(_not_cut_off)

    def stop(self) -> None:
        """End `run`."""
        self._server.should_exit = True


def _not_cut_off(record: logging.LogRecord) -> bool:
    """False of what uvicorn writes of requests that it cancels at its end, and of uploads that break off."""
    cancelled = record.exc_info is not None and isinstance(
        record.exc_info[1], asyncio.CancelledError | ClientDisconnect
    )
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


@contextlib.contextmanager
def _listening(host: str, port: int | None) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: str | None = None
    tried = range(7860, 7860 + _PORTS) if port is None else [port]
    for number in tried:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, number))
                listener.listen()  # who knows the address and comes before the page is up waits, and is not refused
            except OSError as error:
                problem = error.strerror
                continue
            yield listener
            return
    first = tried[0] if len(tried) == 1 else f"{tried[0]} to {tried[-1]}"
    raise InputError(f"cannot listen on {host}, port {first}: {problem}; name another with --host or --port")
