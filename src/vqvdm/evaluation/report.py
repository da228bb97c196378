"""Reports as files: JSON for programs, Markdown and pictures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqvdm.charts import ACCENT, SECOND, Series, alone, line_chart
from vqvdm.errors import printable
from vqvdm.evaluation.features import Features
from vqvdm.evaluation.score import Scored
from vqvdm.evaluation.scores import LABELS
from vqvdm.evaluation.sides import SHOWN_SIDE
from vqvdm.files import write_json, write_text
from vqvdm.metrics.motion import NUMBERS
from vqvdm.video import Video, write_sheet


def write_report(path: Path, scored: Scored, real: Sequence[Video], fake: Sequence[Video]) -> list[Path]:
    """Write report.json, and beside it report.md, report-frames.png and report-motion.svg.

    Args:
        path: of the JSON; the others take its name.
        scored: the report.
        real, fake: clips to show.

    Returns:
        The files.
    """
    frames, motion, words = (path.with_name(f"{path.stem}{end}") for end in ("-frames.png", "-motion.svg", ".md"))
    height, width = fake[0].shape[1:3]
    size = (round(width * SHOWN_SIDE / height), SHOWN_SIDE)
    shown = [_resized(video, size) for video in (*real, *fake)]
    labels = [f"{side} {k}" for side, videos in (("real", real), ("fake", fake)) for k in range(len(videos))]
    write_sheet(frames, shown, labels)
    write_text(motion, motion_figure(scored.real, scored.fake))
    write_text(words, printable(as_markdown(scored.report, frames.name, motion.name)))
    write_json(path, scored.report)
    return [path, words, frames, motion]


def _resized(video: Video, size: tuple[int, int]) -> Video:
    """uint8 (t, h, w, 3) of this width and height; small pixels stay square."""
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST)) for image in video])


def motion_figure(real: Features, fake: Features) -> str:
    """How motion is distributed among the clips of either side: one small chart a number, as SVG."""
    charts = [_histogram(name, real["motion"][:, k], fake["motion"][:, k]) for k, name in NUMBERS.items()]
    rows = [charts[k : k + 2] for k in range(0, len(charts), 2)]
    placed = [
        chart.replace("<svg ", f'<svg x="{450 * column}" y="{290 * row}" width="440" height="280" ', 1)
        for row, pair in enumerate(rows)
        for column, chart in enumerate(pair)
    ]
    size = f'viewBox="0 0 890 {290 * len(rows)}"'
    return alone(f'<svg {size} role="img" aria-label="distribution of motion">{"".join(placed)}</svg>')


def _histogram(name: str, real: NDArray, fake: NDArray) -> str:
    low, high = np.quantile(np.concatenate([real, fake]), [0.005, 0.995])
    bins = int(np.clip(1.5 * np.sqrt(min(len(real), len(fake))), 6, 24))
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    series = []
    for label, values, colour in (("real", real, ACCENT), ("generated", fake, SECOND)):
        shares = np.histogram(values.clip(low, high), edges)[0] / len(values)
        series.append(Series(label, list(zip(middles.tolist(), shares.tolist(), strict=True)), colour))
    return line_chart(series, name, name, "share of clips", from_zero=True)


def as_markdown(report: Mapping[str, Any], frames: str, motion: str) -> str:
    """A report for people: the figures, what they depend on, and the pictures by their names."""
    parts = [f"# {report['fake']['name']} against {report['real']['name']}", figure_table(report)]
    parts += [f"**{warning}**" for warning in report["warnings"]]
    parts.append(f"Protocol: {report['protocol']['line']}")
    if per_frame := report.get("per_frame"):
        numbers = range(len(next(iter(per_frame.values()))))
        rows = [[LABELS[kind], *(f"{value:.3g}" for value in values)] for kind, values in per_frame.items()]
        parts += ["## By frame", table(["frame", *map(str, numbers)], rows)]
    if codebook := report.get("codebook"):
        books = f" in each of {codebook['books']} books, on average," if codebook["books"] > 1 else ""
        used = f"{codebook['used']:,.0f} of {codebook['size']:,} codes{books} occur among {codebook['tokens']:,} tokens"
        parts.append(f"{used}; perplexity {codebook['perplexity']:.4g}.")
    for side in ("real", "fake"):
        shown = [[key, cell(value)] for key, value in report[side].items() if key != "skipped_videos"]
        parts += [f"## {side.capitalize()}", table(["", ""], shown)]
        if listed := report[side]["skipped_videos"]:
            parts.append("Skipped:\n" + "\n".join(f"- {reason}" for reason in listed))
    parts += ["## Networks", ", ".join(f"{name} {identity}" for name, identity in report["networks"].items())]
    parts.append(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    parts += [f"![real and generated frames]({frames})", f"![distribution of motion]({motion})"]
    return "\n\n".join(parts) + "\n"


def figure_table(report: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = []
    for name, label in LABELS.items():
        if figure := report["metrics"].get(name):
            rows.append([label, figure_text(figure), _wanted(figure)])
    return table(["figure", "value", ""], rows)


def _wanted(figure: Mapping[str, Any]) -> str:
    return {"as real": "as real is best"}.get(figure["better"], f"{figure['better']} is better")


def figure_text(figure: Mapping[str, Any]) -> str:
    """Value, deviation and what the real clips have."""
    spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.2g}"
    real = f" (real {figure['real']:.4g})" if figure.get("real") is not None else ""
    return f"{figure['value']:.4g}{spread}{real}"


def as_text(report: Mapping[str, Any]) -> str:
    """A report for the terminal: a line a figure, then the protocol and the warnings."""
    lines = [
        f"{LABELS[name]:<20}{figure_text(figure):<24}{_wanted(figure)}"
        for name in LABELS
        if (figure := report["metrics"].get(name))
    ]
    lines.append(f"{'protocol':<20}{report['protocol']['line']}")
    lines += [f"{'warning':<20}{warning}" for warning in report["warnings"]]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def cell(value: Any) -> str:
    """A value of a report in a table."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
