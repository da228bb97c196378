#!/usr/bin/env python
"""Time the page as a user meets it, and take its picture: from the command to the page, from the click to the video.

scripts/page.py toy --repeats 3 --pictures pictures

It needs gradio, playwright and Chromium. A video is counted from the click on Generate (one class, the model's own
settings) until the browser plays it. The first click comes as soon as the page is there, while the model is still being
loaded; the next one finds it loaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Page, sync_playwright

from vqvdm.evaluation.report import table
from vqvdm.machine import machine

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIDEO = "document.querySelector('#videos video')"
PLAYS = f"{VIDEO}?.currentTime > 0"
SIZES = {"wide": (1280, 900), "phone": (375, 780)}


def main() -> None:
    """Time and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="toy")
    parser.add_argument("--repeats", type=int, default=3, help="of the command")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the page, light and dark, wide and not")
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        sys.exit("no Chromium here: apt-get install chromium")
    rows = []
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        for repeat in range(asked.repeats):
            began = time.monotonic()
            with served(asked.model) as address:
                up = time.monotonic() - began
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(address)
                page.wait_for_selector("#generate")
                drawn = time.monotonic() - began
                rows.append({"page up": up, "page drawn": drawn, **first_videos(page)})
                if asked.pictures and repeat == 0:
                    take_pictures(browser, address, asked.pictures)
                page.close()
    names = list(rows[0])
    print(table(names, [[f"{row[name]:.1f} s" for name in names] for row in rows]))
    print("median: " + ", ".join(f"{name} {median(row[name] for row in rows):.1f} s" for name in names))
    print(machine())


@contextmanager
def served(model: str) -> Iterator[str]:
    """`vqvdm app` on a free port, from the moment it says its address."""
    with TemporaryDirectory() as runs:
        words = [sys.executable, "-m", "vqvdm", "app", model, "--port", "0", "--runs", runs]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                told = process.stdout.readline()
                address = re.search(r"http://\S+", told)
                if address is None:
                    sys.exit(f"vqvdm app said {told!r}")
                yield address[0]
            finally:
                process.terminate()


def first_videos(page: Page) -> dict[str, float]:
    """Seconds from the click, for a video that is asked for at once and for one more."""
    found = {}
    for number, box in enumerate(page.locator(".chips input").all()):
        box.set_checked(number == 0)
    page.wait_for_timeout(500)
    for name in ("video asked for at once", "next video"):
        before = page.evaluate(f"{VIDEO}?.src ?? ''")
        began = time.monotonic()
        page.click("#generate")
        page.wait_for_selector("[role=progressbar]", timeout=60_000)
        sight = time.monotonic() - began
        page.wait_for_function(f"{PLAYS} && {VIDEO}.src != {before!r}", timeout=60_000)
        found |= {f"{name}, at work": sight, name: time.monotonic() - began}
        page.wait_for_timeout(500)
    return found


def take_pictures(browser: Any, address: str, folder: Path) -> None:
    """Of every tab, light and dark, on a wide and a narrow window."""
    folder.mkdir(parents=True, exist_ok=True)
    for look in ("light", "dark"):
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=look)
            page.goto(address)
            page.wait_for_selector("#generate")
            page.wait_for_timeout(500)
            page.click("#generate")
            page.wait_for_selector("#videos video", timeout=120_000)
            page.locator("#videos video").first.scroll_into_view_if_needed()  # below the fold nothing plays
            page.wait_for_function(PLAYS, timeout=120_000)
            page.screenshot(path=folder / f"generate-{look}-{name}.png", full_page=True)
            for tab in ("Reconstruct", "Inside", "Runs"):
                page.get_by_role("tab", name=tab).click()
                page.wait_for_timeout(1500)
                page.screenshot(path=folder / f"{tab.lower()}-{look}-{name}.png", full_page=True)
            page.close()


if __name__ == "__main__":
    main()
