"""What the demo measured, as plain numbers for `report.json`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from vqvdm import __version__
from vqvdm.demo.clips import Generated, Unseen
from vqvdm.judge import CLASSES, Judgement, accuracy, displacement, displacement_ratio
from vqvdm.machine import commit, machine
from vqvdm.recipe import Recipe


def make_report(
    recipe: Recipe, run: Path, generated: Sequence[Generated], unseen: Sequence[Unseen], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The demo's figures, ready for JSON.

    Shares are 0..1, displacements are in frame sides per frame, and a ratio that nothing could be measured for is None.

    Args:
        recipe, run: with which and where both stages were trained.
        generated, unseen: judged clips, at two frame rates.
        seconds: wall time of each stage.
    """
    low, high = sorted({clip.fps for clip in generated})
    real = [(clip.fps, clip.judged) for clip in unseen]
    decoded = [(clip.fps, clip.judged_made) for clip in unseen]
    made = [(clip.fps, clip.judged) for clip in generated]
    labels, asked = [clip.label for clip in unseen], [clip.label for clip in generated]
    return {
        "reconstruction_psnr_db": round(float(np.mean([clip.psnr for clip in unseen])), 3),
        "judge_accuracy": accuracy([verdict for _, verdict in made], asked),
        "judge_chance": 1 / len(CLASSES),
        "displacement_ratio": _ratio(made, low, high),
        "seconds": round(sum(seconds.values()), 1),
        "judge_accuracy_real": accuracy([verdict for _, verdict in real], labels),
        "judge_accuracy_reconstructed": accuracy([verdict for _, verdict in decoded], labels),
        "judge_accuracy_by_class": {name: _share(generated, label=k) for k, name in enumerate(CLASSES)},
        "judge_accuracy_by_fps": {f"{fps:g}": _share(generated, fps=fps) for fps in (low, high)},
        "confusion": _confusion(generated),
        "displacement_ratio_real": _ratio(real, low, high),
        "displacement_per_frame": {
            name: {f"{fps:g}": displacement(_at(verdicts, fps)) for fps in (low, high)}
            for name, verdicts in (("real", real), ("generated", made))
        },
        "generated_clips": len(generated),
        "unseen_clips": len(unseen),
        "seconds_by_stage": dict(seconds),
        "recipe": recipe.name,
        "frames": recipe.data.frames,
        "size": recipe.data.size,
        "steps": {"tokenizer": _steps(run / "tokenizer"), "denoiser": _steps(run / "pipeline")},
        "parameters": {name: _parameters(run / "pipeline" / name) for name in ("tokenizer", "denoiser")},
        "scheduler": recipe.sampling.scheduler,
        "sampling_steps": recipe.sampling.steps,
        "guidance_scale": recipe.sampling.guidance_scale,
        "version": __version__,
        "commit": commit(),
        "machine": machine(),
    }


def _at(verdicts: Sequence[tuple[float, Judgement]], fps: float) -> list[Judgement]:
    return [verdict for rate, verdict in verdicts if rate == fps]


def _ratio(verdicts: Sequence[tuple[float, Judgement]], low: float, high: float) -> float | None:
    ratio = displacement_ratio(_at(verdicts, low), _at(verdicts, high))
    return None if math.isnan(ratio) else round(ratio, 4)


def _share(generated: Sequence[Generated], label: int | None = None, fps: float | None = None) -> float:
    chosen = [clip for clip in generated if label in (None, clip.label) and fps in (None, clip.fps)]
    return accuracy([clip.judged for clip in chosen], [clip.label for clip in chosen])


def _confusion(generated: Sequence[Generated]) -> dict[str, dict[str, int]]:
    """Class asked for -> what the judge saw ("none" among it) -> number of clips."""
    return {
        name: dict(Counter(clip.judged.name for clip in generated if clip.label == label))
        for label, name in enumerate(CLASSES)
    }


def _steps(export: Path) -> int:
    return int(json.loads((export / "training.json").read_text(encoding="utf-8"))["step"])


def _parameters(folder: Path) -> int:
    """Numbers in the weight files of a model."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total
