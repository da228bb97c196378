"""Reports side by side, what their protocols do not share, and published figures beside them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vqvdm.errors import InputError
from vqvdm.evaluation.report import cell, figure_text, table
from vqvdm.evaluation.scores import LABELS
from vqvdm.metrics.protocol import FEW, PRESETS
from vqvdm.structure import convert, parse_json

Dataset = Literal["ucf101", "sky", "ucf101-reconstruction"]
_FIGURES = ("is", "fvd", "kvd", "rfvd")


def read_report(path: Path) -> dict[str, Any]:
    """A report that `vqvdm evaluate` wrote.

    Raises:
        InputError: there is none, or it is something else.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a report: {error}") from error
    if isinstance(found, dict) and any(isinstance(part, dict) and "metrics" in part for part in found.values()):
        raise InputError(f"{path} holds the reports of a calibration, which is a table of its own")
    try:
        figures = [figure["value"] for figure in found["metrics"].values()]
        complete = bool(figures and found["protocol"]["line"] and found["counts"]["real"] and found["counts"]["fake"])
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise InputError(f"{path} is no report of `vqvdm evaluate`: it lacks metrics, protocol or counts")
    where = {"": str(path)}
    for name, figure in found["metrics"].items():
        for key in {"value", "deviation", *figure} & {"value", "deviation", "real"}:
            figure[key] = convert(float | None, figure.get(key), where, f"metrics.{name}.{key}")
        figure["value"] = math.nan if figure["value"] is None else figure["value"]  # JSON has no NaN
    for key, kind in (("protocol", Any), ("counts", int), ("real", Any), ("networks", Any)):
        convert(dict[str, kind], found.get(key, {}), where, key)
    return found


def published(dataset: Dataset) -> list[dict[str, Any]]:
    """Rows of the published tables: method, kind, resolution, source, figures, and what is known of the protocol."""
    tables = json.loads((files("vqvdm.evaluation") / "published.json").read_text(encoding="utf-8"))
    return tables[dataset]


def side_by_side(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one column a report, one row a figure; then every field of the protocols in which they differ."""
    names = list(reports)
    rows = [
        [label, *(_figure(report, key) for report in reports.values())]
        for key, label in LABELS.items()
        if any(key in report["metrics"] for report in reports.values())
    ]
    rows.append(["clips, real / fake", *(f"{r['counts']['real']} / {r['counts']['fake']}" for r in reports.values())])
    text = table(["figure", *names], rows)
    if len(reports) == 1:
        return text
    differing = differences(reports)
    if not differing:
        return f"{text}\n\nOne protocol, one reference and one network: these figures compare."
    listed = table(["differs in", *names], [[name, *map(cell, values)] for name, values in differing.items()])
    return f"{text}\n\nThese figures do not compare, as far as this matters:\n\n{listed}"


def rows_of(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one row a report, one column a figure of all of them; then the protocol, which is one, and warnings."""
    names = [name for name in LABELS if all(name in report["metrics"] for report in reports.values())]
    rows = [
        [title, str(report["counts"]["fake"]), *(f"{report['metrics'][name]['value']:.3g}" for name in names)]
        for title, report in reports.items()
    ]
    text = table(["", "clips", *(LABELS[name] for name in names)], rows)
    line = next(iter(reports.values()))["protocol"]["line"].partition(", real ")[0]
    line = re.sub(r" clips \d+,", "", line)  # each row has its own
    sides = {name: side["skipped"] for report in reports.values() for name, side in _sides(report)}
    notes = [f"{name}: cannot be read: {skipped} of its videos" for name, skipped in sides.items() if skipped]
    if min(report["counts"]["fake"] for report in reports.values()) < FEW:
        notes.append(f"FVD of fewer than {FEW} clips compares with nothing but FVD of as many; KVD has no such bias.")
    return "\n\n".join([text, f"Protocol: {line}", *notes])


def _sides(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(report[side]["name"], report[side]) for side in ("real", "fake")]


def differences(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What the figures depend on and the reports do not share: name -> value in each."""
    facts = [_facts(report) for report in reports.values()]
    names = dict.fromkeys(name for fact in facts for name in fact)
    values = {name: [fact.get(name) for fact in facts] for name in names}
    return {name: found for name, found in values.items() if len(set(map(str, found))) > 1}


def published_table(dataset: Dataset) -> str:
    """The published figures as Markdown; an empty protocol is one that the paper does not state."""
    found = published(dataset)
    columns = [column for column in _FIGURES if any(column in row for row in found)]
    rows = [
        [
            *(row[name] for name in ("method", "kind", "resolution")),
            *(cell(row.get(column)) for column in columns),
            row["source"],
            "; ".join(filter(None, (row.get("preset"), row.get("protocol")))),
        ]
        for row in found
    ]
    return table(["method", "kind", "resolution", *(LABELS[column] for column in columns), "where", "protocol"], rows)


def away_from_published(reports: Mapping[str, Mapping[str, Any]], dataset: Dataset) -> str:
    """Markdown: of each report, how its protocol differs from those published ones that are known."""
    known = sorted({row["preset"] for row in published(dataset) if "preset" in row})
    lines = []
    for name, report in reports.items():
        for preset in known:
            theirs = asdict(PRESETS[preset])
            differing = [
                f"{field} {report['protocol'].get(field)} ({value})"
                for field, value in theirs.items()
                if field not in ("name", "seed") and report["protocol"].get(field) != value
            ]
            said = f"differs from it in {', '.join(differing)}" if differing else "repeats it"
            lines.append(f"- `{preset}`: {name} {said}; scored were {report['counts']['fake']} clips")
    return "\n".join(lines)


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    protocol = {name: value for name, value in report["protocol"].items() if name not in ("name", "line", "clips")}
    counts = {f"clips, {side}": number for side, number in report["counts"].items()}
    return {
        **protocol,
        **counts,
        "reference": report.get("real", {}).get("digest"),
        **{f"weights of {name}": identity for name, identity in report.get("networks", {}).items()},
    }


def _figure(report: Mapping[str, Any], name: str) -> str:
    figure = report["metrics"].get(name)
    return "-" if figure is None else figure_text(figure)
