"""`vqvdm app`: the web page."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from vqvdm import models
from vqvdm.app.description import of_folder
from vqvdm.errors import InputError

if TYPE_CHECKING:
    from vqvdm.app.maker import Maker

T = TypeVar("T")


def main(
    model: str = models.DEFAULT,
    *,
    runs: Path = Path("runs"),
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Open a web page: generate, reconstruct, look inside a model, watch runs.

    It needs the extra `app` (gradio), and no network. Only this machine can reach it, unless another host is given;
    then anyone who reaches that address can use it.

    Args:
        model: a pipeline folder, a run folder, a name on the hub (owner/name), or the model that comes with the
            package, of moving shapes.
        runs: in which run folders lie.
        host: the address to listen on.
        port: the first free one from 7860 on by default.
        device: cpu, cuda, mps or auto.
        dtype: in which the networks compute; auto is bfloat16 where the processor is fast at it, else float32.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio; install it with: pip install 'vqvdm[app]'")
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"--port must be from 0 to 65535, not {port}")
    few_arenas()
    folder, name = models.find_pipeline(model), models.model_name(model)

    def load() -> Maker:
        gc.disable()  # of all that is imported nothing is garbage, and to look for some takes a second
        try:
            from vqvdm.app.maker import Maker
            from vqvdm.loading import load_pipeline, pick_device, pick_dtype

            return Maker(load_pipeline(model, device, pick_dtype(dtype, pick_device(device))), name)
        finally:
            gc.enable()

    known = of_folder(name, folder) if folder else None
    maker: futures.Future[Maker] = futures.Future()
    if known is None:
        maker.set_result(load())
        known = maker.result().description
    from vqvdm.app.gallery import Gallery
    from vqvdm.app.server import Server
    from vqvdm.app.studio import Studio

    with Gallery() as gallery:
        studio = Studio(known, maker, gallery)
        with contextlib.closing(studio), Server(studio, runs, host, port) as server:
            if not maker.done():
                threading.Thread(target=_fulfil, args=(maker, load), daemon=True).start()
            maker.add_done_callback(lambda made: server.stop() if made.exception() else None)
            print(f"vqvdm app: {server.address}  (Ctrl-C ends it)", flush=True)
            server.run()
    if maker.done():
        maker.result()  # raises what kept the model from being loaded


def _fulfil(future: futures.Future[T], make: Callable[[], T]) -> None:
    """The page is up while the libraries of the networks, which take longer than it, are still being loaded."""
    try:
        future.set_result(make())
    except BaseException as problem:  # noqa: BLE001  raised where it is asked for
        future.set_exception(problem)


def few_arenas(most: int = 2) -> None:
    """Let this process's threads share so many of glibc's arenas; elsewhere nothing happens.

    Else each of gradio's threads comes to have its own, which keeps what a video once needed: a hundred MiB per
    thousand videos, for a long time. Only one of them has much to do at a time, so none waits for another.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc; Windows
        ctypes.CDLL(None).mallopt(-8, most)  # M_ARENA_MAX, as MALLOC_ARENA_MAX in the environment
