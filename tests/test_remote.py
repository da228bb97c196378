"""The cache of fetched shards among several processes, and URLs that are none."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqvdm.data import remote
from vqvdm.data.remote import LIMIT, ShardCache, fetch_bytes, make_room
from vqvdm.errors import InputError
from vqvdm.files import cache_folder

URL = "http://server.test/shard.tar"
CONTENT = b"a shard" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"another one" * 1000


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of the cache; the web server has one shard."""
    monkeypatch.setattr(remote, "urlopen", lambda url, timeout: io.BytesIO(CONTENT))
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    folder = cache_folder() / "shards"
    folder.mkdir(parents=True)
    return folder


def test_a_download_under_way_is_neither_counted_nor_swept_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, part = remote._download, folder / f"{SHA256}.part"
    kept = folder / f"{'f' * 64}.tar"
    kept.write_bytes(OTHER)
    monkeypatch.setenv(LIMIT, repr((len(OTHER) + len(CONTENT)) / 1e9))

    def stalled(*words):  # the process was stopped for a day, and others went on
        part.write_bytes(CONTENT[:99])
        os.utime(part, (time.time() - 86_400,) * 2)
        make_room(folder, len(CONTENT))
        assert part.exists() and kept.exists()
        return download(*words)

    monkeypatch.setattr(remote, "_download", stalled)
    with ShardCache().open(URL, len(CONTENT), SHA256) as file:
        assert file.read() == CONTENT
    assert not part.exists()


def test_what_a_killed_process_had_fetched_is_gone_with_the_next_fetch(folder: Path) -> None:
    part = folder / f"{'f' * 64}.part"
    code = "import sys; from vqvdm.data import remote; from pathlib import Path; part = Path(sys.argv[1])\n"
    code += "with remote._lock(part): part.touch(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        make_room(folder, 0)
        assert part.exists()
        process.kill()
    ShardCache().open(URL, len(CONTENT), SHA256).close()
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [f"{SHA256}.tar"]


@pytest.mark.parametrize(
    "url", ["http://[x/index.json", "http://x/\u00fc.json", "http://a b/index.json", "http://x:ab/i"]
)
def test_what_is_no_url_is_told_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("it is tried again"))
    with pytest.raises(InputError, match="cannot be fetched: "):
        fetch_bytes(url, 10)
