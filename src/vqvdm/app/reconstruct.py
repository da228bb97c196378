"""The tab that reconstructs: a video through the tokenizer and back, side by side and measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from vqvdm.app import html
from vqvdm.app.gallery import Item
from vqvdm.app.generate import UPLOADS
from vqvdm.app.mistakes import mistakes_shown
from vqvdm.app.studio import Studio
from vqvdm.app.uploads import handed_out
from vqvdm.video import Video

if TYPE_CHECKING:
    from vqvdm.app.inspection import Inspected

_INVITATION = "Drop in a video: a clip of it goes through the tokenizer and back."
_SHOWN = (("original", "real"), ("reconstruction", "made"), ("difference × 4", "difference"))


def build(studio: Studio) -> None:
    """Put the tab's parts where gradio's current context is, and wire them."""
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=3, min_width=300, elem_classes="form"):
            file = gr.File(label="A video or GIF", file_types=UPLOADS, height=140, elem_id="upload")
            start = gr.Number(0, label="From second", minimum=0)
            example = gr.Button("Take one the model made")
        with gr.Column(scale=7, min_width=320):
            shown = gr.HTML(html.status(_INVITATION), js_on_load=html.CLICKS, elem_id="reconstruction")

    def show(path: str | None, start: float | None) -> str:
        if not path:
            return html.status(_INVITATION)
        return _shown(studio, lambda: studio.maker.open_clip(Path(path), start or 0.0))

    def show_own() -> str:
        return _shown(studio, studio.own_clip)

    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    file.change(show, [file, start], shown, **model)
    start.submit(show, [file, start], shown, **model)
    example.click(show_own, None, shown, **model)
    _api(studio)


def inspected(studio: Studio, clip: Callable[[], tuple[Video, float]]) -> Inspected:
    """What the tokenizer makes of a clip; gradio's error for a user's mistake."""
    with mistakes_shown():
        return studio.maker.inspect(*clip())


def _shown(studio: Studio, clip: Callable[[], tuple[Video, float]]) -> str:
    found = inspected(studio, clip)
    cards = []
    for words, part in _SHOWN:
        video = getattr(found, part)
        with mistakes_shown():
            token = studio.gallery.add(Item(video, found.fps, part, {"generator": studio.generator, "content": words}))
        cards.append(
            f'<figure class="video">{html.player(f"media/{token}.mp4", words, video)}'
            f"<figcaption><b>{words}</b></figcaption></figure>"
        )
    return f'<div class="videos three">{"".join(cards)}</div>{html.table(found.figures)}{_histogram(found)}'


def _histogram(found: Inspected) -> str:
    """How often the codes of the first book occur, the most frequent first."""
    counts = found.frequencies()
    if not counts:
        return ""
    bars = "".join(
        f'<rect x="{k}" y="{40 - 40 * n / counts[0]:.1f}" width="0.9" height="{40 * n / counts[0]:.1f}"/>'
        for k, n in enumerate(counts[:256])
    )
    words = (
        f"{len(counts)} of {found.codes:,} codes of the first book occur in this clip, the commonest {counts[0]} times"
    )
    box = f'viewBox="0 0 {min(len(counts), 256)} 40" preserveAspectRatio="none"'
    return (
        f'<figure class="histogram"><svg {box} role="img" aria-label="{words}">{bars}</svg>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _api(studio: Studio) -> None:
    def reconstruct(path: str, start: float = 0.0) -> tuple[str, dict[str, str]]:
        if not path:
            raise gr.Error("no video is given", print_exception=False)
        found = inspected(studio, lambda: studio.maker.open_clip(Path(path), start))
        item = Item(found.made, found.fps, "reconstruction", {"generator": studio.generator})
        return handed_out(item, "mp4"), dict(found.figures)

    inputs = [gr.File(visible=False), gr.Number(0, visible=False)]
    gr.Button(visible=False).click(
        reconstruct,
        inputs,
        [gr.File(visible=False), gr.JSON(visible=False)],
        api_name="reconstruct",
        concurrency_limit=1,
        concurrency_id="model",
    )
