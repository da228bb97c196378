"""What is run by hand: tables of guidance, of variants for equal time, and of what more GPUs would take."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from vqvdm import Recipe

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for theirs
    spec.loader.exec_module(module)
    return module


def test_guidance_is_scored_by_kind_and_scale_and_goes_on(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model", "--reference", "real.npy", "--clips", "8", "--steps", "2", "--scales", "1,2"]
    asked = [*words, "--intervals", "0.5-1", "--weaker", "model", "--report", "made.json"]
    monkeypatch.setattr(sys, "argv", ["guidance.py", *asked])
    guidance = script("guidance")
    guidance.main()
    made = json.loads(Path("made.json").read_text())
    rows = made["rows"]
    interval = "scale 2 at levels 0.5 to 1"
    names = ["scale 1", "scale 2", interval, "scale 2, rescaled by 0.7", "autoguidance 2"]
    assert list(rows) == names
    # A model that leads away from itself goes nowhere: as without guidance.
    assert rows["autoguidance 2"]["fvd"] == pytest.approx(rows["scale 1"]["fvd"], rel=1e-6)
    assert rows["scale 2"]["fvd"] != pytest.approx(rows["scale 1"]["fvd"], rel=1e-4)
    assert "best FVD: " in capsys.readouterr().out

    rows["scale 1"]["fvd"] = -1.0  # what is in the report is taken from there
    Path("made.json").write_text(json.dumps(made))
    guidance.main()
    assert "best FVD: scale 1\n" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["guidance.py", *asked, "--steps", "3"])
    with pytest.raises(SystemExit, match=r"made\.json holds rows of"):
        guidance.main()


def test_all_rows_guide_at_all_levels_but_those_of_intervals() -> None:
    asked = Namespace(scales="1,2,3", intervals="0.2-0.7", rescale=0.5, weaker=None)
    rows = script("guidance").variants(asked)
    levels = {name: row["guidance_interval"] for name, row in rows.items()}
    assert {name for name, interval in levels.items() if interval != (0.0, 1.0)} == {"scale 3 at levels 0.2 to 0.7"}
    assert list(script("guidance").variants(Namespace(scales="1", intervals="0-1", rescale=0.5, weaker=None))) == [
        "scale 1"
    ]


def test_a_table_is_scored_with_as_many_clips_as_asked_for() -> None:
    with_clips = script("compare").with_clips
    assert with_clips(["--clips", 512, "--split", "test"], 8) == ["--clips", 8, "--split", "test"]
    assert with_clips(["--split", "test", "--clips", 512], 8) == ["--split", "test", "--clips", 8]
    assert with_clips([], 8) == ["--clips", 8]


def test_a_variant_is_trained_once_and_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, run, called = script("compare"), tmp_path / "run", []
    (run / "checkpoints").mkdir(parents=True)
    (run / "log.jsonl").write_text("{}")  # stopped on its way

    def call(*words: object) -> None:
        assert not (run / "checkpoints").exists() and not (run / "log.jsonl").exists()
        called.append(" ".join(map(str, words)))

    monkeypatch.setattr(compare, "call", call)
    asked = Namespace(latents=None, processor=True)
    for _ in range(2):
        compare.train({"stage": "tokenizer", "recipe": "demo"}, run, ["data.size=16"], 0.5, asked)
    assert len(called) == 1
    assert "train_minutes.py tokenizer demo data.size=16 " in called[0]
    assert called[0].endswith(f"--run {run} --minutes 0.5 --processor")


def test_how_long_a_variant_decodes_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, called = script("compare"), []
    monkeypatch.setattr(compare, "call", lambda *words: called.append(words) or 'a table\n{"decode_seconds": 0.25}\n')
    assert [compare.decode_seconds(tmp_path) for _ in range(2)] == [0.25, 0.25]
    assert len(called) == 1 and "--stages decode" in " ".join(map(str, called[0]))


def test_rows_of_variants_as_a_table() -> None:
    compare = script("compare")
    rows = {"a": {"updates": 3, "fvd": 12.345, "other": 1.0}, "b": {"updates": 4}}
    lines = compare.as_table(rows, ("kvd", "fvd")).splitlines()
    assert lines[0] == "| variant | updates | fvd |"
    assert lines[2:] == ["| a | 3 | 12.35 |", "| b | 4 |  |"]


def test_a_training_for_minutes_follows_the_clock_to_its_last_update() -> None:
    minutes = script("train_minutes")
    endless = [f"tokenizer.{name}={minutes.ENDLESS}" for name in ("training.steps", "loss.quantize_after")]
    recipe = Recipe.load("demo", [*endless, "tokenizer.training.learning_rate=1", "tokenizer.training.warmup=2"])
    assert recipe.tokenizer is not None
    training, loss = recipe.tokenizer.training, recipe.tokenizer.loss
    times = (1000.0, 1025.0, 1050.0, 1075.0, 1101.0)
    clock = minutes.Clock(recipe, 100.0, {"tokenizer.loss.quantize_after": 0.4}, iter(times).__next__)
    seen = [(clock.rate(training, step), loss.quantize_after, training.steps) for step in range(len(times))]
    last = training.final_learning_rate
    cosine = [last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share)) for share in (0.25, 0.5, 0.75, 1.0)]
    assert [rate for rate, _, _ in seen] == pytest.approx([0.5, *cosine], abs=1e-5)
    assert [after for _, after, _ in seen] == [minutes.ENDLESS, minutes.ENDLESS, 2, 2, 2]
    assert [steps for _, _, steps in seen] == [minutes.ENDLESS] * 4 + [5]
    assert clock.updates == 5


@pytest.mark.slow
def test_a_short_chaos_changes_nothing(tmp_path: Path) -> None:
    """Run by itself: it forks, which a process of tests with its threads should not."""
    command = [sys.executable, str(SCRIPTS / "chaos.py"), "--kills", "8", "--folder", str(tmp_path / "chaos")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[-3:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["tokenizer", "latents", "denoiser"]
    for row in rows:
        *disturbances, ended, differed = row.strip("| ").split(" | ")[1:]
        assert sum(map(int, disturbances)) >= 8 and int(ended) >= 1 and differed == "nothing"


@pytest.mark.slow
def test_a_student_is_taught_and_scored_and_goes_on(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    small = ["data.toy_clips=8", "data.workers=0", "distillation.pairs=4"]
    training = ["steps=2", "batch=2", "sample_every=2", "checkpoint_every=2", "precision=float32"]
    words = [*small, *(f"distillation.training.{word}" for word in training), "--clips", "8", "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", ["student.py", "run", *words])
    student = script("student")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vqvdm.latents._write_shards", interrupted)
        with pytest.raises(KeyboardInterrupt):
            student.main()
    student.main()
    report = commands / "run-student" / "scores.json"
    made = json.loads(report.read_text())
    names = [
        f"{name}, seed 3" for name in ("teacher, 8 steps", "teacher, 4 steps", "student, 4 steps", "student, 2 steps")
    ]
    assert list(made["rows"]) == names
    assert len({row["fvd"] for row in made["rows"].values()}) == 4

    made["rows"][names[0]]["fvd"] = -1.0  # what was scored is taken from there
    report.write_text(json.dumps(made))
    student.main()
    assert f"| {names[0]} | -1 |" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((SCRIPTS / "tables").iterdir()), ids=lambda path: path.stem)
def test_every_row_of_a_table_is_a_recipe(path: Path) -> None:
    compare = script("compare")
    table = yaml.safe_load(path.read_text())
    for changes in table["variants"].values():
        parts = [changes["first"], changes["then"]] if isinstance(changes, dict) else [changes or []]
        for part in parts:
            overrides = [word.replace("%", "") for word in [*table["common"], *part]]
            Recipe.load(table["recipe"], overrides, check_models=True)
    assert compare.COLUMNS[table["stage"]]


def test_what_more_gpus_would_take_is_printed_for_both_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling = script("scaling")
    data = "data.size=16 data.frames=4 data.toy_clips=10 tokenizer.model.channels=[8,8] tokenizer.loss.perceptual=0"
    changes = f"{data} denoiser.model.channels=[8,16] denoiser.model.blocks=1 denoiser.model.head_dim=4".split()
    slow = ["--tflops", "0.001", "--inside", "0.1", "--outside", "0.01", "--latency", "0", "--price", "1e6"]
    words = ["scaling.py", "demo", *changes, *slow]
    monkeypatch.setattr(sys, "argv", words)
    scaling.main()
    said = capsys.readouterr().out
    recipe = Recipe.load("demo", changes, check_models=True)
    for stage, _ in scaling.stages(recipe):
        text = said.partition(f"**{stage.name}**")[2]
        rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[4:8]]
        counts, milliseconds, summing, hours, cost = (
            [float(row[place].split()[0].replace(",", "")) for row in rows] for place in (0, 1, 2, 5, 6)
        )
        assert counts == [1, 8, 64, 512]
        assert milliseconds == sorted(milliseconds) and summing == sorted(summing) and summing[0] == 0
        learning = [module for name, module in stage.modules.items() if name != "ema"]
        numbers = sum(p.numel() for module in learning for p in module.parameters() if p.requires_grad)
        assert f"{4 * numbers / 1e6:.1f} MB to sum up" in text
        # Two passes through the ring, each without the part that is there already.
        ring = [2 * (n - 1) / n * 4 * numbers / (1e8 if n <= 8 else 1e7) * 1e3 for n in (1, 8, 64, 512)]
        assert summing == pytest.approx(ring, abs=0.006)
        clip, update, clips = (
            float(re.findall(rf"([\d.e+-]+) {what}", text)[0]) for what in ("GFLOP a clip", "an update", "clips a GPU")
        )
        assert milliseconds[0] == pytest.approx((clips * clip + update) * 1e3, rel=0.01)
        efficient = [clips * clip * 1e3 / each for each in milliseconds]
        assert [int(row[3].rstrip("%")) / 100 for row in rows] == pytest.approx(efficient, abs=0.01)
        assert cost == pytest.approx([n * h * 1e6 for n, h in zip(counts, hours, strict=True)], rel=0.01, abs=1)


@pytest.mark.parametrize("count", [2, 8, 64, 512])
@pytest.mark.parametrize("latency", [0.0, 5e-6])
def test_efficiency_falls_below_80_percent_where_it_is_said_to(count: int, latency: float) -> None:
    scaling = script("scaling")
    cluster = scaling.Cluster(27e12, 450e9, 50e9, 8, latency, 2.5)
    need = scaling.Need(clip=30e9, update=2e9, reduced=4e8)
    steps = [cluster.step(need, clips, count) for clips in range(1, 200)]
    assert steps == sorted(steps)
    least = cluster.least_clips(need, count, 0.8)
    assert cluster.efficiency(need, least, count) >= 0.8 > cluster.efficiency(need, least - 1, count)
    # Clips take c each, the update u, the sum r, of which two thirds of the clips' time hide some:
    # n c / (n c + u + r - 2/3 n c) = 0.8, where anything is left over.
    c, u, r = need.clip / cluster.flops, need.update / cluster.flops, cluster.all_reduce(need.reduced, count)
    crossing = max(0.8 * (u + r) / (c * (1 - 0.8 / 3)), 0.8 * u / (0.2 * c))
    assert least == math.ceil(crossing)
    assert cluster.least_clips(scaling.Need(0.0, 1.0, 1.0), count, 0.8) is None


def test_what_processes_sum_up_is_the_gradients_of_what_learns() -> None:
    scaling = script("scaling")
    module = torch.nn.Linear(3, 5)
    assert scaling.gradient_bytes(module) == 4 * (3 * 5 + 5)
    module.bias.requires_grad_(False)
    assert scaling.gradient_bytes(module) == 4 * 3 * 5
    cluster = scaling.Cluster(1.0, 2.0, 1.0, 4, 0.0, 1.0)
    assert [cluster.all_reduce(60.0, n) for n in (1, 2, 4, 5)] == [0.0, 30.0, 45.0, 96.0]
