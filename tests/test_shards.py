"""Shards: the clips of the folder they were made of, bit for bit; and nothing they say is believed."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import av
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from vqvdm.cli import main
from vqvdm.data import open_dataset, remote, sharding
from vqvdm.data.index import build_index
from vqvdm.data.layouts import find_videos
from vqvdm.data.remote import LIMIT, ShardCache
from vqvdm.data.shards import INDEX, Rounds, list_shards
from vqvdm.decode import FileSlice, VideoError, read_frames
from vqvdm.errors import InputError
from vqvdm.evaluation.sources import open_videos
from vqvdm.files import cache_folder, sha256_of
from vqvdm.metrics.protocol import Draw
from vqvdm.recipe import DataRecipe
from vqvdm.train.order import Order, updates

SMALL = DataRecipe(frames=4, size=32)
SHARD_BYTES = 40_000  # about two of the videos


def _open(path: object, split="train", training=None, **fields):
    return open_dataset(dataclasses.replace(SMALL, path=str(path), **fields), split, training, progress=False)


def _write(source: Path, out: Path, most: int = SHARD_BYTES):
    listing = find_videos(source)
    index = build_index(listing.root, [sample.path for sample in listing.samples], progress=False)
    return sharding.write_shards(listing, index, out, most, progress=False)


def _equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _streamed(folder: Path) -> list[dict]:
    """The samples as webdataset itself reads them."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it does not close what it opened
        return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory, numbered) -> Path:
    """Two classes, three containers, an uneven video, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    names = [f"{split}/{label}/{number}" for split in ("train", "test") for label in "xy" for number in range(3)]
    for number, name in enumerate(names):
        ending, codec = ((".avi", "mpeg4"), (".mp4", "libx264"), (".mkv", "mpeg4"))[number % 3]
        uneven = [*range(20), *range(30, 90 - number)] if number == 1 else None
        numbered.write(folder / f"{name}{ending}", 80 - number, codec=codec, size=(48, 64), stamps=uneven)
    (folder / "train/x/bad.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory, clips) -> Path:
    out = tmp_path_factory.mktemp("data") / "written"
    _write(clips, out)
    return out


@pytest.fixture
def shards(written, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "shards"))


@pytest.fixture
def server(written, monkeypatch):
    """The shards over HTTP; `paths` are those asked for, `broken` counts answers that are yet to break off."""
    monkeypatch.setattr(remote, "_PAUSE", 0.001)

    class Handler(SimpleHTTPRequestHandler):
        paths: ClassVar[list[str]] = []
        broken: ClassVar[int] = 0

        def log_message(self, *words):
            self.paths.append(self.path)

        def copyfile(self, source, outputfile):
            data = source.read()
            if self.path.endswith(".tar") and Handler.broken:
                Handler.broken -= 1
                data = data[: len(data) // 2]
            outputfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(written))) as server:
        server.handler, server.url = Handler, f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


# ------------------------------------------------------------------------------------------------------- the same clips


@pytest.mark.parametrize("fields", [{}, {"fps": 10.0}, {"stride": 3, "crop": "random", "flip": True, "size": 24}])
@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_are_those_of_the_folder_bit_for_bit(clips, written, split, fields):
    here, there = _open(clips, split, **fields), _open(written, split, **fields)
    assert len(there) == len(here) == 6
    assert (there.names, there.classes, there.digest()) == (here.names, here.classes, here.digest())
    again = pickle.loads(pickle.dumps(there))
    for index in range(len(here)):
        for draw in (0, 7, 123):
            assert _equal(there[index, draw], here[index, draw])
        assert _equal(again[index, 7], here[index, 7])


def test_what_a_manifest_states_is_kept(tmp_path, numbered):
    (tmp_path / "in").mkdir()
    for name in ("in/a.mp4", "in/b.MP4", "out/c.mp4"):
        numbered.write(tmp_path / name, frames=90, codec="libx264", size=(64, 64))
    (tmp_path / "in/manifest.csv").write_text(
        "file,label,split,start,end,fps\na.mp4,x,train,2,2.4,\na.mp4,y,train,,0.2,\nb.MP4,y,train,,6,10\n"
        f"a.mp4,y,test,3,,\n../out/c.mp4,x,train,,,\n{tmp_path}/out/c.mp4,x,test,,,\n"
    )
    _write(tmp_path / "in", tmp_path / "shards")
    stored = json.loads((tmp_path / "shards" / INDEX).read_text())
    assert (len(stored["videos"]), len(stored["samples"])) == (4, 6)  # a.mp4 once, c.mp4 by both of its names
    for split, count in (("train", 4), ("test", 2)):
        here, there = (_open(tmp_path / name, split, fps=10, frames=2) for name in ("in", "shards"))
        assert len(here) == len(there) == count
        assert all(_equal(there[index, 5], here[index, 5]) for index in range(count))
    assert [name for name in there.names if name.startswith(("/", ".."))] == []
    for sample in _streamed(tmp_path / "shards"):
        facts = sample["json"]
        if facts["path"] == "a.mp4":
            assert (facts["label"], facts["start"], facts["end"]) == ("x", 2, 2.4)
            assert [each.get("start") for each in facts["also"]] == [None, 3]
        assert "mp4" in sample


def test_webdataset_reads_every_video_and_what_belongs_to_it(clips, written):
    listing = find_videos(clips)
    labels = {sample.path: (sample.label, sample.split) for sample in listing.samples}
    seen = []
    for sample in _streamed(written):
        facts = sample["json"]
        assert sample[Path(facts["path"]).suffix[1:]] == (clips / facts["path"]).read_bytes()
        assert (facts["label"], facts["split"]) == labels[facts["path"]]
        assert facts["info"] == json.loads(
            json.dumps(dataclasses.asdict(build_index(clips, [facts["path"]])[facts["path"]].info))
        )
        seen.append(facts["path"])
    assert sorted(seen) == sorted(path for path in labels if "bad" not in path)
    assert [path.split("/")[0] for path in seen] == ["train"] * 6 + ["test"] * 6
    assert seen[:6] != sorted(seen[:6])  # classes are mixed


def test_the_index_states_where_each_video_is(clips, written):
    stored = json.loads((written / INDEX).read_text())
    for shard in stored["shards"]:
        path = written / shard["name"]
        assert (shard["size"], shard["sha256"]) == (path.stat().st_size, sha256_of(path))
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 2 * shard["samples"]
            assert sum(m.size for m in tar if not m.name.endswith("json")) <= SHARD_BYTES or shard["samples"] == 1
    assert len(stored["shards"]) > 2
    for video in stored["videos"]:
        data = (written / stored["shards"][video["shard"]]["name"]).read_bytes()
        assert data[video["offset"] :][: video["length"]] == (clips / video["path"]).read_bytes()


def test_where_shards_are_found(clips, written, shards, tmp_path):
    for place in (written, written / INDEX):
        for layout in ("auto", "shards"):
            listing = find_videos(place, layout)
            assert (listing.layout, listing.split_source) == ("shards", "folder names")
    (shards / "ucfTrainTestlist").mkdir()
    (shards / "ucfTrainTestlist/trainlist01.txt").touch()
    assert find_videos(shards).layout == "shards"
    with pytest.raises(InputError, match=r"holds no index\.json"):
        find_videos(clips, "shards")
    (shards / INDEX).unlink()
    with pytest.raises(InputError, match=r"shards: layout .* holds no index\.json; `vqvdm data shard` writes it last"):
        find_videos(shards)
    with pytest.raises(InputError, match=r"http://nowhere/index\.json: is a URL.* layout 'flat' needs a folder"):
        find_videos("http://nowhere/index.json", "flat")


def test_evaluation_reads_the_same_frames_and_knows_them_without_reading(clips, written, shards):
    draws = [Draw(video, 5) for video in range(4)]
    timing = _open(clips).timing
    here, there = (open_videos(path, size=32) for path in (clips, written))
    for one, other in zip(here.clips(draws, timing), there.clips(draws, timing), strict=True):
        assert (one.frames == other.frames).all()
    assert there.lengths.tolist() == here.lengths.tolist()
    assert open_videos(shards, size=32).digest == there.digest  # not of the place
    stored = json.loads((shards / INDEX).read_text())
    stored["shards"][0]["sha256"] = "0" * 64
    (shards / INDEX).write_text(json.dumps(stored))
    assert open_videos(shards, size=32).digest != there.digest


def test_an_epoch_with_two_workers_is_the_folders_each_clip_once(clips, written):
    order = Order(seed=3, length=6, batch=2)
    here, there = (
        [batch for (batch,) in updates(order, _open(path), 0, 6, workers, torch.device("cpu"))]
        for path, workers in ((clips, 0), (written, 2))
    )
    assert all(_equal(one.data, other.data) for one, other in zip(here, there, strict=True))
    resumed = [batch for (batch,) in updates(order, _open(written), 4, 6, 0, torch.device("cpu"))]
    assert all(_equal(one.data, other.data) for one, other in zip(resumed, here[4:], strict=True))


@pytest.mark.slow
def test_a_training_on_shards_is_that_on_the_folder(clips, written, tmp_path):
    small = "data.size=16 data.frames=4 data.workers=0 tokenizer.model.channels=[8,16] tokenizer.training.steps=2"
    more = "tokenizer.training.batch=2 tokenizer.training.precision=float32 tokenizer.loss.perceptual=0"
    weights = []
    for path in (clips, written):
        run = tmp_path / path.name
        words = ["train", "tokenizer", "demo", f"data.path={path}", *small.split(), *more.split(), "--run", str(run)]
        assert main(words) in (0, None)
        weights.append((run / "tokenizer/diffusion_pytorch_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


# -------------------------------------------------------------------------------------------------------------- writing


def test_the_command_writes_shards_and_names_what_it_leaves_out(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out = tmp_path / "new/shards"
    assert main(["data", "shard", str(clips), "--out", str(out), "--megabytes", "1"]) == 0
    said = capsys.readouterr().out
    assert "left out: train/x/bad.mp4: not a readable video" in said
    assert "12 videos in 1 shards" in said
    assert main(["data", "check", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12 (train 6, test 6); 0 bad" in said
    assert str(out / INDEX) in said
    assert main(["data", "shard", str(clips), "--out", str(out)]) == 2
    assert "is there already; name another folder" in capsys.readouterr().err
    assert main(["data", "shard", str(out), "--out", str(tmp_path / "twice")]) == 2
    assert "are shards already" in capsys.readouterr().err
    assert main(["data", "shard", str(clips), "--out", str(tmp_path / "zero"), "--megabytes", "0"]) == 2


def test_folders_of_frames_and_videos_that_cannot_be_read_are_refused(tmp_path, capsys):
    (tmp_path / "a/v").mkdir(parents=True)
    (tmp_path / "a/v/1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a/v is a folder of frames, and shards hold files; .*ffmpeg"):
        main_error(["data", "shard", str(tmp_path), "--layout", "frames", "--out", str(tmp_path / "s")])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/bad.mp4").write_text("no video")
    with pytest.raises(InputError, match="none of the 1 videos can be read"):
        _write(tmp_path / "b", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def main_error(words: list[str]) -> None:
    """The mistake that the command line would print."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQVDM_DEBUG", "1")
        main(words)


def test_without_webdataset_it_is_said(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"pip install 'vqvdm\[shards\]'"):
        _write(clips, tmp_path / "s")


def test_an_interrupted_command_leaves_nothing_and_the_next_one_writes_the_same(clips, written, tmp_path, monkeypatch):
    read = sharding._content

    def interrupted(video):
        if video.key == "00000005":
            raise KeyboardInterrupt
        return read(video)

    monkeypatch.setattr(sharding, "_content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(clips, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".s.tmp").mkdir()  # as kill -9 leaves it
    (tmp_path / ".s.tmp/shard-000009.tar").write_bytes(b"half")
    monkeypatch.setattr(sharding, "_content", read)
    _write(clips, tmp_path / "s")
    assert {path.name: sha256_of(path) for path in (tmp_path / "s").iterdir()} == {
        path.name: sha256_of(path) for path in written.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_video_that_changes_meanwhile_or_is_too_large_stops_it(clips, tmp_path, monkeypatch):
    copied = Path(shutil.copytree(clips, tmp_path / "clips"))
    listing = find_videos(copied)
    index = build_index(copied, [sample.path for sample in listing.samples], progress=False)
    with (copied / "train/y/1.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"train/y/1\.mp4: was changed meanwhile"):
        sharding.write_shards(listing, index, tmp_path / "s", SHARD_BYTES, progress=False)
    monkeypatch.setattr(sharding, "_MOST_VIDEO", 1000)
    with pytest.raises(InputError, match=r"bytes, 1,000 are the most; cut it"):
        _write(clips, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# -------------------------------------------------------------------------------------------------- nothing is believed


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), "vqvdm shards 9", '"format" must be'),
        (("shards", 0, "name"), "../shard-000000.tar", r"shards\[0\]: name .* plain name"),
        (("shards", 0, "name"), "/etc/passwd", "plain name"),
        (("shards", 0, "name"), "http://elsewhere/a.tar", "plain name.* relative to the index"),
        (("shards", 1, "size"), 10**15, "lists it with 1,000,000,000,000,000: copy it again"),
        (("shards", 1, "size"), 100, "lead beyond the 100 bytes"),
        (("shards", 0, "sha256"), "abc", "64 hexadecimal digits"),
        (("videos", 0, "path"), "../../x.mp4", "must lie below a folder"),
        (("videos", 0, "path"), "/etc/x.mp4", "must lie below a folder"),
        (("videos", 0, "path"), "a\0.mp4", "must lie below a folder"),
        (("videos", 0, "path"), "train/x/0.avi", "is there twice"),
        (("videos", 3, "shard"), -1, r"videos\[3\]: shard -1 must be a whole number"),
        (("videos", 3, "shard"), 99, "shard 99 must be"),
        (("videos", 3, "offset"), -512, "offset -512 must be"),
        (("videos", 3, "offset"), 10**9, "lead beyond the"),
        (("videos", 3, "length"), 10**9, "lead beyond the"),
        (("videos", 3, "length"), 512.5, "length 512.5 must be a whole number"),
        (("videos", 3, "info", "frames"), 10**12, r"info .* is not what such a video can hold"),
        (("videos", 3, "info", "frames"), 10**6, "is not what such"),  # more than bytes
        (("videos", 3, "info", "width"), 10**7, "is not what such"),
        (("videos", 3, "info", "fps"), 0, "is not what such"),
        (("videos", 3, "info", "times"), [0.0], "is not what such"),
        (("videos", 3, "info", "keys"), [5, 3], "is not what such"),
        (("samples", 2, "video"), 12, r"samples\[2\]: video 12 must be"),
        (("samples", 2, "label"), "z", "none of the classes"),
        (("samples", 2, "split"), "other", "must be train, test or val"),
        (("samples", 2, "fps"), 0, "fps 0 must be above"),
    ],
)
def test_a_lying_index_is_refused(shards, place, value, message):
    stored = json.loads((shards / INDEX).read_text())
    _set(stored, place, value)
    (shards / INDEX).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=message) as raised:
        _open(shards)
    assert str(shards) in str(raised.value)


def _set(stored, place, value) -> None:
    for name in place[:-1]:
        stored = stored[name]
    stored[place[-1]] = value


def _leaves(value, place=()):
    """The place of every value, lists and tables among them; of a list only its first two."""
    yield place
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value[:2] if type(value) is list else ())
    ):
        yield from _leaves(inner, (*place, name))


def test_whatever_stands_in_the_index_it_opens_or_is_an_input_error(shards):
    stored = json.loads((shards / INDEX).read_text())
    stored["videos"], stored["samples"] = stored["videos"][:2], [s for s in stored["samples"] if s["video"] < 2]
    junk = (None, True, -1, 0, 2**70, 0.5, float("nan"), "", "\udcff\ud800", [], {}, [[0]], {"a": 1})
    refused = 0
    for place in list(_leaves(stored))[1:]:
        for value in junk:
            changed = copy.deepcopy(stored)
            _set(changed, place, value)
            (shards / INDEX).write_text(json.dumps(changed))
            try:
                list_shards(shards)
            except InputError:
                refused += 1
    assert refused > 300
    for text in ("", "[]", "{", "[" * 100_000, '{"format": "vqvdm shards 1"}', "\0"):
        (shards / INDEX).write_text(text)
        with pytest.raises(InputError, match=r"index\.json: is"):
            list_shards(shards)


def test_absent_cut_and_damaged_tars(shards, clips, capsys, caplog):
    dataset, evaluation = _open(shards), _open(shards, training=False)
    tar = shards / "shard-000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(bytes(len(data)))  # of the right size: only its checksum tells
    assert main(["data", "check", str(shards)]) == 0
    assert main(["data", "check", str(shards), "--refresh"]) == 1
    assert "shard-000000.tar is damaged: its SHA-256" in capsys.readouterr().out
    stored = json.loads((shards / INDEX).read_text())
    lost = [video["path"] for video in stored["videos"] if video["shard"] == 0]
    for index, name in enumerate(dataset.names):
        if name in lost:
            assert dataset[index, 1]["clip"].shape == (3, 4, 32, 32)  # another one, as from the folder
            assert f"shard-000000.tar: {name}: " in caplog.text
            with pytest.raises(VideoError, match=r"shard-000000\.tar: .* not a readable video"):
                evaluation[index]
    tar.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"shard-000000\.tar: has {len(data) - 1:,} bytes, .* copy it again"):
        _open(shards)
    tar.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar: is absent"):
        _open(shards)
    with pytest.raises(InputError, match=r"shard-000000\.tar: cannot be opened"):
        evaluation[dataset.names.index(lost[0])]


def test_a_slice_ends_where_the_video_ends_and_a_playlist_in_it_opens_nothing(clips, tmp_path):
    source = clips / "train/x/1.mp4"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{source}\n#EXT-X-ENDLIST\n".encode()
    (tmp_path / "a.m3u8").write_bytes(playlist)
    with av.open(str(tmp_path / "a.m3u8")) as container:
        assert container.streams.video, "FFmpeg follows it"
    (tmp_path / "a.tar").write_bytes(b"before" + playlist + b"behind")
    with FileSlice((tmp_path / "a.tar").open("rb", buffering=0), 6, len(playlist), "a.m3u8") as file:
        assert file.read() == playlist
        assert (file.seek(-3, os.SEEK_END), file.read(10), file.read(10)) == (len(playlist) - 3, playlist[-3:], b"")
        assert (file.seek(len(playlist) + 2), file.read(1)) == (len(playlist) + 2, b"")
        with pytest.raises(OSError, match="no place -1"):
            file.seek(-1)
        with pytest.raises(VideoError, match=r"a\.tar: a\.m3u8: not a readable video"):
            read_frames(file, [0])


# --------------------------------------------------------------------------------------------------------------- remote


def test_remote_shards_are_the_local_ones_and_fetched_once(server, clips):
    url = f"{server.url}/index.json?token=1"
    here = _open(clips)
    for _ in range(2):
        there = _open(url)
        assert there.digest() == here.digest()
        assert all(_equal(there[index, 3], here[index, 3]) for index in range(len(here)))
    evaluation = open_videos(url, size=32)
    assert evaluation.digest
    next(evaluation.clips([Draw(0, 0)], here.timing))
    tars = [path for path in server.handler.paths if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) > 2
    assert main(["data", "check", url, "--refresh"]) == 0


def test_a_download_that_breaks_off_is_tried_again_and_one_that_cannot_be_had_is_named(server, clips, caplog):
    server.handler.broken = 2
    dataset = _open(f"{server.url}/index.json")
    assert _equal(dataset[0, 1], _open(clips)[0, 1])
    assert len(re.findall(r"\.tar: [\d,]+ of [\d,]+ bytes came; trying again", caplog.text)) == 2
    server.handler.broken = 10**6
    other = next(index for index in range(6) if not _cached(dataset, index))
    with pytest.raises(InputError, match=rf"{server.url}/shard-\d+\.tar: cannot be fetched in 4 attempts"):
        dataset[other]
    assert list((cache_folder() / "shards").glob("*.part")) == []
    for url in (f"{server.url}/absent.json", "http://127.0.0.1:9/index.json"):
        with pytest.raises(InputError, match=f"{url}: cannot be fetched"):
            _open(url)
    assert sum("absent" in path for path in server.handler.paths) <= 2  # log_error and log_request: no second attempt


def _cached(dataset, index) -> bool:
    shards = dataset.root
    shard = shards.shards[shards._places[dataset.names[index]].shard]
    return (cache_folder() / "shards" / f"{shard.sha256}.tar").exists()


def test_remote_files_are_what_was_announced(server, written):
    tar = json.loads((written / INDEX).read_text())["shards"][0]
    url = f"{server.url}/{tar['name']}"
    cache, folder = ShardCache(), cache_folder() / "shards"
    with pytest.raises(InputError, match=r"SHA-256 .* one of them is not up to date"):
        cache.open(url, tar["size"], "0" * 64)
    with pytest.raises(InputError, match="is larger than 1,000 bytes"):
        cache.open(url, 1000, tar["sha256"])
    with pytest.raises(InputError, match="no room on the disk for http"):
        cache.open(url, 10**18, tar["sha256"])
    assert not list(folder.glob("*.tar")) and not list(folder.glob("*.part"))
    folder.joinpath(f"{tar['sha256']}.part").write_bytes(b"of a process that was killed" * 10**4)
    with cache.open(url, tar["size"], tar["sha256"]) as file:
        assert file.read() == (written / tar["name"]).read_bytes()
    (folder / f"{tar['sha256']}.tar").write_bytes(b"cut short by a full disk")
    with cache.open(url, tar["size"], tar["sha256"]) as file:
        assert file.read() == (written / tar["name"]).read_bytes()
    with pytest.raises(InputError, match=r"larger than 10 bytes"):
        remote.fetch_bytes(f"{server.url}/index.json", 10)


def test_a_disk_that_fills_up_leaves_no_part(server, written, monkeypatch):
    shard = json.loads((written / INDEX).read_text())["shards"][0]

    def fill(url, file, most):
        file.write(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "_download", fill)
    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        ShardCache().open(f"{server.url}/{shard['name']}", shard["size"], shard["sha256"])
    assert not list((cache_folder() / "shards").glob("*.part"))


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_shard(written, server):
    tar = json.loads((written / INDEX).read_text())["shards"][0]
    folder = cache_folder() / "shards"

    class Slow(SimpleHTTPRequestHandler):
        def log_message(self, *words): ...

        def copyfile(self, source, outputfile):
            outputfile.write(source.read(20_000))
            outputfile.flush()
            time.sleep(0.4)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(written))) as slow:
        threading.Thread(target=slow.serve_forever, args=(0.01,)).start()
        code = f"from vqvdm.data import remote; remote._CHUNK = 9999; remote.ShardCache().open(\
'http://127.0.0.1:{slow.server_port}/{tar['name']}', {tar['size']}, '{tar['sha256']}')"
        process = subprocess.Popen([sys.executable, "-c", code])
        part = folder / f"{tar['sha256']}.part"
        while process.poll() is None and not part.exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
        slow.shutdown()
    assert part.exists() and not list(folder.glob("*.tar"))
    with ShardCache().open(f"{server.url}/{tar['name']}", tar["size"], tar["sha256"]) as file:  # its lock is free
        assert file.read() == (written / tar["name"]).read_bytes()
    assert not part.exists()


def test_who_wants_what_another_one_fetches_waits_for_it(server, written, monkeypatch):
    tar = json.loads((written / INDEX).read_text())["shards"][0]
    download = remote._download

    def slow(*words):
        time.sleep(0.2)
        return download(*words)

    monkeypatch.setattr(remote, "_download", slow)
    with ThreadPoolExecutor(4) as threads:
        words = f"{server.url}/{tar['name']}", tar["size"], tar["sha256"]
        for task in [threads.submit(ShardCache().open, *words) for _ in range(4)]:
            with task.result() as file:
                assert file.read() == (written / tar["name"]).read_bytes()
    assert sum(path.endswith(".tar") for path in server.handler.paths) == 1


def test_the_shards_that_were_not_read_for_longest_go_first(server, written, monkeypatch):
    stored = json.loads((written / INDEX).read_text())["shards"]
    first, second, third, fourth = stored[:4]
    cache, folder = ShardCache(), cache_folder() / "shards"

    def read(shard):
        time.sleep(0.01)
        return cache.open(f"{server.url}/{shard['name']}", shard["size"], shard["sha256"])

    def kept():
        return {path.stem for path in folder.glob("*.tar")}

    monkeypatch.setenv(LIMIT, repr((first["size"] + max(s["size"] for s in stored) * 1.2) / 1e9))
    opened = read(second)
    read(first).close()
    assert kept() == {first["sha256"], second["sha256"]}
    read(first).close()
    read(third).close()
    assert kept() == {first["sha256"], third["sha256"]}
    assert opened.read() == (written / second["name"]).read_bytes()  # it is gone, who had it open reads on
    opened.close()
    read(first).close()
    read(fourth).close()
    assert kept() == {first["sha256"], fourth["sha256"]}
    monkeypatch.setenv(LIMIT, "0")
    read(second).close()
    assert kept() == {second["sha256"]}  # the one in use is always there
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv(LIMIT, text)
        with pytest.raises(InputError, match=f"{LIMIT} is '{text}', but must be a number of gigabytes"):
            read(third)


def test_an_epoch_fetches_each_shard_once_though_one_has_room(server, written, monkeypatch):
    sizes = [shard["size"] for shard in json.loads((written / INDEX).read_text())["shards"]]
    url = f"{server.url}/index.json"
    assert _open(url).at_once is None  # all have room
    assert _open(written).at_once is None
    monkeypatch.setenv(LIMIT, repr(max(sizes) / 1e9))
    dataset = _open(url)
    rounds = Rounds(dataset.bundles, dataset.at_once)
    assert rounds.at_once == 1

    def fetches(seed, rounds):
        shutil.rmtree(cache_folder() / "shards", ignore_errors=True)
        server.handler.paths.clear()
        order = Order(seed=seed, length=len(dataset), batch=1, rounds=rounds)
        seen = list(updates(order, dataset, 0, len(dataset), 0, torch.device("cpu")))
        assert len(seen) == len(dataset)
        return len([path for path in server.handler.paths if path.endswith(".tar")])

    assert [fetches(seed, rounds) for seed in range(3)] == [2, 2, 2]
    assert max(fetches(seed, None) for seed in range(3)) > 2


def test_workers_share_the_cache_whatever_its_size(clips, written, tmp_path, monkeypatch):
    """The server is another process, as a fork of this one must not hold its threads."""
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(written)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        here = _open(clips)
        pairs = [(index, draw) for draw in range(4) for index in range(len(here))]
        expected = [here[pair] for pair in pairs]
        for limit in ("20", "0"):
            monkeypatch.setenv(LIMIT, limit)
            there = _open(f"http://127.0.0.1:{port}/index.json")
            loader = DataLoader(there, batch_size=None, sampler=pairs, num_workers=2)
            assert all(_equal(one, other) for one, other in zip(expected, loader, strict=True))
            if limit == "20":
                fetched = [line.split()[6] for line in (tmp_path / "log").read_text().splitlines() if ".tar" in line]
                assert len(fetched) == len(set(fetched)) > 1  # one fetches, the other waits
    finally:
        server.kill()
        server.communicate()
