"""A folder of odd and broken videos through all that reads videos: counted, named, left out, and nothing ends of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tiny_evaluation import Projection
from tiny_pipeline import tiny_pipeline
from vqvdm import cli
from vqvdm.app.inspection import open_clip
from vqvdm.errors import InputError
from vqvdm.train.checkpoint import latest_checkpoint

USABLE = {"cat": 6, "dog": 6}
BAD = {
    "empty.mp4": "the file is empty",
    "text.avi": "not a readable video",
    "noise.webm": "not a readable video",
    "cut.mp4": "no frame decodes",
    "sound.mp4": "holds no video stream",
    "vast.gif": "frames of 8000x8000 pixels are too large",
    "drawing.mov": "not a readable video|there is no decoder",
}
TINY = [
    "--data.layout=folders",
    "--data.size=16",
    "--data.frames=4",
    "--data.fps=null",
    "--data.workers=0",
    "--tokenizer.model.channels=[8,8]",
    "--tokenizer.model.latent_channels=3",
    "--tokenizer.model.quantizer=none",
    "--tokenizer.loss.quantize_after=0",
    "--tokenizer.training.steps=3",
    "--tokenizer.training.batch=4",
    "--tokenizer.training.sample_every=3",
]


def vast(path: Path) -> None:
    """A GIF whose header says that it has 64 million pixels."""
    Image.new("L", (16, 16)).save(path)
    side = (8000).to_bytes(2, "little")
    path.write_bytes(path.read_bytes()[:6] + side + side + path.read_bytes()[10:])


@pytest.fixture
def corpus(tmp_path, numbered) -> Path:
    """Twelve usable videos of two classes, one of which loses bits, and seven that are none."""
    root = tmp_path / "corpus"
    cat, dog = root / "cat", root / "dog"
    numbered.write(cat / "plain.mp4", codec="libx264")
    numbered.write(
        cat / "ten bits.mkv", codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
    )
    numbered.write(cat / "full range.avi", codec="mjpeg", pix_fmt="yuvj420p")
    numbered.write(cat / "uneven.mp4", codec="libx264", frames=8, stamps=[0, 1, 2, 5, 6, 7, 12, 13])
    (cat / "wrong ending.avi").write_bytes((cat / "plain.mp4").read_bytes())
    os.rename(numbered.write(cat / "name.mp4"), os.fsencode(cat) + b"/\xff\xfe\x1b[31m.mp4")
    numbered.write(dog / "odd size.mp4", codec="libx264", size=(50, 98))
    numbered.write(dog / "<b>bold [red].avi")
    Image.fromarray(numbered.make(1)[0]).save(
        dog / "moving.gif", save_all=True, append_images=[Image.fromarray(image) for image in numbered.make(9)[1:]]
    )
    hurt = numbered.write(dog / "bits.mkv", codec="libx264", frames=60, options={"g": "10"})
    content, chance = bytearray(hurt.read_bytes()), np.random.default_rng(1)
    for place in chance.integers(len(content) // 3, len(content) * 2 // 3, 40):
        content[place] = chance.integers(256)
    hurt.write_bytes(content)
    (dog / "link.mp4").symlink_to(cat / "plain.mp4")
    (dog / "loop").symlink_to(root)
    numbered.write(dog / "truncated.avi", frames=60)
    whole = (dog / "truncated.avi").read_bytes()
    (dog / "truncated.avi").write_bytes(whole[: len(whole) // 2])
    numbered.write(dog / "one frame.mp4", codec="libx264", frames=1)
    (cat / "empty.mp4").touch()
    (cat / "text.avi").write_text("hello\n" * 100)
    (cat / "noise.webm").write_bytes(chance.bytes(4000))
    (cat / "cut.mp4").write_bytes((cat / "plain.mp4").read_bytes()[:-400])
    with av.open(str(dog / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    vast(dog / "vast.gif")
    (dog / "drawing.mov").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>")
    return root


def check_named(said: str) -> None:
    """Every bad file, with its reason, and no control character."""
    for name, reason in BAD.items():
        line = next(line for line in said.splitlines() if name in line)
        assert any(words in line for words in reason.split("|")), line
    assert "\x1b[31m" not in said


def test_the_check_names_them(corpus, capsys):
    assert cli.main(["data", "check", str(corpus), "--layout", "folders", "--frames", "9"]) == 1
    said = capsys.readouterr().out
    check_named(said)
    assert f"{len(BAD)} bad" in said
    assert "dog/one frame.mp4: 1 frames at 25 fps" in said
    assert "truncated.avi: the header states 60 frames" in said
    rows = {row[1]: row for row in (line.split() for line in said.splitlines()) if len(row) == 5}
    assert {name: int(rows[name][2]) + int(rows[name][3]) for name in USABLE} == {"cat": 6, "dog": 7}  # one too short
    assert (rows["cat"][4], rows["dog"][4]) == ("4", "3")


def test_training_and_encoding_go_on_without_them(corpus, tmp_path, caplog):
    words = [f"--data.path={corpus}", *TINY, "--run", str(tmp_path / "run")]
    assert cli.main(["train", "tokenizer", "demo", *words]) == 0
    assert "7 of 20 videos cannot be read" in caplog.text or "videos cannot be read" in caplog.text
    found = latest_checkpoint(tmp_path / "run" / "checkpoints" / "tokenizer")
    assert found is not None and found.step == 3
    assert cli.main(["encode", "demo", *words]) == 0
    index = json.loads((tmp_path / "run" / "latents" / "index.json").read_text())
    assert index["complete"] and index["classes"] == ["cat", "dog"]


def test_evaluation_counts_and_names_them(corpus, tmp_path, monkeypatch, fetched_weights):
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(fetched_weights)
    monkeypatch.setattr("vqvdm.verbs.evaluate.load_i3d", lambda epsilon: Projection())
    report = tmp_path / "report.json"
    words = [str(corpus), "--reference", str(corpus), "--layout", "folders", "--split", "all"]
    assert cli.main(["evaluate", "files", *words, "--frames", "9", "--size", "16", "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["fake"]["skipped"] == len(BAD)
    check_named("\n".join(found["fake"]["skipped_videos"]))
    assert any("too short, and left out: 3 of 13 videos" in line for line in found["warnings"])


def test_what_is_dropped_on_the_page_is_shown_or_refused_by_name(corpus):
    pipeline, shown = tiny_pipeline(), 0
    for path in sorted(path for folder in corpus.iterdir() for path in folder.iterdir() if path.is_file()):
        if path.name in BAD or path.name == "one frame.mp4":
            with pytest.raises(InputError, match=BAD.get(path.name, "has 1 frames")):
                open_clip(path, pipeline)
        else:
            clip, rate = open_clip(path, pipeline)
            assert clip.shape[1:] == (pipeline.config["height"], pipeline.config["width"], 3) and rate > 0
            shown += 1
    assert shown == 12, shown
