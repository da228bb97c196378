"""The demo's page: one HTML file that needs neither network nor scripts.

A clip is a strip of all its frames, side by side in one lossless picture, that CSS moves on frame by frame. So clips of
one frame rate keep step with each other, hold still together, and stay sharp when enlarged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vqvdm.charts import INK, SECOND, Series, alone, line_chart, matrix
from vqvdm.demo.clips import Generated, Unseen
from vqvdm.demo.files import first
from vqvdm.files import write_text
from vqvdm.judge import CLASSES
from vqvdm.recipe import Recipe
from vqvdm.video import Video, strip

SHOWN = 4  # generated clips of each class and frame rate: the first ones, not the best ones
_STYLE = Path(__file__).with_name("page.css")
_PAUSE = (
    '<label class="pause"><input type="checkbox" id="pause"> <span class="still">hold still</span>'
    '<span class="move">move</span></label>'
)


def write_page(
    recipe: Recipe,
    run: Path,
    report: Mapping[str, Any],
    generated: Sequence[Generated],
    unseen: Sequence[Unseen],
    bundled: Sequence[Generated] = (),
) -> None:
    """Write `run`/index.html and `run`/figures.

    Args:
        recipe: with which all was made.
        run: its log.jsonl gives the curves.
        report: from `make_report`.
        generated, unseen: judged clips.
        bundled: judged clips of the model that comes with the package.
    """
    figures = make_figures(run, report)
    for name, (_, svg) in figures.items():
        write_text(run / "figures" / f"{name}.svg", alone(svg))
    body = [
        _header(report),
        _cards(report),
        *_bundled(bundled),
        '<h2 id="clips">Class by class</h2>',
        _explanation(),
        "" if bundled else _PAUSE,
        *(_class_rows(label, report, generated, unseen) for label in range(len(CLASSES))),
        "<h2>Figures</h2>",
        '<div class="figures">',
        *(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for caption, svg in figures.values()),
        "</div>",
        _numbers(report),
        _going_on(recipe, run),
    ]
    _write(run, recipe.name, _scale(report["size"], report["frames"]), body)


def write_first_page(run: Path, name: str, bundled: Sequence[Generated]) -> Path:
    """Write `run`/index.html for the time of the training, with what the bundled model makes; return it."""
    text = (
        "<header><h1>Moving pictures from noise</h1><p>This page is of the time in which the demo trains a small model "
        "of its own. It will tell of both when that is done: load it again then.</p></header>"
    )
    return _write(run, name, "", [text, *_bundled(bundled)])


def _write(run: Path, name: str, scale: str, body: Sequence[str]) -> Path:
    page = run / "index.html"
    write_text(
        page,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>vqvdm demo: {escape(name)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}"
        f":root {{ {scale} }}\n</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n",
    )
    return page


def _scale(side: int, frames: int) -> str:
    """How large clips are shown, as CSS."""
    large, small = (side * max(1, round(pixels / side)) for pixels in (96, 64))
    return f"--large: {large}px; --small: {small}px; --frames: {frames}"


def _bundled(clips: Sequence[Generated]) -> list[str]:
    if not clips:
        return []
    frames, side = clips[0].video.shape[:2]
    right = sum(clip.judged.label == clip.label for clip in clips)
    groups = [
        _group(name, [_generated_cell(clip, "bundled") for clip in clips if clip.label == label])
        for label, name in enumerate(CLASSES)
    ]
    return [
        '<h2 id="bundled">The model that comes with the package</h2>',
        f"<p>Trained on the same world at {side}×{side} pixels, on a GPU, and made just now on this machine by what "
        f"<code>vqvdm sample</code> calls: the first clips of each class, not the best. The judge recognises "
        f"{right} of {len(clips)}. A click opens a clip as a video file.</p>",
        _PAUSE,
        f'<section style="{_scale(side, frames)}"><div class="groups">{"".join(groups)}</div></section>',
    ]


# ---------------------------------------------------------------------------------------------------------- above


def _header(report: Mapping[str, Any]) -> str:
    minutes = report["seconds"] / 60
    took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{report['seconds']:.0f} seconds"
    size = report["size"]
    return (
        f"<header><h1>Moving pictures from noise</h1><p>In {took} this machine learned from a built-in world of moving "
        f"shapes how to make small videos: a <b>tokenizer</b> that squeezes a clip of {report['frames']} frames of "
        f"{size}×{size} pixels into a small grid of codes and back, and a <b>denoiser</b> that makes such grids out of "
        "noise for an asked motion and frame rate.</p></header>"
    )


def _cards(report: Mapping[str, Any]) -> str:
    ratio = report["displacement_ratio"]
    seconds = report["seconds"]
    cards = [
        (
            f"{report['judge_accuracy']:.0%}",
            "generated clips show the motion asked for",
            f"measured by the judge on {report['generated_clips']} clips; guessing would give "
            f"{report['judge_chance']:.0%}, real clips {report['judge_accuracy_real']:.0%}{_missed(report)}",
        ),
        (
            f"{report['reconstruction_psnr_db']:.1f} dB",
            "fidelity of reconstructions (PSNR)",
            f"mean over {report['unseen_clips']} unseen clips, higher is better; at 24 dB places, "
            "colours and sizes come through and outlines are soft",
        ),
        (
            "—" if ratio is None else f"{ratio:.2f}",
            "motion per frame at 16 against 8 frames per second",
            "twice the frame rate should halve the step from frame to frame: "
            + ("too few moving clips to tell" if ratio is None else "0.50 is right"),
        ),
        (
            f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s",
            "for everything",
            f"on {report['machine']['gpu'] or report['machine']['processor']}",
        ),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><div class="value">{escape(value)}</div><div class="what">{escape(what)}</div>'
            f'<div class="note">{escape(note)}</div></div>'
            for value, what, note in cards
        )
        + "</div>"
    )


def _missed(report: Mapping[str, Any]) -> str:
    """Which classes were hardly ever made, which a mean would hide."""
    chance = report["judge_chance"]
    missed = [f"{name} ({share:.0%})" for name, share in report["judge_accuracy_by_class"].items() if share <= chance]
    return f"; hardly ever made: {', '.join(missed)}" if missed else ""


def _explanation() -> str:
    return (
        "<p>At the left a clip that no network has seen, and what the tokenizer makes of it. Then what the denoiser "
        "makes when asked for the class by name: the first clips of each class, not the best. At both frame rates it "
        "starts from the same noise. Below each stands what the judge saw, which measures position, size and angle "
        "and knows nothing of the networks. A click opens a clip as a video file.</p>"
    )


# ---------------------------------------------------------------------------------------------------------- clips


def _class_rows(label: int, report: Mapping[str, Any], generated: Sequence[Generated], unseen: Sequence[Unseen]) -> str:
    name, pair = CLASSES[label], first(unseen, label)
    link = f"videos/{pair.file}.mp4"
    cells = [
        _cell(pair.real, pair.fps, link, f"real clip, {name}, {pair.fps:g} frames per second", "real"),
        _cell(pair.made, pair.fps, link, f"its reconstruction, {pair.psnr:.1f} dB", f"{pair.psnr:.1f} dB"),
    ]
    groups = [_group("real, reconstructed", cells)]
    for fps in sorted({clip.fps for clip in generated}):
        shown = [clip for clip in generated if clip.label == label and clip.fps == fps][:SHOWN]
        groups.append(_group(f"generated, {fps:g} fps", [_generated_cell(clip) for clip in shown]))
    asked = sum(clip.label == label for clip in generated)
    right = round(report["judge_accuracy_by_class"][name] * asked)
    return (
        f'<section><h3>{name} <span class="count">{right} of {asked} generated clips recognised</span></h3>'
        f'<div class="groups">{"".join(groups)}</div></section>'
    )


def _generated_cell(clip: Generated, folder: str = "videos") -> str:
    asked, seen = CLASSES[clip.label], clip.judged.name
    verdict = f'<span class="wrong">{"nothing" if seen == "none" else seen}</span>'
    if clip.judged.label == clip.label:
        verdict = '<span class="right">✓</span>'
    words = f"generated clip, {asked} asked for, {clip.fps:g} frames per second, seed {clip.seed}; judge: {seen}"
    return _cell(clip.video, clip.fps, f"{folder}/{clip.file}.mp4", words, verdict)


def _group(title: str, cells: Sequence[str]) -> str:
    return f'<div class="group"><div class="title">{escape(title)}</div><div class="row">{"".join(cells)}</div></div>'


def _cell(video: Video, fps: float, link: str, words: str, caption: str) -> str:
    """One moving clip; `caption` is HTML."""
    return (
        f'<a class="cell" href="{link}"><span class="clip" role="img" aria-label="{escape(words, quote=True)}" '
        f'title="{escape(words, quote=True)}" style="--time: {len(video) / fps:g}s; '
        f'background-image: url({strip(video)})"></span><span class="caption">{caption}</span></a>'
    )


# -------------------------------------------------------------------------------------------------------- figures


def make_figures(run: Path, report: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (caption, SVG element)."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {
        stage: line_chart(
            [Series("", _curve(log, stage, "loss"))], f"loss of the {stage}", "updates", "loss", logarithmic=True
        )
        for stage in ("tokenizer", "denoiser")
    }
    return {
        "tokenizer-loss": (
            "<b>Tokenizer, loss.</b> Distance between clips and their reconstructions.",
            losses["tokenizer"],
        ),
        "tokenizer-psnr": (
            "<b>Tokenizer, fidelity.</b> The same as PSNR, in training and on unseen clips.",
            line_chart(
                [
                    Series("training", _curve(log, "tokenizer", "psnr")),
                    Series("unseen clips", _curve(log, "tokenizer", "test_psnr"), SECOND, 0.0, dots=True),
                ],
                "PSNR of the tokenizer",
                "updates",
                "PSNR in dB",
            ),
        ),
        "denoiser-loss": (
            "<b>Denoiser, loss.</b> It levels off early, as part of the noise cannot be told; samples go on improving.",
            losses["denoiser"],
        ),
        "frame-rate": (
            "<b>Frame rate.</b> Motion from one frame to the next, over the classes that travel: thin lines are single "
            "classes of generated clips.",
            _frame_rate_chart(report),
        ),
        "confusion": (
            "<b>Judge.</b> Generated clips by the class asked for (rows) and the one the judge saw (columns); blue is "
            "right.",
            matrix(report["confusion"], (*CLASSES, "none"), "confusion matrix of the judge"),
        ),
    }


def _curve(log: Sequence[Mapping[str, Any]], stage: str, figure: str) -> list[tuple[float, float]]:
    return [(line["step"], line[figure]) for line in log if line["stage"] == stage and line.get(figure) is not None]


def _frame_rate_chart(report: Mapping[str, Any]) -> str:
    side = report["size"]
    pixels = {
        kind: {float(fps): {name: side * step for name, step in steps.items()} for fps, steps in by_rate.items()}
        for kind, by_rate in report["displacement_per_frame"].items()
    }
    rates = sorted(pixels["generated"])
    single = [
        Series("", [(fps, pixels["generated"][fps][name]) for fps in rates], SECOND, 0.75)
        for name in _everywhere(pixels["generated"])
    ]
    real = Series("real", _means(pixels["real"]), INK, 2.0, dashed=True, dots=True)
    made = Series("generated", _means(pixels["generated"]), SECOND, 3.0, dots=True)
    return line_chart(
        [*single, real, made],
        "displacement per frame against frame rate",
        "frames per second",
        "pixels per frame",
        from_zero=True,
        x_ticks=rates,
    )


def _everywhere(by_rate: Mapping[float, Mapping[str, float]]) -> list[str]:
    """The classes that were measured at every frame rate."""
    seen = [set(steps) for steps in by_rate.values()]
    return sorted(set.intersection(*seen)) if seen else []


def _means(by_rate: Mapping[float, Mapping[str, float]]) -> list[tuple[float, float]]:
    names = _everywhere(by_rate)
    return [(fps, float(np.mean([steps[name] for name in names]))) for fps, steps in by_rate.items()] if names else []


# ---------------------------------------------------------------------------------------------------------- below


def _numbers(report: Mapping[str, Any]) -> str:
    ratio_real, by_fps, machine = report["displacement_ratio_real"], report["judge_accuracy_by_fps"], report["machine"]
    measured = {
        "judge's accuracy on generated clips": f"{report['judge_accuracy']:.1%}",
        **{f"… at {fps} frames per second": f"{share:.1%}" for fps, share in by_fps.items()},
        "… on real clips": f"{report['judge_accuracy_real']:.1%}",
        "… on reconstructions": f"{report['judge_accuracy_reconstructed']:.1%}",
        "… by chance": f"{report['judge_chance']:.0%}",
        "PSNR of reconstructions": f"{report['reconstruction_psnr_db']:.2f} dB",
        "motion per frame, 16 against 8 fps": _or_dash(report["displacement_ratio"]),
        "… of real clips": _or_dash(ratio_real),
    }
    spent = {name: f"{seconds:,.0f} s" for name, seconds in report["seconds_by_stage"].items()}
    spent["together"] = f"{report['seconds']:,.0f} s"
    made = {
        "recipe": report["recipe"],
        "version": report["version"] + (f" ({report['commit']})" if report["commit"] else ""),
        **{
            name: f"{report['parameters'][name] / 1e6:.2f} M parameters, {report['steps'][name]:,} updates"
            for name in ("tokenizer", "denoiser")
        },
        "sampling": f"{report['sampling_steps']} steps of {report['scheduler']}, guidance {report['guidance_scale']:g}",
        "machine": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['threads']} threads",
        "software": f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}",
    }
    tables = (("Measured", measured), ("Time", spent), ("Made with", made))
    return (
        '<h2>Numbers</h2><div class="tables">'
        + "".join(f"<div><h3>{title}</h3>{_table(rows)}</div>" for title, rows in tables)
        + '</div><p>All of them: <a href="report.json">report.json</a>. One picture of all classes: '
        '<a href="sheet.png">sheet.png</a>. Every clip: <a href="videos/">videos</a>. Pictures from the training: '
        '<a href="samples/">samples</a>.</p>'
    )


def _or_dash(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}"


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _going_on(recipe: Recipe, run: Path) -> str:
    longer = 3 * recipe.denoiser.training.steps
    place = "" if run == Path("runs") / recipe.name else f" --run {run}"
    name = "" if recipe.name == "demo" else f" --recipe {recipe.name}"
    commands = {
        "Sample more": f"vqvdm sample {run} --classes left,orbit-right --count 8 --fps 12 --out samples",
        "Train the denoiser longer, from where it is": f"vqvdm demo{name}{place} denoiser.training.steps={longer}",
        "The same world at 64×64 pixels, on a GPU": "vqvdm demo --recipe toy",
        "Your own clips, one folder a class": (
            "vqvdm data check CLIPS\n"
            "vqvdm train tokenizer asl64 data.path=CLIPS --run runs/mine\n"
            "vqvdm encode asl64 data.path=CLIPS --run runs/mine\n"
            "vqvdm train denoiser asl64 data.path=CLIPS --run runs/mine\n"
            "vqvdm sample runs/mine"
        ),
    }
    return "<h2>How to go on</h2>" + "".join(
        f"<h3>{escape(title)}</h3><pre>{escape(lines)}</pre>" for title, lines in commands.items()
    )
