"""Run folders as they are found, read and drawn."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vqvdm.errors import InputError
from vqvdm.recipe import Recipe
from vqvdm.runs import LOG, charts, curves, find_runs, read_run, samples
from vqvdm.verbs.runs import main


def make_run(folder: Path, *records: dict, steps: int | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / LOG).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    if steps is not None:
        Recipe.load("demo", [f"tokenizer.training.steps={steps}"]).save(folder / "recipe.yaml")
    return folder


def test_a_run_tells_how_far_it_is(tmp_path):
    records = [{"stage": "tokenizer", "step": step, "loss": 1 / step, "seconds": step} for step in (1, 2, 3)]
    folder = make_run(tmp_path / "a", *records, {"stage": "tokenizer", "step": 3, "test_psnr": 20.0}, steps=5)
    run = read_run(folder)
    assert run is not None and run.recipe == "demo"
    (stage,) = run.stages
    assert (stage.step, stage.steps, stage.is_done) == (3, 5, False)
    assert stage.figures == {"loss": 1 / 3, "test_psnr": 20.0}
    assert stage.is_lively
    an_hour_ago = time.time() - 3600
    os.utime(folder / LOG, (an_hour_ago, an_hour_ago))
    assert not read_run(folder).stages[0].is_lively


def test_damaged_lines_and_other_versions_are_borne(tmp_path):
    folder = make_run(tmp_path / "a", {"stage": "denoiser", "step": 1, "loss": 0.5})
    with (folder / LOG).open("ab") as file:
        file.write(
            b'\xff\xfe\n[1]\n{"stage": "denoiser"}\n{"stage": "denoiser", "step": 2, "loss": null}\n{"stage": "den'
        )
    (folder / "recipe.yaml").write_text("of: another age")
    (stage,) = read_run(folder).stages
    assert (stage.name, stage.step, stage.steps) == ("denoiser", 2, None)
    assert curves(folder) == {"denoiser": {"loss": [(1.0, 0.5)]}}


def test_runs_are_found_latest_first_and_links_are_not_followed(tmp_path):
    make_run(tmp_path / "old", {"stage": "tokenizer", "step": 1})
    make_run(tmp_path / "deep" / "new", {"stage": "tokenizer", "step": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    os.utime(tmp_path / "old" / LOG, (1, 1))
    assert [run.folder.name for run in find_runs(tmp_path)] == ["new", "old"]
    with pytest.raises(InputError, match="none is not a folder"):
        find_runs(tmp_path / "none")


def test_unseen_clips_lie_in_the_chart_of_training(tmp_path):
    folder = make_run(
        tmp_path / "a",
        *({"stage": "tokenizer", "step": step, "psnr": 20 + step} for step in range(1, 900)),
        {"stage": "tokenizer", "step": 899, "test_psnr": 25.0},
    )
    drawn = charts(folder)["tokenizer"]
    assert list(drawn) == ["psnr"]
    assert "unseen" in drawn["psnr"] and drawn["psnr"].startswith("<svg")
    assert len(curves(folder)["tokenizer"]["psnr"]) <= 400


def test_samples_come_latest_first(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("tokenizer-00000100", "denoiser-00000300", "tokenizer-00000200"):
        (tmp_path / "samples" / f"{name}.mp4").touch()
    assert [path.stem[-3:] for path in samples(tmp_path)] == ["300", "200", "100"]


def test_the_verb_lists_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    main(tmp_path)
    assert "no runs in" in capsys.readouterr().out
    for k in range(3):
        make_run(tmp_path / f"run{k}", {"stage": "tokenizer", "step": 1200, "loss": 0.25, "clips_per_second": 7})
    main(tmp_path, count=2)
    said = capsys.readouterr().out
    assert "1,200" in said and "loss 0.25" in said and "training now" in said and "and 1 more" in said
    main(tmp_path / "run1")
    assert "run1" in capsys.readouterr().out, "a run's own folder"
