"""The index: what it finds, what it keeps, and what makes it look again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

import vqvdm.data.index as index_module
from vqvdm.data.index import build_index, cache_file
from vqvdm.decode import probe
from vqvdm.files import cache_folder


@pytest.fixture
def counted(monkeypatch):
    """The paths that were decoded anew."""
    asked: list[str] = []

    def counting(path):
        asked.append(Path(path).name)
        return probe(path)

    monkeypatch.setattr(index_module, "probe", counting)
    return asked


def _build(root: Path, *names: str, **more):
    return build_index(root, names, progress=False, **more)


def test_entries_hold_what_probe_finds_and_reasons_for_bad_files(tmp_path, numbered):
    numbered.write(tmp_path / "a.mp4", frames=9, codec="libx264", stamps=[0, 1, 2, 3, 9, 10, 11, 12, 13])
    (tmp_path / "bad.avi").write_text("no video")
    found = _build(tmp_path, "a.mp4", "bad.avi", "absent.avi")
    assert found["a.mp4"].info == probe(tmp_path / "a.mp4")
    assert found["bad.avi"].info is None
    assert found["bad.avi"].error.startswith("not a readable video")
    assert found["absent.avi"].error == "no such file"
    assert _build(tmp_path, "a.mp4", "bad.avi", "absent.avi") == found  # through the cache: times and all


def test_only_changed_files_are_decoded_again(tmp_path, numbered, counted):
    for name in ("a.avi", "b.avi"):
        numbered.write(tmp_path / name, frames=5)
    _build(tmp_path, "a.avi", "b.avi")
    assert sorted(counted) == ["a.avi", "b.avi"]
    counted.clear()
    _build(tmp_path, "b.avi", "a.avi")
    assert counted == []
    numbered.write(tmp_path / "c.avi", frames=5)
    numbered.write(tmp_path / "a.avi", frames=7)
    assert _build(tmp_path, "a.avi", "b.avi", "c.avi")["a.avi"].info.frames == 7
    assert sorted(counted) == ["a.avi", "c.avi"]
    counted.clear()
    os.utime(tmp_path / "b.avi", (1, 1))
    _build(tmp_path, "a.avi", "b.avi")
    assert counted == ["b.avi"]
    counted.clear()
    _build(tmp_path, "a.avi", "b.avi", refresh=True)
    assert sorted(counted) == ["a.avi", "b.avi"]


def test_a_frame_folder_is_looked_at_again_when_a_frame_comes(tmp_path, counted):
    (tmp_path / "v").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "v" / f"{number}.png")
    assert _build(tmp_path, "v")["v"].info.frames == 3
    os.utime(tmp_path / "v", (1, 1))
    _build(tmp_path, "v")
    counted.clear()
    Image.new("RGB", (8, 8)).save(tmp_path / "v" / "3.png")
    assert _build(tmp_path, "v")["v"].info.frames == 4
    assert counted == ["v"]


def test_many_files_go_to_worker_processes_and_give_the_same(tmp_path, numbered):
    names = [f"{number:02d}.avi" for number in range(30)]
    for number, name in enumerate(names):
        numbered.write(tmp_path / name, frames=2 + number)
    (tmp_path / names[7]).write_text("broken")
    found = _build(tmp_path, *names, workers=2)
    assert list(found) == names
    for number, name in enumerate(names):
        assert (found[name].info is None) == (number == 7)
        assert number == 7 or found[name].info == probe(tmp_path / name)


def test_a_file_that_brings_the_decoder_down_is_only_bad(tmp_path, numbered):
    worker = index_module._Worker()
    numbered.write(tmp_path / "a.avi", frames=3)
    first = worker._process
    first.kill()  # as a crash in FFmpeg would end it
    first.wait()
    assert worker.probe(tmp_path, "a.avi") == ("a.avi", None, "the decoder crashed on it")
    assert worker.probe(tmp_path, "a.avi")[1].frames == 3
    first.stdout.close()
    worker.close()


def test_an_interrupted_index_keeps_what_was_done(tmp_path, numbered, monkeypatch):
    for name in ("a.avi", "b.avi"):
        numbered.write(tmp_path / name, frames=5)

    def interrupted(path):
        if Path(path).name == "b.avi":
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(index_module, "probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, "a.avi", "b.avi")
    stored = json.loads(cache_file(tmp_path).read_text())
    assert list(stored["entries"]) == ["a.avi"]
    assert [path.name for path in cache_file(tmp_path).parent.iterdir()] == [cache_file(tmp_path).name]


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"version": 0, "entries": {}}', '{"version": 1, "entries": {"a.avi": 3}}']
)
def test_a_damaged_or_old_cache_is_rebuilt(tmp_path, numbered, damage):
    numbered.write(tmp_path / "a.avi", frames=5)
    cache_file(tmp_path).parent.mkdir(parents=True)
    cache_file(tmp_path).write_text(damage)
    assert _build(tmp_path, "a.avi")["a.avi"].info.frames == 5
    assert json.loads(cache_file(tmp_path).read_text())["entries"]["a.avi"]["info"]["frames"] == 5


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("VQVDM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vqvdm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "vqvdm"
    assert cache_file(tmp_path / "x" / "..") == cache_file(tmp_path)  # one folder, one cache
    assert cache_file(tmp_path / "x") != cache_file(tmp_path / "y")


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path, numbered, monkeypatch, caplog):
    numbered.write(tmp_path / "a.avi", frames=5)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "file"))
    assert _build(tmp_path, "a.avi")["a.avi"].info.frames == 5
    assert re.search(r"the index cannot be kept: .*cannot be written \(.*directory\); set VQVDM_CACHE", caplog.text)
