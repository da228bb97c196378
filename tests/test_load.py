"""Many users of the page at once: none gets past the queue or at another's work, and nothing asked for stays."""

from __future__ import annotations

import gc
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiny_pipeline import tiny_studio

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'vqvdm[app]'")

import httpx
from gradio_client import Client
from gradio_client.utils import QueueError
from starlette.requests import ClientDisconnect

from vqvdm.app.command import main
from vqvdm.app.gallery import Gallery, Item
from vqvdm.app.page import make_page
from vqvdm.app.server import Server, _not_cut_off
from vqvdm.app.settings import Progress, Settings
from vqvdm.app.studio import Studio
from vqvdm.app.uploads import sweep, swept_folder
from vqvdm.app.waiting import Visitors
from vqvdm.errors import InputError
from vqvdm.video import to_video

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")
SCRIPT = Path(__file__).parents[1] / "scripts" / "load.py"
HTTP = httpx.Client(timeout=30)
LONG = Settings(("up",), frames=4, steps=250)

torch.set_num_threads(1)


@pytest.fixture
def studio():
    with Gallery() as gallery:
        yield tiny_studio(gallery)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page that answers: address, API, studio, gradio's page, and functions by their names."""
    with Gallery() as gallery:
        studio = tiny_studio(gallery)
        with Server(studio, tmp_path_factory.mktemp("runs"), "127.0.0.1", 0) as server:
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            while not server.is_up:
                time.sleep(0.02)
            calls = {call["api_name"]: call for call in HTTP.get(f"{server.address}/config").json()["dependencies"]}
            api = f"{server.address}/gradio_api"
            yield SimpleNamespace(address=server.address, api=api, studio=studio, page=server._page, calls=calls)
            server.stop()
            thread.join(10)
    gc.collect()  # event loops that gradio leaves open, while that is no error yet


def ask(served, session: str, steps: int = 2, count: int = 1) -> httpx.Response:
    """Join the queue for a video."""
    body = {"data": [["up"], count, 8, 4, 2, steps, "", 5, "gif"], "session_hash": session}
    return HTTP.post(f"{served.api}/queue/join", json={**body, "fn_index": served.calls["generate"]["id"]})


def read(served, session: str, until: str = "close_stream") -> None:
    """Read the events of a session up to one of this kind, then hang up."""
    query = {"session_hash": session}
    with HTTP.stream("GET", f"{served.api}/queue/data", params=query) as stream:
        for line in stream.iter_lines():
            if f'"msg":"{until}"' in line:
                return
    raise AssertionError(f"no {until}")


def free(studio: Studio, seconds: float) -> bool:
    """Whether the model has nothing to do within so many seconds."""
    end = time.monotonic() + seconds
    while studio._running or studio.lock.locked():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_no_request_gets_past_the_queue(served):
    body = {"data": [["up"], 1, 8, 4, 2, 2, "", 5, "gif"]}
    for name in ("generate", "reconstruct", "on_generate"):
        assert HTTP.post(f"{served.api}/run/{name}", json=body).status_code == 404
    assert ask(served, "one").status_code == 200
    read(served, "one")


def test_a_full_queue_says_that_it_is_busy_and_empties(served, monkeypatch):
    assert served.page._queue.max_size == 20
    monkeypatch.setattr(served.page._queue, "max_size", 2)
    with served.studio.lock:  # the first one waits for the model, the others for the first one
        assert ask(served, "full-0").status_code == 200
        while not served.studio._running:
            time.sleep(0.02)
        assert {ask(served, f"full-{number}").status_code for number in (1, 2)} == {200}
        refused = ask(served, "too many")
        assert (refused.status_code, refused.json()["detail"]) == (503, "Queue is full. Max size is 2 and size is 2.")
        client = Client(served.address, verbose=False)
        with pytest.raises(QueueError, match="Queue is full! Please try again"):
            client.predict(["up"], 1, 8, 4, 2, 2, "", 5, "gif", api_name="/generate")
        client.close()
        body = {"data": [None], "fn_index": served.calls["look"]["id"], "session_hash": "full-0"}
        looked = HTTP.post(f"{served.api}/run/predict", json=body)
        assert looked.status_code == 200, "what every open tab asks for takes nobody's place"
    read(served, "full-2")
    assert free(served.studio, 5)


@pytest.mark.parametrize("way", ["hang up", "cancel"])
def test_who_leaves_the_api_leaves_no_work_behind(served, way):
    called: list[int] = []
    hook = served.studio.maker.pipeline.denoiser.register_forward_hook(lambda *_: called.append(time.sleep(0.01) or 1))
    try:
        event = ask(served, way, steps=250, count=16).json()["event_id"]
        read(served, way, until="process_starts")
        while not called:
            time.sleep(0.02)
        if way == "cancel":
            number = served.calls["generate"]["id"]
            body = {"session_hash": way, "fn_index": number, "event_id": event}
            assert HTTP.post(f"{served.api}/cancel", json=body).status_code == 200
        assert free(served.studio, 15), "the model works for nobody"
        assert len(called) < 2000
    finally:
        hook.remove()
    assert ask(served, "next").status_code == 200
    read(served, "next")


def test_nobody_stops_the_work_of_another(served):
    number = served.calls["stop"]["id"]
    assert ask(served, "mine", steps=250).status_code == 200
    while not served.studio._running:
        time.sleep(0.02)
    for session in ("", "another", None):
        body = {"data": [], "fn_index": number, "session_hash": session}
        assert HTTP.post(f"{served.api}/run/predict", json=body).status_code == 200
    assert not any(stopped.is_set() for _, stopped in served.studio._running)
    HTTP.post(f"{served.api}/run/predict", json={"data": [], "fn_index": number, "session_hash": "mine"})
    assert free(served.studio, 5)


def test_what_nobody_asked_for_is_stopped_by_nobody(studio):
    job = studio.generate(LONG)
    next(job)
    studio.stop("")
    assert isinstance(next(job), Progress)
    job.close()


def test_who_waits_for_the_model_can_stop_and_leave(studio):
    with studio.lock:
        jobs = [studio.generate(LONG, session=name) for name in ("stops", "leaves")]
        assert [next(job).step for job in jobs] == [0, 0]
        studio.stop("stops")
        assert list(jobs[0]) == [[]]
        jobs[1].close()
        assert studio._running == []
    assert len(list(studio.generate(Settings(("up",), frames=4, steps=2)))) == 4


def test_the_page_says_that_the_model_is_being_loaded_and_stops_then_too():
    with Gallery() as gallery:
        studio = Studio(tiny_studio(gallery).description, Future(), gallery)
        page = make_page(studio, Path("runs"))
    (generate,) = (each.fn for each in page.fns.values() if each.name == "on_generate")
    values = (["up"], 1, 8, 4, 2, 2, "", 0, False, None, None, None, None)
    said = generate(SimpleNamespace(session_hash="me"), *values)
    assert "The model is being loaded." in str(next(said))
    assert "The model is being loaded." in str(next(said))
    studio.stop("me")
    assert "Stopped." in str(list(said)[-1])
    gc.collect()  # gradio's event loop, while that is no error yet


def test_closing_does_not_wait_for_the_step(studio):
    studio.maker.pipeline.denoiser.register_forward_hook(lambda *_: time.sleep(1))
    job = studio.generate(LONG)
    next(job)
    began = time.monotonic()
    job.close()
    assert time.monotonic() - began < 0.5, "gradio closes it in the thread that answers everybody"
    assert free(studio, 10)
    assert len(studio.gallery) == 0


def test_what_is_stopped_after_the_last_step_is_not_kept(studio, monkeypatch):
    def stopping(clip: torch.Tensor) -> np.ndarray:
        studio.stop("mine")
        return to_video(clip)

    monkeypatch.setattr("vqvdm.app.maker.to_video", stopping)
    *_, last = studio.generate(Settings(("up",), frames=4, steps=1), session="mine")
    assert last == [] and len(studio.gallery) == 0


def test_files_of_the_api_are_kept_with_the_uploads_alone(served, tmp_path):
    client = Client(served.address, verbose=False, download_files=str(tmp_path))
    before = len(served.studio.gallery)
    files, facts = client.predict(["up"], 1, 8, 4, 2, 2, "", 5, "gif", api_name="/generate")
    again, others = client.predict(["up"], 1, 8.0, 4, 2.0, 2, "", 5, "gif", api_name="/generate")
    client.close()
    assert len(served.studio.gallery) == before, "nothing of the API takes the place of the page's videos"
    assert Path(files[0]).name == "up-00.gif"
    assert Path(files[0]).read_bytes() == Path(again[0]).read_bytes() and facts == others
    kept = list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("up-00.gif"))
    assert min(len(path.parent.name) for path in kept) >= 16, "where another's file lies cannot be guessed"


def test_gradio_remembers_few(served):
    for number in range(3):
        assert ask(served, f"visitor-{number}").status_code == 200
        read(served, f"visitor-{number}")
    queue = served.page._queue
    assert len(queue.event_analytics) <= 1 and queue.cached_event_analytics_summary == {"functions": {}}
    assert isinstance(queue.pending_messages_per_session, Visitors)
    assert served.page.state_holder.capacity == queue.pending_messages_per_session.max_size == 200


def test_visitors_are_forgotten_in_the_order_of_their_last_use():
    events = {name: {name.upper()} for name in "abc"}
    visitors = Visitors(2, events)
    visitors["a"] = visitors["b"] = 1
    assert visitors["a"] == 1
    visitors["c"] = 1
    assert list(visitors) == ["a", "c"] and set(events) == {"a", "c"}
    del visitors["a"]
    assert set(events) == {"c"}


def test_sweeping_takes_the_old_and_what_is_too_much(tmp_path):
    """Times of change cannot be set, so the files are made one after the other."""
    paths = [tmp_path / "folder" / f"{number}" for number in range(4)] + [tmp_path / "broken-off"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        time.sleep(0.02)
    assert sweep(tmp_path, most=500) == []
    os.utime(paths[0])  # it was used again
    assert set(sweep(tmp_path, most=300)) == {paths[1], paths[2]}
    time.sleep(0.05)
    assert set(sweep(tmp_path, kept=0.04)) == {paths[0], paths[3], paths[4]}
    time.sleep(0.05)
    assert sweep(tmp_path, kept=0.04) == []
    assert list(tmp_path.iterdir()) == [], "nor does an empty folder stay"


def test_the_folder_is_swept_and_gradio_told(monkeypatch):
    monkeypatch.setattr("vqvdm.app.uploads.sweep", lambda folder: [folder / "gone"])
    told = threading.Event()
    names: set[str] = set()
    with swept_folder(lambda gone: (names.update(gone), told.set()), every=0.01) as folder:
        assert told.wait(5)
    assert names == {str(folder / "gone")} and not folder.exists()


def test_an_upload_that_breaks_off_is_no_error_of_the_page():
    problem = ClientDisconnect()
    told = (ClientDisconnect, problem, None)
    assert not _not_cut_off(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", (), told))


def test_an_item_that_is_taken_is_kept_no_longer():
    video = np.zeros((4, 16, 16, 3), np.uint8)
    with Gallery(most=3 * video.nbytes) as gallery:
        tokens = [gallery.add(Item(video, 8.0, "up-00")) for _ in range(3)]
        assert gallery.take(tokens[2]).name == "up-00"
        gallery.add(Item(video, 8.0, "left-00"))
        assert gallery.get(tokens[0]).name == "up-00", "its bytes are free again"
        with pytest.raises(InputError, match="no longer kept"):
            gallery.take(tokens[2])


ARENAS = """
import threading
from vqvdm.app.command import few_arenas
few_arenas()
together = threading.Barrier(20)
def work():
    together.wait()
    kept = [bytearray(100_000) for _ in range(10)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(line.split()[5:] == [] and "---p" in line for line in open("/proc/self/maps")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_memory_that_is_free():
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True)
    # An arena, like the stack of a thread, has a part that nobody may touch: one a stack is there in any case.
    unlimited = subprocess.run(
        [sys.executable, "-c", ARENAS.replace("\nfew_arenas()", "")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < int(unlimited.stdout) - 5


def test_the_page_begins_with_that(monkeypatch):
    class Begun(Exception):
        pass

    def begun() -> None:
        raise Begun

    monkeypatch.setattr("vqvdm.app.command.few_arenas", begun)
    with pytest.raises(Begun):
        main("toy")


@pytest.mark.slow
def test_users_at_once_are_served_rightly():
    words = ["--users", "8", "--minutes", "0.3", "--frames", "4"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    assert int(rows["answered, and right"]) > 5 and rows["mixed up"] == rows["failed"] == rows["hung"] == "0"
