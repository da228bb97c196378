"""Where `vqvdm data shard` may write: a folder that is absent or empty, and can be replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqvdm import cli
from vqvdm.video import write_video

MOUNTED = "cannot be replaced as a whole (Device or resource busy): it is where a disk is mounted"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4", np.zeros((8, 32, 32, 3), np.uint8), 8.0)
    (tmp_path / "out").mkdir()
    return ["data", "shard", str(tmp_path / "clips"), "--out"]


def test_an_empty_folder_is_taken(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main([*words, "."]) == 0
    assert (tmp_path / "here" / "index.json").is_file()


def test_one_that_cannot_be_renamed_is_refused_before_the_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = os.rename

    def busy(source, target):
        if Path(source) == tmp_path / "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), source, None, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    monkeypatch.setattr("vqvdm.verbs.shard.build_index", lambda *_: pytest.fail("videos are decoded"))
    assert cli.main([*words, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert MOUNTED in said and f"name a folder in it, such as {tmp_path / 'out' / 'shards'}" in said
    assert list((tmp_path / "out").iterdir()) == []


def can_mount() -> bool:
    """Whether this is Linux and root, with a namespace of mounts to be had."""
    if shutil.which("unshare") is None or os.getuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_where_a_disk_is_mounted_a_folder_in_it_is_asked_for(words: list[str], tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("needs Linux and root for a namespace of mounts")
    (tmp_path / "disk").mkdir()
    command = f'mount --bind {tmp_path}/disk {tmp_path}/out && exec {sys.executable} -m vqvdm "$@"'
    for folder, status in ((tmp_path / "out", 2), (tmp_path / "out" / "shards", 0)):
        mounted = ["unshare", "--mount", "sh", "-c", command, "sh", *words, str(folder)]
        done = subprocess.run(mounted, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert (MOUNTED in done.stderr) == (status == 2)
    assert sorted(path.name for path in (tmp_path / "disk" / "shards").iterdir()) == ["index.json", "shard-000000.tar"]
