"""`vqvdm runs`: which trainings there are, and how far each is."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vqvdm.runs import Run, Stage, find_runs, read_run
from vqvdm.verbs.terminal import shown

_TOLD = {"loss": "loss", "test_psnr": "PSNR unseen", "clips_per_second": "clips/s"}  # figures that fit into a line


def main(folder: Path = Path("runs"), *, count: int = 20) -> None:
    """List the runs in a folder with their last figures, the latest first.

    Args:
        folder: in which run folders lie; or a run's.
        count: runs that are listed.
    """
    found = find_runs(folder) or [run for run in (read_run(folder),) if run is not None]  # it may be one itself
    if not found:
        print(f"no runs in {folder}; vqvdm train begins one")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("run", "recipe", "stage", "updates", "last figures", "written"):
        table.add_column(name, overflow="fold", no_wrap=name in ("updates", "written"))
    for run in found[:count]:
        for number, stage in enumerate(run.stages):
            name, recipe = (str(run.folder), run.recipe) if number == 0 else ("", "")
            table.add_row(
                shown(name), shown(recipe), shown(stage.name), _progress(stage), _figures(stage), _ago(run, stage)
            )
    console = Console()
    console.print(table)
    if len(found) > count:
        console.print(f"and {len(found) - count} more; --count {len(found)} shows all")


def _progress(stage: Stage) -> str:
    return f"{stage.step:,}" + ("" if stage.steps is None else f" of {stage.steps:,}")


def _figures(stage: Stage) -> str:
    return ", ".join(f"{word} {stage.figures[name]:.4g}" for name, word in _TOLD.items() if name in stage.figures)


def _ago(run: Run, stage: Stage) -> str:
    if stage.is_lively:
        return "training now"
    minutes = (time.time() - run.written) / 60
    if minutes < 90:
        return f"{minutes:.0f} minutes ago"
    return f"{minutes / 60:.0f} hours ago" if minutes < 36 * 60 else f"{minutes / (24 * 60):.0f} days ago"
