"""The page as a user meets it, in a real Chromium, and its HTTP API; both are left out where they are not installed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_pipeline import tiny_studio
from vqvdm.errors import InputError
from vqvdm.runs import LOG
from vqvdm.video import read_video, write_video

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'vqvdm[app]'")

from vqvdm.app.gallery import Gallery
from vqvdm.app.server import Server, _listening, _not_cut_off

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

DOCUMENT = Path(__file__).parents[1] / "docs" / "page.md"

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    runs = tmp_path_factory.mktemp("runs")
    (runs / "first").mkdir()
    records = [{"stage": "tokenizer", "step": step, "loss": 1 / step} for step in (10, 20, 30)]
    (runs / "first" / LOG).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with Gallery() as gallery, Server(tiny_studio(gallery), runs, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.is_up:
            time.sleep(0.05)
        yield server.address
        server.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the page's tests need Chromium: apt-get install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page without a word in its console, looked at when the test is done."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    words: list[str] = []
    page.on("console", lambda message: words.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: words.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(300)
    yield page
    page.close()
    assert words == []


def tick_only(page, *names: str) -> None:
    for box in page.locator(".chips input").all():
        box.set_checked(box.get_attribute("name") in names)


def set_steps(page, steps: int) -> None:
    if not page.get_by_label("number input for Steps").is_visible():
        page.get_by_role("button", name="Sampling").click()
    page.get_by_label("number input for Steps").fill(str(steps))
    page.get_by_label("number input for Steps").press("Tab")


def generate(page) -> None:
    page.click("#generate")
    page.wait_for_selector("#videos video", timeout=30_000)


def test_generated_videos_play(page):
    tick_only(page, "up", "left")
    generate(page)
    assert page.locator("#videos video").count() == 2
    video = page.locator("#videos video").first
    video.evaluate("video => new Promise(done => video.readyState > 3 ? done() : (video.oncanplaythrough = done))")
    before = video.evaluate("video => video.currentTime")
    pixels = """video => {
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 32;
        const pen = canvas.getContext('2d');
        pen.drawImage(video, 0, 0, 32, 32);
        return Array.from(pen.getImageData(0, 0, 32, 32).data);
    }"""
    seen = [video.evaluate(pixels)]
    for _ in range(6):
        page.wait_for_timeout(90)
        seen.append(video.evaluate(pixels))
    assert any(np.abs(np.subtract(seen[0], other)).mean() > 0.5 for other in seen[1:]), "pixels change"
    assert video.evaluate("video => video.currentTime") != before
    assert "2 videos in" in page.locator("#progress").inner_text()
    video.click()
    assert video.evaluate("video => video.paused"), "a click holds it still"
    video.press(" ")
    assert not video.evaluate("video => video.paused"), "and the space bar lets it go on"


def test_files_can_be_had(page, address):
    tick_only(page, "up", "left")
    generate(page)
    for form in ("MP4", "GIF", "WebP", "PNG"):
        with page.expect_download() as download:
            page.locator("#videos figure").first.get_by_role("link", name=form).click()
        assert download.value.suggested_filename.endswith(form.lower())
        assert Path(download.value.path()).stat().st_size > 200
    with page.expect_download() as download:
        page.locator(".downloads").get_by_role("link", name="GIF").click()
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"


def test_stop_stops(page):
    tick_only(page, "up")
    set_steps(page, 100)
    page.get_by_label("number input for Videos of each").fill("16")
    page.get_by_label("number input for Videos of each").press("Tab")
    page.click("#generate")
    page.wait_for_selector("[role=progressbar]")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#progress').innerText.includes('Stopped')", timeout=10_000)
    set_steps(page, 2)
    page.get_by_label("number input for Videos of each").fill("1")
    page.get_by_label("number input for Videos of each").press("Tab")
    generate(page)


def test_settings_give_the_same_video_and_continue_makes_it_longer(page):
    tick_only(page, "left")
    set_steps(page, 3)
    generate(page)
    first = page.locator("#videos video").first.get_attribute("src")
    picture = page.request.get(f"{page.url}{first}").body()
    page.locator("#videos").get_by_role("button", name="take the settings").click()
    page.wait_for_function("document.querySelector('#progress').innerText.includes('are in the form')")
    page.click("#generate")
    page.wait_for_function(f"!document.querySelector('#videos video[src=\"{first}\"]')")
    page.wait_for_selector("#videos video", timeout=30_000)
    again = page.locator("#videos video").first.get_attribute("src")
    assert page.request.get(f"{page.url}{again}").body() == picture
    page.locator("#videos").get_by_role("button", name="continue").click()
    page.wait_for_function(
        "document.querySelector('#videos figcaption')?.innerText.includes('6 frames')", timeout=30_000
    )


def test_a_video_is_reconstructed_and_a_bad_one_refused(page, tmp_path):
    write_video(tmp_path / "video.gif", np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8), 8.0)
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 100)
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "video.gif")
    page.wait_for_selector("#reconstruction video", timeout=20_000)
    assert page.locator("#reconstruction video").count() == 3
    assert "PSNR" in page.locator("#reconstruction").inner_text()
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "bad.mp4")
    page.wait_for_selector(".toast-body", timeout=20_000)
    words = page.locator(".toast-body").inner_text()
    assert "bad.mp4" in words and str(tmp_path) not in words
    page.get_by_role("tab", name="Generate").click()
    tick_only(page, "up")
    generate(page)


def test_inside_and_runs_show_something(page):
    page.get_by_role("tab", name="Inside").click()
    page.locator("button:visible", has_text="Take one the model made").click()
    page.wait_for_selector(".inside img", timeout=20_000)
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector("#curves svg", timeout=20_000)
    assert "30 updates" in page.locator("#curves").inner_text()


def test_keyboard_alone(page):
    page.locator(".chips input").first.focus()
    page.keyboard.press("Space")
    page.locator("#generate").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#videos video", timeout=30_000)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement?.dataset?.act") == "continue":
            break
    assert page.evaluate("document.activeElement?.dataset?.act") == "continue"
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=progressbar]", timeout=10_000)


def test_a_narrow_window_needs_no_sideways_scrolling(browser, address):
    page = browser.new_page(viewport={"width": 375, "height": 780}, color_scheme="dark")
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(500)
    generate(page)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.get_by_role("tab").count() == 4, "none hides in a menu"
    page.close()


def test_many_clicks_at_once_leave_a_working_page(page):
    tick_only(page, "up")
    for _ in range(10):
        page.click("#generate")
    page.wait_for_selector("#videos video", timeout=60_000)
    page.wait_for_function("!document.querySelector('[role=progressbar]')", timeout=60_000)


def test_a_closed_tab_ends_its_work(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(300)
    set_steps(page, 100)
    page.get_by_label("number input for Videos of each").fill("16")
    page.get_by_label("number input for Videos of each").press("Tab")
    page.click("#generate")
    page.wait_for_selector("[role=progressbar]")
    page.close()
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(300)
    tick_only(page, "up")
    began = time.monotonic()
    generate(page)
    assert time.monotonic() - began < 25
    page.close()


def test_http_api(address, tmp_path):
    client_of = pytest.importorskip("gradio_client").Client
    client = client_of(address, verbose=False, download_files=str(tmp_path))
    files, facts = client.predict(["up", "left"], 1, 8, 4, 2, 3, "", 5, "gif", api_name="/generate")
    assert [fact["class"] for fact in facts] == ["up", "left"]
    assert len(read_video(files[0])) == 4
    with pytest.raises(Exception, match="unknown class 'upp'"):
        client.predict(["upp"], 1, 8, 4, 2, 3, "", 5, "gif", api_name="/generate")
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    told: dict = {}
    exec(example.replace("http://127.0.0.1:7860", address), told)
    assert len(told["files"]) == 4
    assert "PSNR" in told["figures"] and len(read_video(told["file"])) == 4


def png(path: Path, side: int) -> None:
    """A black picture of side x side pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes((side + 7) // 8 + 1)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_hostile_uploads_are_refused_by_name_and_the_page_lives_on(address, tmp_path):
    client_of = pytest.importorskip("gradio_client").Client
    handle_file = pytest.importorskip("gradio_client").handle_file
    good = tmp_path / "good.mp4"
    write_video(good, np.random.default_rng(0).integers(0, 256, (8, 40, 48, 3), dtype=np.uint8), 8.0)
    frame = struct.pack("<HHHH", 0, 0, 65535, 65535)
    hostile = {
        "empty.mp4": b"",
        "empty.gif": b"",
        "words.gif": b"hello " * 100,
        "cut.mp4": good.read_bytes()[: good.stat().st_size // 2],
        "lying.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff," + frame + b"\0\x02\x02\x44\x01\0;",
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "<img src=x onerror=alert(1)>.mp4": b"nothing" * 50,
    }
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    png(tmp_path / "huge.png", 40_000)
    client = client_of(address, verbose=False, download_files=str(tmp_path / "made"))
    for name in (*hostile, "huge.png"):
        with pytest.raises(Exception, match=r"\S") as refused:
            client.predict(handle_file(str(tmp_path / name)), 0, api_name="/reconstruct")
        message = str(refused.value)
        assert Path(name).stem.strip("<>") in message and "vqvdm-uploads" not in message, message
        assert "NoneType" not in message, message
    file, figures = client.predict(handle_file(str(good)), 0, api_name="/reconstruct")
    assert len(read_video(file)) == 4 and "PSNR" in figures


def test_a_picture_of_too_many_pixels_is_refused(page, tmp_path):
    png(tmp_path / "bomb.png", 13_000)
    page.get_by_role("button", name="Begin, end or fill in").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "bomb.png")
    page.wait_for_timeout(1500)
    tick_only(page, "up")
    page.click("#generate")
    page.wait_for_selector(".toast-body", timeout=20_000)
    words = page.locator(".toast-body").first.inner_text()
    assert "bomb.png: frames of 13000x13000 pixels are too large" in words and "/tmp" not in words
    page.reload()
    page.wait_for_selector("#generate")
    page.wait_for_timeout(300)
    generate(page)


def test_addresses_of_files(address):
    import httpx

    assert httpx.get(f"{address}/media/none.mp4").status_code == 404
    assert httpx.get(f"{address}/media/..%2F..%2Fetc%2Fpasswd").status_code == 404
    assert httpx.get(f"{address}/media/all.zip", params={"tokens": "a,b"}).status_code == 404


def test_what_is_cut_off_at_the_end_is_no_error_but_others_are():
    def record(message: str, problem: BaseException | None = None) -> logging.LogRecord:
        told = None if problem is None else (type(problem), problem, None)
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, message, (), told)

    assert not _not_cut_off(record("Exception in ASGI application", asyncio.CancelledError()))
    assert not _not_cut_off(record("Cancel 1 running task(s), timeout graceful shutdown exceeded"))
    assert _not_cut_off(record("Exception in ASGI application", ValueError()))
    assert _not_cut_off(record("the address is taken"))


def test_who_comes_before_the_page_is_up_waits_and_is_not_refused():
    with _listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=10):
        pass


def test_two_pages_begun_at_once_take_two_ports():
    with _listening("127.0.0.1", None) as one, _listening("127.0.0.1", None) as other:
        assert one.getsockname() != other.getsockname()


def test_a_taken_port_is_named():
    with socket.socket() as other, Gallery() as gallery:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        studio = tiny_studio(gallery)
        with pytest.raises(InputError, match=f"port {port}"), Server(studio, Path("runs"), "127.0.0.1", port):
            pass


def test_pictures_can_be_given(page, tmp_path):
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "first.png")
    page.get_by_role("button", name="Begin, end or fill in").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "first.png")
    page.wait_for_timeout(800)
    tick_only(page, "up")
    generate(page)
