#!/usr/bin/env python
"""Put many users before the page at once, and see that each gets the own answers, in order, and that nothing leaks.

scripts/load.py --users 50 --minutes 60

It starts `vqvdm app` with the bundled model as a process of its own, or takes the `--address` of one that runs (whose
memory it cannot see). Every user is a thread that speaks the page's own protocol over HTTP: it joins the queue, reads
the stream of events, fetches the files. It asks for small videos of a class, frame rate and seed of its own, through
the HTTP API and through the page's button; it sends videos to reconstruct, some of which are none; it asks for two
things at once; it goes away in the middle, cancels, or breaks an upload off. Then it is a new visitor.

An answer is right if class, frame rate and seed in the file are what was asked for, and the bytes those of the same
request asked alone: before the load for one request of each user, after it for some of the others. All else must be
the word that the page is busy, or why a file is refused. Exit status 1 if anything was mixed up, failed or hung, or if
the server grew by more than stated.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
import psutil

from vqvdm.evaluation.report import table
from vqvdm.generation import video_seed
from vqvdm.video import write_video

RATES = (4, 8, 12, 16)
ENOUGH = 500  # clips, before which the page is not warm: it remembers its last 200 visitors
DEADLINE = 300.0  # seconds without an answer after which a request hangs
RECHECKED = 10  # requests that are asked again, alone, when all is over
# What is no leak: temporary files, MiB, of which the page keeps so many; files and threads more than at the start.
MOST = {"temporary files": 1700, "open files": 20, "threads": 40}
# What a user does next, and how often.
ACTS = {"one": 55, "two": 10, "reconstruct": 10, "hostile": 10, "leave": 10, "cancel": 10, "cut": 5}


class Busy(Exception):
    """The page said that it is busy."""


@dataclass(frozen=True)
class Wish:
    """A video that is asked for."""

    name: str  # of the class
    fps: int
    seed: int
    steps: int = 2


class Page:
    """The page's own protocol at an address, as one visitor who asks for videos of so many frames."""

    def __init__(self, address: str, frames: int) -> None:
        self.address, self.frames = address, frames
        self.api = f"{address}/gradio_api"
        # Dropped before the server does it, after five idle seconds, in the moment of a request.
        limits = httpx.Limits(keepalive_expiry=2.0)
        self.http = httpx.Client(timeout=httpx.Timeout(60.0, read=DEADLINE), limits=limits)
        config = self.http.get(f"{address}/config").json()
        parts = {part["id"]: part["props"] for part in config["components"]}
        buttons = {part["elem_id"]: number for number, part in parts.items() if part.get("elem_id")}
        calls = config["dependencies"]
        (press,) = [call for call in calls if [buttons["generate"], "click"] in call["targets"]]
        self._calls = {call["api_name"]: call["id"] for call in calls} | {"press": press["id"]}
        self._form = [parts[number] for number in press["inputs"]]
        choices = next(part["choices"] for part in self._form if part.get("label") == "Classes")
        self.classes = [choice[1] for choice in choices]
        self.session = ""

    def renew(self) -> None:
        """Be another visitor."""
        self.session = f"{random.getrandbits(64):x}"

    def call(self, name: str, data: list[Any]) -> tuple[int, str]:
        """Join the queue; (number of the function, id of the event). `Busy` if that is what it says."""
        number = self._calls[name]
        body = {"data": data, "fn_index": number, "session_hash": self.session}
        answer = self.http.post(f"{self.api}/queue/join", json=body)
        if answer.status_code == 503 and "Queue is full" in answer.json()["detail"]:
            raise Busy
        answer.raise_for_status()
        return number, answer.json()["event_id"]

    def generate(self, wish: Wish) -> tuple[int, str]:
        """Ask for a video over the HTTP API."""
        data = [[wish.name], 1, wish.fps, self.frames, 2, wish.steps, "", wish.seed, "mp4"]
        return self.call("generate", data)

    def press(self, wish: Wish) -> tuple[int, str]:
        """Fill in the form and press the button."""
        asked = {"Classes": [wish.name], "Videos of each": 1, "Frames per second": wish.fps, "Frames": self.frames}
        asked |= {"Steps": wish.steps, "Guidance": 2, "Seed": wish.seed, "New seed each time": False}
        return self.call("press", [asked.get(part["label"], part.get("value")) for part in self._form])

    def reconstruct(self, path: str) -> tuple[int, str]:
        """Ask for the reconstruction of an upload."""
        return self.call("reconstruct", [{"path": path, "meta": {"_type": "gradio.FileData"}}, 0])

    def upload(self, name: str, content: bytes) -> str:
        """Send a file; return where the page keeps it."""
        answer = self.http.post(f"{self.api}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]

    def cut_off(self) -> None:
        """Begin an upload, and go away in its middle."""
        where = urlsplit(self.api)
        head = 'Content-Disposition: form-data; name="files"; filename="cut.mp4"'
        body = f"--edge\r\n{head}\r\nContent-Type: video/mp4\r\n\r\n{'x' * 100_000}"
        with socket.create_connection((where.hostname or "", where.port or 80), timeout=30) as line:
            line.sendall(
                f"POST {where.path}/upload HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: 900000\r\n"
                f"Content-Type: multipart/form-data; boundary=edge\r\n\r\n{body}".encode()
            )
            time.sleep(0.2)

    def answers(self, most: int | None = None) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """(id of the event, what it gave or the reason why not), as they come; only so many messages."""
        query = {"session_hash": self.session}
        with self.http.stream("GET", f"{self.api}/queue/data", params=query) as stream:
            began, lines = time.monotonic(), (line for line in stream.iter_lines() if line.startswith("data:"))
            for line in islice(lines, most):
                if time.monotonic() - began > DEADLINE:
                    raise TimeoutError
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    output = message["output"]
                    yield message["event_id"], output if message["success"] else str(output.get("error"))
                elif message["msg"] == "close_stream":
                    return
                elif message["msg"] == "unexpected_error":
                    raise RuntimeError(message["message"])

    def answer(self) -> dict[str, Any] | str:
        """The only one."""
        (found,) = [output for _, output in self.answers()]
        return found

    def cancel(self, number: int, event: str) -> None:
        """Take a request back."""
        asked = {"session_hash": self.session, "fn_index": number, "event_id": event}
        self.http.post(f"{self.api}/cancel", json=asked).raise_for_status()

    def video(self, output: dict[str, Any] | str) -> bytes:
        """The file that an answer names, of the API or of the page; an error if it is a reason why not."""
        if isinstance(output, str):
            raise RuntimeError(output)
        found = re.search(r"media/[\w-]+\.mp4", json.dumps(output["data"]))
        first = output["data"][0]
        url = f"{self.address}/{found[0]}" if found else (first[0] if isinstance(first, list) else first)["url"]
        answer = self.http.get(url)
        answer.raise_for_status()
        return answer.content


@dataclass
class Tally:
    """What came of all requests. Safe for threads."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from joining the queue to the file
    fresh: dict[Wish, bytes] = field(default_factory=dict)  # asked for the first time under load
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, *names: str) -> None:
        """One more of each."""
        with self.lock:
            self.counts.update(names)

    def served(self, seconds: float, clips: int = 1) -> None:
        """One more answer that is right."""
        with self.lock:
            self.counts.update({"served": 1, "clips": clips})
            self.seconds.append(seconds)

    def failed(self, kind: str, words: str) -> None:
        """Something that must not be: mixed up, failed, or hung."""
        with self.lock:
            self.counts[kind] += 1
            self.wrong.append(f"{kind}: {words[:300]}")


class User(threading.Thread):
    """Somebody who comes back again and again.

    Args:
        number: from which class, frame rate and seeds follow.
        page: to speak with.
        known: what the user's own wish gives when asked alone; None of a clip's: its reconstruction.
        uploads: names and contents; the first one is a video.
    """

    def __init__(self, number: int, page: Page, known: dict[Wish | None, bytes], uploads: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.page, self.known, self.uploads = page, known, uploads
        self.chance = random.Random(number)
        rate, seed = RATES[number % len(RATES)], 1_000_000 * (number + 1)
        self.own = Wish(page.classes[number % len(page.classes)], rate, seed)
        self.later = 0
        self.tally, self.done = Tally(), threading.Event()  # those of all, before it starts

    def run(self) -> None:
        """Ask until it is enough."""
        while not self.done.is_set():
            (act,) = self.chance.choices(list(ACTS), list(ACTS.values()))
            self.page.renew()
            self.tally.count("requests")
            try:
                getattr(self, f"do_{act}")()
            except Busy:
                self.tally.count("busy")
                time.sleep(self.chance.uniform(1, 10))
            except (TimeoutError, httpx.ReadTimeout):
                self.tally.failed("hung", act)
            except Exception as error:  # noqa: BLE001  whatever it is, it is counted and told
                self.tally.failed("failed", f"{act}: {type(error).__name__}: {error}")

    def wish(self) -> Wish:
        """The one that is known, or a new one."""
        if self.chance.random() < 0.5:
            return self.own
        self.later += 1
        return replace(self.own, seed=self.own.seed + self.later)

    def look(self, wish: Wish, output: dict[str, Any] | str, began: float) -> None:
        """Is this the video that was asked for?"""
        content = self.page.video(output)
        with av.open(io.BytesIO(content)) as container:
            told = json.loads(container.metadata["comment"])
        got, index = (told["class"], told["fps"], told["seed"]), self.page.classes.index(wish.name)
        expected = self.known.get(wish, content)
        if got != (wish.name, wish.fps, video_seed(wish.seed, index, 0)) or content != expected:
            self.tally.failed("mixed up", f"{wish} gave {got}, {len(content)} bytes of {len(expected)}")
            return
        with self.tally.lock:
            if wish not in self.known:
                self.tally.fresh[wish] = content
        self.tally.served(time.monotonic() - began)

    def do_one(self) -> None:
        """One video, over the API or with the button."""
        wish, began = self.wish(), time.monotonic()
        self.chance.choice([self.page.generate, self.page.generate, self.page.press])(wish)
        self.look(wish, self.page.answer(), began)

    def do_two(self) -> None:
        """Two videos at once, which have to come in order."""
        began = time.monotonic()
        wishes = [self.wish(), self.wish()]
        events = [self.page.generate(wishes[0])[1]]
        try:
            events.append(self.page.generate(wishes[1])[1])
            self.tally.count("requests")
        except Busy:
            self.tally.count("requests", "busy")
        found = list(self.page.answers())
        if [event for event, _ in found] != events:
            self.tally.failed("mixed up", "two requests of one user were not answered in order")
        for wish, (_, output) in zip(wishes, found, strict=False):
            self.look(wish, output, began)

    def do_reconstruct(self) -> None:
        """A video through the tokenizer."""
        began = time.monotonic()
        self.page.reconstruct(self.page.upload(*next(iter(self.uploads.items()))))
        content = self.page.video(self.page.answer())
        if content != self.known[None]:
            self.tally.failed("mixed up", "another reconstruction than when asked alone")
        else:
            self.tally.served(time.monotonic() - began)

    def do_hostile(self) -> None:
        """A file that is no video; it has to be refused by its name, without the folder where it lies."""
        name, began = self.chance.choice(list(self.uploads)[1:]), time.monotonic()
        self.page.reconstruct(self.page.upload(name, self.uploads[name]))
        reason = self.page.answer()
        if isinstance(reason, str) and Path(name).stem in reason and "vqvdm-uploads" not in reason:
            self.tally.served(time.monotonic() - began, 0)
        else:
            self.tally.failed("failed", f"{name} was answered with {reason}")

    def do_leave(self) -> None:
        """Ask for much, and go: at once, without ever listening, while waiting, or while it is made."""
        self.much()
        if messages := self.chance.randrange(0, 12):
            for _ in self.page.answers(messages):
                pass
        self.tally.count("left")

    def do_cancel(self) -> None:
        """Ask for much, and take it back; the stream has to end."""
        number, event = self.much()
        time.sleep(self.chance.choice([0, 0.2, 2]))
        self.page.cancel(number, event)
        for _ in self.page.answers():
            pass
        self.tally.count("left")

    def much(self) -> tuple[int, str]:
        """Ask for a video of 100 steps, which nobody waits for."""
        return self.chance.choice([self.page.generate, self.page.press])(replace(self.own, steps=100))

    def do_cut(self) -> None:
        """Break an upload off."""
        self.page.cut_off()
        self.tally.count("left")


def uploads_of(folder: Path) -> dict[str, bytes]:
    """A video, and files that are none."""
    video = folder / "video.mp4"
    write_video(video, np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8), 8.0)
    content = video.read_bytes()
    lie = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;"
    hostile = {"empty.gif": b"", "words.mp4": b"no video " * 1000, "half.mp4": content[: len(content) // 2]}
    return {"video.mp4": content, **hostile, "lying.gif": lie, "script.svg": b"<svg><script>alert(1)</script></svg>"}


@dataclass(frozen=True)
class Look:
    """The server at one time."""

    clips: int
    memory: float  # resident, MiB
    files: int  # open ones and connections
    threads: int
    left: int  # temporary files
    bytes: int  # of them


class Watch(threading.Thread):
    """Looks at the server again and again."""

    def __init__(self, process: psutil.Process, folder: Path, tally: Tally, every: float) -> None:
        super().__init__(daemon=True)
        self.process, self.folder, self.tally, self.every = process, folder, tally, every
        self.looks: list[Look] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Until told that it is enough."""
        while not self.enough.wait(self.every):
            self.looks.append(self.look())

    def look(self) -> Look:
        """At this moment."""
        sizes = []
        for inner, _, names in os.walk(self.folder):
            for name in names:
                with suppress(FileNotFoundError):
                    sizes.append(os.stat(os.path.join(inner, name)).st_size)
        with self.process.oneshot():
            memory, files, threads = self.process.memory_info().rss, self.process.num_fds(), self.process.num_threads()
        return Look(self.tally.counts["clips"], memory / 2**20, files, threads, len(sizes), sum(sizes))


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`vqvdm app` on a free port, its temporary files in a folder: its address and process."""
    runs = folder.with_name("runs")
    runs.mkdir()
    words = [sys.executable, "-m", "vqvdm", "app", "toy", "--port", "0", "--runs", str(runs)]
    inside = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=inside) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            address = re.search(r"http://\S+", told)
            if address is None:
                sys.exit(f"vqvdm app said {told!r}")
            yield address[0], psutil.Process(process.pid)
        finally:
            process.terminate()


def alone(page: Page, wish: Wish | None, uploads: dict[str, bytes]) -> bytes:
    """What a request gives when there is no other; None is the reconstruction of the first upload."""
    page.renew()
    if wish is None:
        page.reconstruct(page.upload(*next(iter(uploads.items()))))
    else:
        page.generate(wish)
    return page.video(page.answer())


def load(asked: Namespace, address: str, tally: Tally, uploads: dict[str, bytes], watch: Watch | None) -> float:
    """All users at once for the time, or the clips, asked for; the seconds that it took."""
    if watch is not None:
        watch.looks.append(watch.look())
        watch.start()
    first = Page(address, asked.frames)
    known: dict[Wish | None, bytes] = {}
    users = [User(number, Page(address, asked.frames), known, uploads) for number in range(asked.users)]
    known.update((wish, alone(first, wish, uploads)) for wish in [None, *(user.own for user in users)])
    done, began = threading.Event(), time.monotonic()
    for user in users:
        user.tally, user.done = tally, done
        user.start()
    while time.monotonic() - began < 60 * asked.minutes and tally.counts["clips"] < asked.clips:
        time.sleep(0.2)
    done.set()
    took = time.monotonic() - began
    for user in users:
        user.join(2 * DEADLINE)
        if user.is_alive():
            tally.failed("hung", "a user")
    if watch is not None:
        watch.enough.set()
        watch.join()
        time.sleep(12)  # the server notices within ten seconds that somebody has gone
        watch.looks.append(watch.look())
    fresh = random.Random(0).sample(list(tally.fresh.items()), min(RECHECKED, len(tally.fresh)))
    for wish, content in fresh:
        if alone(first, wish, uploads) != content:
            tally.failed("mixed up", f"{wish} gives another video when asked alone")
    return took


def report(tally: Tally, took: float, looks: Sequence[Look], growth: float) -> tuple[dict[str, str], list[str]]:
    """What came of it in words, and what leaks; of memory, once half of all clips have warmed it up."""
    counts = tally.counts
    words = {"requests": "requests", "answered, and right": "served", "told that it is busy": "busy"}
    words |= {"went away or cancelled": "left", "mixed up": "mixed up", "failed": "failed", "hung": "hung"}
    words = {name: f"{counts[kind]:,}" for name, kind in words.items()}
    if tally.seconds:
        words["seconds of a request, median and worst"] = f"{median(tally.seconds):.1f}, {max(tally.seconds):.1f}"
    words["clips, and a second"] = f"{counts['clips']:,}, {counts['clips'] / took:.2f}"
    if not looks:
        return words, []
    after = [look for look in looks if look.clips >= looks[-1].clips / 2]
    first, warm, last = looks[0], after[0], looks[-1]
    clips, memory = [look.clips for look in after], [look.memory for look in after]
    slope = 1000 * float(np.polyfit(clips, memory, 1)[0]) if len(set(clips)) > 2 else 0.0
    words["MiB at the start, warm, at the end"] = f"{first.memory:.0f}, {warm.memory:.0f}, {last.memory:.0f}"
    sixths = [looks[round(part * (len(looks) - 1) / 6)] for part in range(7)]
    words["MiB at each sixth of the time"] = ", ".join(f"{look.memory:.0f}" for look in sixths)
    words["MiB per 1,000 clips, once warm"] = f"{slope:.1f}"
    words["open files at the start, at the end"] = f"{first.files}, {last.files}"
    words["threads at the start, at the end"] = f"{first.threads}, {last.threads}"
    words["temporary files at the end, and MiB"] = f"{last.left:,}, {last.bytes / 2**20:.0f}"
    grown = {"memory": slope if last.clips >= ENOUGH else 0.0, "temporary files": last.bytes / 2**20}
    grown |= {"open files": last.files - first.files, "threads": last.threads - first.threads}
    return words, [name for name, bound in (MOST | {"memory": growth}).items() if grown[name] > bound]


def main() -> int:
    """Load, and say what came of it."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of a page that runs; its own otherwise")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--clips", type=float, default=float("inf"), help="at most")
    parser.add_argument("--frames", type=int, default=8, help="of a video")
    parser.add_argument("--growth", type=float, default=50, help="MiB of memory per 1,000 clips that are no leak")
    asked = parser.parse_args()
    tally, looks = Tally(), []
    with tempfile.TemporaryDirectory() as name:
        uploads, folder = uploads_of(Path(name)), Path(name) / "server"
        folder.mkdir()
        if asked.address:
            took = load(asked, asked.address.rstrip("/"), tally, uploads, None)
        else:
            with served(folder) as (address, process):
                watch = Watch(process, folder, tally, every=min(10.0, 1 + asked.minutes))
                took, looks = load(asked, address, tally, uploads, watch), watch.looks
    words, leaks = report(tally, took, looks, asked.growth)
    print(table(["", f"{asked.users} users, {took / 60:.1f} minutes"], [list(row) for row in words.items()]))
    print("\n".join([f"leaks: {name}" for name in leaks] + tally.wrong[:20]), file=sys.stderr)
    return int(bool(leaks or tally.wrong or not tally.seconds))


if __name__ == "__main__":
    sys.exit(main())
