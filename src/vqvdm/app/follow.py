"""The tab that watches runs: which there are, their curves and samples, live while they train."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vqvdm.app import html
from vqvdm.errors import InputError
from vqvdm.runs import Run, Stage, charts, read_run, run_folders, samples

_EVERY = 10  # seconds between two looks at a run
_SAMPLES = 6  # the latest ones that are shown
_LARGEST = 8 * 2**20  # bytes of a sample video that is put into the page


def build(folder: Path, tab: gr.Tab) -> None:
    """Put the tab's parts where gradio's current context is, and wire them; `folder` holds the runs."""
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=3, min_width=300, elem_classes="form"):
            choice = gr.Dropdown(**_choices(folder), label="Run", elem_id="run")
            again = gr.Button("Look for new runs")
            live = gr.Checkbox(True, label=f"Look again every {_EVERY} seconds")
        with gr.Column(scale=7, min_width=320):
            shown = gr.HTML("", js_on_load=html.CLICKS, elem_id="curves")
    timer = gr.Timer(_EVERY)

    def look(name: str | None) -> str:
        return _shown(folder, name)

    # Out of the queue: every open tab looks again and again, and would take the places of those who wait for a video.
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    gr.on([tab.select, choice.change, timer.tick], look, choice, shown, **quiet)
    live.change(lambda on: gr.Timer(active=on), live, timer, **quiet)
    again.click(lambda: gr.Dropdown(**_choices(folder)), None, choice, **quiet)


def _names(folder: Path) -> list[str]:
    try:
        return [inner.relative_to(folder).as_posix() for inner in run_folders(folder)]
    except InputError:
        return []


def _choices(folder: Path) -> dict[str, Any]:
    names = _names(folder)
    return {"choices": names, "value": next(iter(names), None)}


def _shown(folder: Path, name: str | None) -> str:
    if not name or name not in _names(folder):  # only what is listed is ever read
        return html.status(f"No runs in {folder.name}/ yet; vqvdm train begins one.")
    run = read_run(folder / name)
    if run is None:
        return html.status("This run has not written anything yet.")
    drawn = charts(run.folder)
    stages = [_stage(stage, drawn.get(stage.name, {})) for stage in run.stages]
    return "".join([_heading(run), *stages, _samples(run.folder)])


def _heading(run: Run) -> str:
    return f"<h3>{escape(run.folder.name)} <span>recipe {escape(run.recipe or 'unknown')}</span></h3>"


def _stage(stage: Stage, drawn: Mapping[str, str]) -> str:
    share = "" if stage.steps is None else f" of {stage.steps:,}"
    state = "done" if stage.is_done else "training now" if stage.is_lively else "not at work"
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn.values())
    return (
        f"<h4>{escape(stage.name)} <span>{stage.step:,}{share} updates, {state}</span></h4>"
        f'<div class="charts">{figures}</div>'
    )


def _samples(folder: Path) -> str:
    cards = []
    for path in samples(folder)[:_SAMPLES]:
        try:
            data = path.read_bytes()
        except OSError:  # rotated away between listing and reading
            continue
        if len(data) > _LARGEST:
            continue
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        cards.append(
            f'<figure class="video">{html.player(source, path.stem)}'
            f'<figcaption><b>{escape(path.stem)}</b><span class="facts">{written}</span></figcaption></figure>'
        )
    return f'<h4>Samples</h4><div class="videos wide">{"".join(cards)}</div>' if cards else ""
