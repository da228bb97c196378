"""The tab that looks inside a model: both stages drawn, a clip's latents and tokens as pictures."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vqvdm.app import html
from vqvdm.app.generate import UPLOADS
from vqvdm.app.reconstruct import inspected
from vqvdm.app.studio import Studio
from vqvdm.video import Video

_INVITATION = "Drop in a video: its latents and tokens appear here."


def build(studio: Studio) -> None:
    """Put the tab's parts where gradio's current context is, and wire them."""
    drawn, timer = gr.HTML(html.status("The model is being loaded.")), gr.Timer(1)
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=3, min_width=300, elem_classes="form"):
            file = gr.File(label="A video or GIF", file_types=UPLOADS, height=140)
            example = gr.Button("Take one the model made")
        with gr.Column(scale=7, min_width=320):
            shown = gr.HTML(html.status(_INVITATION))

    def show(path: str | None) -> str:
        if not path:
            return html.status(_INVITATION)
        return _insides(studio, lambda: studio.maker.open_clip(Path(path)))

    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    file.change(show, file, shown, **model)
    example.click(lambda: _insides(studio, studio.own_clip), None, shown, **model)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    timer.tick(lambda: _drawn(studio), None, [drawn, timer], **quiet)


def _insides(studio: Studio, clip: Callable[[], tuple[Video, float]]) -> str:
    found = inspected(studio, clip)
    figures = "".join(
        f'<figure class="inside"><img src="{html.picture(picture)}" alt="{escape(words)}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
        for words, picture in found.pictures().items()
    )
    picture = html.moving(found.real, found.fps, "the clip")
    first = f'<figure class="video">{picture}<figcaption><b>the clip</b></figcaption></figure>'
    return f'<div class="insides">{first}{figures}</div>'


def _drawn(studio: Studio) -> tuple[Any, gr.Timer]:
    """The stages as soon as the model is loaded, and whether to look again."""
    return (_stages(studio), gr.Timer(active=False)) if studio.is_loaded else (gr.skip(), gr.Timer(active=True))


def _stages(studio: Studio) -> str:
    """Both networks as a chain of boxes with shapes and numbers of parameters."""
    drawn = [f"<h3>{escape(title)}</h3>{html.chain(boxes)}" for title, boxes in studio.maker.stages()]
    number = len(studio.description.classes)
    classes = f"{number} classes" if number else "no classes"
    told = f"Told: {classes}, the frame rate. At work on this machine's {studio.maker.device}."
    return f"{''.join(drawn)}{html.status(told)}"
