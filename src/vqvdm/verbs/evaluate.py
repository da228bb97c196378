"""`vqvdm evaluate`: figures of videos, with the protocol beside each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vqvdm.data.layouts import Layout
from vqvdm.errors import InputError
from vqvdm.evaluation.compare import LABELS, Dataset, published_table, read_report, side_by_side
from vqvdm.evaluation.files import Extractor, score_videos
from vqvdm.evaluation.sources import open_videos
from vqvdm.files import check_writable, write_text
from vqvdm.loading import pick_device
from vqvdm.metrics.protocol import preset
from vqvdm.metrics.resize import Convention
from vqvdm.weights.folder import weights_file
from vqvdm.weights.i3d import load_i3d


def files(
    samples: str,
    *,
    reference: str,
    report: Path | None = None,
    protocol: str = "vqvdm",
    clips: int | None = None,
    repeats: int | None = None,
    frames: int | None = None,
    stride: int | None = None,
    seed: int | None = None,
    split: Literal["train", "test", "all"] | None = None,
    window: Literal["one", "any", "first"] | None = None,
    order: Literal["random", "sorted"] | None = None,
    resize: Convention | None = None,
    epsilon: float | None = None,
    ddof: int | None = None,
    size: int | None = None,
    layout: Layout = "auto",
    batch: int = 4,
    device: str = "auto",
) -> None:
    """Score videos of any system against reference videos: FVD, KVD, motion, precision, recall, density,
    coverage.

    Either side is a folder of videos, GIFs or frames, or one array file (.npy, .npz, .pt) of (n, t, h, w, 3). Features
    are kept in the cache, so the same reference costs nothing the second time, and an interrupted run goes on.

    Args:
        samples: what is scored.
        reference: what it is compared with.
        report: JSON file for the figures, with all that they depend on.
        protocol: vqvdm, google, tats, stylegan-v or latte; the options below change single fields of it.
        clips: of each side; fewer samples than that are refused. By default the protocol's number (2048), or all there
            are.
        repeats: draws, of which mean and deviation are given.
        frames: of a clip.
        stride: of the reference.
        seed: of draws and windows.
        split: of the reference, where it has splits.
        window: of each video: one at random, any (long videos count more), or the first.
        order: of the videos that are taken.
        resize: how frames become 224x224: half_pixel, legacy or align_corners.
        epsilon: of I3D's batch norm.
        ddof: covariances are divided by n - ddof.
        size: resize and cut the frames of files on both sides to this many pixels first.
        layout: of the reference's folder.
        batch: clips the network sees at a time.
        device: cpu, cuda, mps or auto.
    """
    if batch < 1:
        raise InputError(f"--batch must be at least 1, not {batch}")
    if size is not None and size < 1:
        raise InputError(f"--size must be at least 1, not {size}")
    if report is not None:
        check_writable(report.parent)
    chosen = preset(protocol).changed(
        repeats=repeats,
        frames=frames,
        stride=stride,
        seed=seed,
        split=split,
        window=window,
        order=order,
        resize=resize,
        epsilon=epsilon,
        ddof=ddof,
    )
    weights = weights_file("i3d")
    fake = open_videos(samples, size=size)
    real = open_videos(reference, layout=layout, split=chosen.split, size=size)
    identity = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    extractor = Extractor(load_i3d(chosen.epsilon), identity, str(pick_device(device)), batch)
    found = score_videos(fake, real, chosen, extractor, asked=clips)
    if report is not None:
        write_text(report, json.dumps(found, indent=1) + "\n")
    print(as_text(found))


def compare(*reports: Path, dataset: Dataset | None = None) -> None:
    """Print reports side by side, and where their protocols differ.

    Args:
        reports: files that `vqvdm evaluate` wrote.
        dataset: add the published figures on UCF-101 (ucf101) or Sky Time-lapse (sky).
    """
    if not reports and dataset is None:
        raise InputError("nothing to compare: give reports, or --dataset ucf101 or sky for the published figures")
    if reports:
        print(side_by_side({path.stem if names_differ(reports) else str(path): read_report(path) for path in reports}))
    if dataset is not None:
        print(f"\nPublished, each by its own protocol:\n\n{published_table(dataset)}")


def names_differ(paths: Sequence[Path]) -> bool:
    """Whether files can be told apart by their names without folder and suffix."""
    return len({path.stem for path in paths}) == len(paths)


def as_text(found: dict[str, Any]) -> str:
    """A report for the eye: a line a figure, then the protocol and the warnings."""
    lines = []
    for name, label in LABELS.items():
        if figure := found["metrics"].get(name):
            spread = "" if figure["deviation"] is None else f" +- {figure['deviation']:.2g}"
            lines.append(f"{label:<12}{figure['value']:>12.4g}{spread}   ({figure['better']} is better)")
    lines.append(f"protocol    {found['protocol']['line']}")
    lines += [f"warning     {warning}" for warning in found["warnings"]]
    return "\n".join(lines)
