"""Run folders as trainings leave them: which there are, how far each stage is, its curves and its samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvdm.charts import SECOND, Series, line_chart, line_charts_png
from vqvdm.errors import InputError
from vqvdm.files import write_bytes
from vqvdm.recipe import Recipe
from vqvdm.structure import parse_json

LOG, RECIPE = "log.jsonl", "recipe.yaml"
_LIVELY = 600.0  # seconds since the last record within which a stage counts as training
_POINTS = 400  # of a curve, at most
_DEEP = 3  # folders below the one that is searched
_LOGARITHMIC = ("loss", "l1", "gradient_norm", "learning_rate")  # figures that fall over orders of magnitude
_RISING = ("psnr", "usage", "perplexity")
_ENDLESS = 1e100  # what is not below is no figure, and a chart could not place it
_ASIDE = ("stage", "step", "seconds")


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    step: int
    steps: int | None  # planned; None where the recipe does not say
    figures: Mapping[str, float]  # the last of each
    written: float  # seconds since the epoch

    @property
    def is_done(self) -> bool:
        """Whether all its updates are done."""
        return self.steps is not None and self.step >= self.steps

    @property
    def is_lively(self) -> bool:
        """Whether it seems to be training now."""
        return not self.is_done and time.time() - self.written < _LIVELY


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    recipe: str
    stages: tuple[Stage, ...]

    @property
    def written(self) -> float:
        """When its log last grew, in seconds since the epoch."""
        return max(stage.written for stage in self.stages)


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder and a few levels below it, the latest first; links to folders are not followed.

    Raises:
        InputError: there is no such folder.
    """
    return [run for inner in run_folders(folder) if (run := read_run(inner)) is not None]


def run_folders(folder: Path) -> list[Path]:
    """The folders of `find_runs` in its order, by their logs' times alone: no log is read.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    logs = sorted(_logs(folder, _DEEP), key=lambda log: log.stat().st_mtime, reverse=True)
    return [log.parent for log in logs]


def _logs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / LOG).is_file():
        yield folder / LOG
    if depth > 0:
        try:
            inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:  # not ours to read
            return
        for path in inner:
            yield from _logs(path, depth - 1)


def read_run(folder: Path) -> Run | None:
    """What a run folder says; None if no stage has written a line yet."""
    records = read_log(folder)
    name, planned = "", {}
    try:
        recipe = Recipe.load(folder / RECIPE)
        name = recipe.name
        planned = {"tokenizer": recipe.tokenizer, "denoiser": recipe.denoiser, "student": recipe.distillation}
    except (InputError, OSError):  # of another version, or half a folder: its log still tells
        pass
    written = (folder / LOG).stat().st_mtime if records else 0.0
    last, stages = records[-1]["stage"] if records else "", []
    for stage in dict.fromkeys(record["stage"] for record in records):
        figures: dict[str, float] = {}
        for record in (record for record in records if record["stage"] == stage):
            figures |= {key: value for key, value in record.items() if key not in _ASIDE and _is_number(value)}
        step = max(record["step"] for record in records if record["stage"] == stage)
        plan = planned.get(stage)
        when = written if stage == last else 0.0  # what another stage has written since does not tell of this one
        stages.append(Stage(stage, step, None if plan is None else plan.training.steps, figures, when))
    return Run(folder, name, tuple(stages)) if stages else None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; lines that are damaged or half written are left out."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("stage"), str) and _is_step(record.get("step")):
            records.append(record)
    return records


def curves(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Stage -> figure -> points (step, value), no more than a chart can show."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in read_log(folder):
        of_stage = found.setdefault(record["stage"], {})
        for name, value in record.items():
            if name not in _ASIDE and _is_number(value):
                of_stage.setdefault(name, []).append((float(record["step"]), float(value)))
    return {
        stage: {name: points[:: -(-len(points) // _POINTS)] for name, points in figures.items()}
        for stage, figures in found.items()
    }


def best_step(folder: Path, stage: str, figure: str, steps: Sequence[int]) -> int | None:
    """Of these updates the one with the best value of a figure in the log; None if it stands beside none of them.

    High is good of what is named in `_RISING`, low of all else.
    """
    values = {
        record["step"]: record[figure]
        for record in read_log(folder)
        if record["stage"] == stage and record["step"] in steps and _is_number(record.get(figure))
    }
    if not values:
        return None
    sign = -1 if figure.removeprefix("test_").removeprefix("train_") in _RISING else 1
    return min(values, key=lambda step: (sign * values[step], -step))


def figures_of(folder: Path, stage: str) -> set[str]:
    """Names of what the log has of a stage, beside the update and the time."""
    records = (record for record in read_log(folder) if record["stage"] == stage)
    return {name for record in records for name in record} - {"stage", "step", "seconds"}


def charts(folder: Path) -> dict[str, dict[str, str]]:
    """Stage -> figure -> chart as an SVG element; a figure of unseen clips lies in the chart of its name."""
    return {
        stage: {
            name: line_chart(series, f"{words} of the {stage}", "updates", words, logarithmic=logarithmic)
            for name, (series, words, logarithmic) in _series(figures).items()
        }
        for stage, figures in curves(folder).items()
    }


def write_curves(folder: Path, stage: str) -> None:
    """Write `curves-STAGE.png` into a run folder: all figures of the stage so far."""
    series = _series(curves(folder).get(stage, {}))
    drawn = [(lines, "updates", words, logarithmic) for lines, words, logarithmic in series.values()]
    if drawn:
        write_bytes(folder / f"curves-{stage}.png", line_charts_png(drawn))


def _series(figures: Mapping[str, list[tuple[float, float]]]) -> dict[str, tuple[list[Series], str, bool]]:
    """Figure -> (its curves, its name in words, whether its axis is logarithmic)."""
    found = {}
    for name, points in figures.items():
        plain = name.removeprefix("test_")
        if name != plain and plain in figures:
            continue
        lines = [Series("training" if f"test_{name}" in figures else "", points)]
        if f"test_{name}" in figures:
            lines.append(Series("unseen", figures[f"test_{name}"], SECOND, dots=True))
        positive = all(value > 0 for line in lines for _, value in line.points)
        found[name] = lines, name.replace("_", " "), positive and name in _LOGARITHMIC
    return found


def samples(folder: Path) -> list[Path]:
    """The sample videos of a run, the latest first."""
    return sorted((folder / "samples").glob("*.mp4"), key=lambda path: path.name[-12:], reverse=True)


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ENDLESS
