"""`vqvdm demo` at the smallest size: its files, figures and page, and that it goes on where it was stopped."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import vqvdm.demo.clips
from tiny_pipeline import tiny_pipeline
from vqvdm import models
from vqvdm.charts import Series, line_chart, matrix
from vqvdm.demo.clips import Generated, Unseen, UnseenClips, judge_clips
from vqvdm.demo.report import make_report
from vqvdm.demo.run import RATES, STAGES, Clock, main
from vqvdm.errors import InputError
from vqvdm.judge import CLASSES
from vqvdm.recipe import Recipe
from vqvdm.train.tokenizer import TokenizerStage
from vqvdm.video import probe, strip, to_video

# diffusers' DPM-Solver hands a tensor to numpy in a way that numpy 2 is to drop.

SETTINGS = (
    "data.size=16",
    "data.frames=4",
    "data.toy_clips=8",
    "data.workers=0",
    "tokenizer.model.channels=[8,8]",
    "tokenizer.model.patch=[1,2,2]",
    "tokenizer.model.strides=[[2,2,2]]",
    "tokenizer.loss.adversarial.weight=0",
    "denoiser.model.channels=[8,16]",
    "sampling.steps=2",
    *(
        f"{stage}.training.{setting}"
        for stage in ("tokenizer", "denoiser")
        for setting in ("steps=3", "batch=2", "log_every=1", "precision=float32", "learning_rate=1e-3")
    ),
)
FIGURES = MappingProxyType(
    {
        "reconstruction_psnr_db": float,
        "judge_accuracy": float,
        "judge_chance": float,
        "displacement_ratio": float | None,
        "seconds": float,
        "judge_accuracy_real": float,
        "judge_accuracy_by_class": dict,
        "seconds_by_stage": dict,
        "parameters": dict,
        "steps": dict,
        "machine": dict,
        "recipe": str,
        "version": str,
        "commit": str | None,
    }
)


def stop_in_stage_one(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the second update."""
    update = TokenizerStage.update

    def interrupted(self, step, batches):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, batches)

    patch.setattr(TokenizerStage, "update", interrupted)


def stop_while_sampling(patch: pytest.MonkeyPatch, fps: float) -> None:
    """Ctrl-C when the clips of this frame rate begin."""
    generate = vqvdm.demo.clips.generate

    def interrupted(pipeline, orders, batch, arguments):
        if arguments["fps"] == fps:
            raise KeyboardInterrupt
        return generate(pipeline, orders, batch, arguments)

    patch.setattr(vqvdm.demo.clips, "generate", interrupted)


def times_of(run: Path, *names: str) -> list[int]:
    return [(run / name).stat().st_mtime_ns for name in names]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """The folder of a whole demo that was stopped in stage 1 and again while it sampled."""
    run, packaged = tmp_path_factory.mktemp("runs") / "demo", tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(packaged / "toy")
    with pytest.MonkeyPatch.context() as packages:
        packages.setattr(models, "_FOLDER", packaged)
        yield stopped_twice(run)


def stopped_twice(run: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        stop_in_stage_one(patch)
        with pytest.raises(KeyboardInterrupt):
            main(*SETTINGS, run=run, clips=1)
    page = (run / "index.html").read_text(encoding="utf-8")  # shown before anything is trained
    assert "The model that comes with the package" in page and "Numbers" not in page
    assert (run / "checkpoints" / "tokenizer" / "step-00000002").is_dir()
    with pytest.MonkeyPatch.context() as patch:
        stop_while_sampling(patch, RATES[1])
        with pytest.raises(KeyboardInterrupt):
            main(*SETTINGS, run=run, clips=1)
    assert not (run / "report.json").exists()
    done = ("tokenizer/training.json", "pipeline/training.json", "clips/generated-8fps.safetensors")
    before, spent = times_of(run, *done), json.loads((run / "demo.json").read_text())["tokenizer"]
    main(*SETTINGS, run=run, clips=1)
    assert times_of(run, *done) == before  # neither trained nor sampled again
    assert json.loads((run / "demo.json").read_text())["tokenizer"] >= spent
    return run


def test_report_holds_the_figures(finished):
    report = json.loads((finished / "report.json").read_text())
    for name, kind in FIGURES.items():
        assert isinstance(report[name], kind), name
    assert report["generated_clips"] == report["unseen_clips"] == len(CLASSES) * len(RATES)
    assert report["judge_chance"] == 1 / len(CLASSES)
    assert report["steps"] == {"tokenizer": 3, "denoiser": 3}
    assert list(report["seconds_by_stage"]) == list(STAGES)
    assert report["seconds"] == pytest.approx(sum(report["seconds_by_stage"].values()), abs=0.1)


def test_the_log_has_each_update_once(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["stage"] == "tokenizer" and "loss" in line] == [1, 2, 3]


def test_everything_the_page_refers_to_is_there(finished):
    page = (finished / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len([link for link in links if link.startswith("videos/") and link.endswith(".mp4")]) == 40
    assert len([link for link in links if link.startswith("bundled/")]) == 3 * 3  # of the three classes it has
    for link in links:
        assert (finished / unquote(link)).exists(), link
    assert re.search(r"https?://", page) is None and "<script" not in page  # works from disk, without a network
    for name in ("tokenizer-loss", "tokenizer-psnr", "denoiser-loss", "frame-rate", "confusion"):
        assert (finished / "figures" / f"{name}.svg").read_text().startswith("<svg xmlns")
    assert not list(finished.rglob("*.part"))


def test_page_and_report_state_the_same_numbers(finished):
    page, report = (
        (finished / "index.html").read_text(encoding="utf-8"),
        json.loads((finished / "report.json").read_text()),
    )
    values = re.findall(r'<div class="value">([^<]*)</div>', page)
    ratio = report["displacement_ratio"]
    assert values[:3] == [
        f"{report['judge_accuracy']:.0%}",
        f"{report['reconstruction_psnr_db']:.1f} dB",
        "—" if ratio is None else f"{ratio:.2f}",
    ]
    assert f"<td>{report['reconstruction_psnr_db']:.2f} dB</td>" in page
    assert f"<td>{report['judge_accuracy']:.1%}</td>" in page
    missed = [name for name, share in report["judge_accuracy_by_class"].items() if share <= report["judge_chance"]]
    assert all(f"{name} (" in page for name in missed) and ("hardly ever made" in page) == bool(missed)
    recognised = [int(number) for number in re.findall(r"(\d+) of 2 generated clips recognised", page)]
    assert len(recognised) == len(CLASSES) and sum(recognised) == round(20 * report["judge_accuracy"])


def test_videos_and_sheet(finished):
    for fps in RATES:
        for name in CLASSES:
            info = probe(finished / "videos" / f"{name}-00-{fps:g}fps.mp4")
            assert (info.frames, info.width, round(info.fps, 2)) == (4, 128, fps)
    with Image.open(finished / "sheet.png") as sheet:
        assert sheet.height >= len(CLASSES) * 64 and sheet.width > 2 * 4 * 64


def test_again_only_names_the_page(finished, capsys, monkeypatch):
    before = times_of(finished, "index.html", "report.json", "recipe.yaml", "demo.json")
    monkeypatch.setattr(Clock, "stage", None)  # no stage may begin
    main(*SETTINGS, "data.workers=1", run=finished, clips=1)
    assert times_of(finished, "index.html", "report.json", "recipe.yaml", "demo.json") == before
    assert (finished / "index.html").resolve().as_uri() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "clips", "message"),
    [
        (["data.frames=8"], 1, r"made with another recipe: data.frames is 4 there, 8 asked for. Take another folder"),
        (["tokenizer.model.channels=[8,16]"], 1, r"tokenizer\.model\.channels: \[8, 8\] -> \[8, 16\]"),
        (["data.path=toy-clouds"], 1, "reads 'toy-clouds'; the demo judges clips of the built-in world"),
        ([], 0, "--clips must be at least 1, not 0"),
    ],
)
def test_wrong_input(finished, overrides, clips, message):
    with pytest.raises(InputError, match=message):
        main(*SETTINGS, *overrides, run=finished, clips=clips)


def test_pixel_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="diffuses pixels"):
        main("data.path=toy", recipe="vdm", run=tmp_path)


def test_report_of_clips_whose_truth_is_known(finished):
    """Real clips in place of generated ones, a tenth of them under a wrong name."""
    dataset = UnseenClips(size=32, frames=16, clips=1, rates=RATES)
    videos = [to_video(dataset[k]["clip"]) for k in range(len(dataset))]
    keys = list(zip(dataset.keys, videos, strict=True))
    generated = [Generated(label, n, fps, 0, video) for (label, n, fps), video in keys]
    for k in (0, 11):  # left at 8, right at 16 frames per second
        generated[k] = replace(generated[k], label=CLASSES.index("spin"))
    unseen = [Unseen(label, n, fps, video, video, 20.0 + label) for (label, n, fps), video in keys]
    report = make_report(
        Recipe.load("demo", SETTINGS), finished, *judge_clips(generated, unseen), {"tokenizer": 60.0, "report": 1.5}
    )
    assert report["judge_accuracy_real"] == report["judge_accuracy_reconstructed"] == 1.0
    assert report["judge_accuracy"] == 0.9
    assert report["judge_accuracy_by_class"]["spin"] == 0.5
    assert report["confusion"]["spin"] == {"left": 1, "right": 1, "spin": 2} and report["confusion"]["grow"] == {
        "grow": 2
    }
    assert report["reconstruction_psnr_db"] == 24.5
    assert report["displacement_ratio"] == pytest.approx(0.5, abs=0.08)
    assert report["seconds"] == 61.5


def test_strip_is_lossless():
    video = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    header, _, data = strip(video).partition(",")
    assert header == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        frames = np.stack(np.split(np.asarray(image.convert("RGB")), 5, axis=1))
    np.testing.assert_array_equal(frames, video)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_where_the_axis_says(logarithmic):
    ys = [1.0, 2.0, 5.0, 10.0]
    svg = line_chart([Series("", list(enumerate(ys)))], "t", "x", "y", logarithmic=logarithmic)
    grid = re.findall(r'y1="([\d.]+)"[^>]*/><text[^>]*>([\d.]+)</text>', svg)
    place = {float(label): float(y) for y, label in grid}
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert np.allclose(np.diff([x for x, _ in points]), points[1][0] - points[0][0], atol=0.11)
    scale = np.log if logarithmic else np.asarray
    ticks = sorted(place)
    expected = np.interp(scale(ys), scale(ticks), [place[tick] for tick in ticks])
    np.testing.assert_allclose([y for _, y in points], expected, atol=0.11)


@pytest.mark.parametrize("ys", [[], [0.5], [3.0, 3.0], [1e-5, 4e4]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_charts_of_little_or_much(ys, logarithmic):
    svg = line_chart([Series("a", list(enumerate(ys)))], "t", "x", "y", logarithmic=logarithmic)
    assert "nan" not in svg and "inf" not in svg


def test_matrix_shows_every_count():
    svg = matrix({"a": {"a": 3, "none": 1}, "b": {"b": 4}}, ("a", "b", "none"), "m")
    assert re.findall(r">(\d+)</text>", svg) == ["3", "1", "4"]
    assert svg.count("<rect") == 6
