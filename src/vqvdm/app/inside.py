"""The tab that looks inside a model: both stages drawn, a clip's latents and tokens as pictures."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vqvdm.app import html
from vqvdm.app.generate import UPLOADS
from vqvdm.app.inspection import open_clip, picture_of_latents, picture_of_tokens
from vqvdm.app.reconstruct import inspected
from vqvdm.app.studio import Studio
from vqvdm.quantizers import ProductCodebook
from vqvdm.video import Video

_INVITATION = "Drop in a video: its latents and tokens appear here."


def build(studio: Studio) -> None:
    """Put the tab's parts where gradio's current context is, and wire them."""
    gr.HTML(_stages(studio))
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=3, min_width=300, elem_classes="form"):
            file = gr.File(label="A video or GIF", file_types=UPLOADS, height=140)
            example = gr.Button("Take one the model made")
        with gr.Column(scale=7, min_width=320):
            shown = gr.HTML(html.status(_INVITATION))

    def show(path: str | None) -> str:
        if not path:
            return html.status(_INVITATION)
        return _insides(studio, lambda: open_clip(Path(path), studio.pipeline))

    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    file.change(show, file, shown, **model)
    example.click(lambda: _insides(studio, studio.own_clip), None, shown, **model)


def _insides(studio: Studio, clip: Callable[[], tuple[Video, float]]) -> str:
    found = inspected(studio, clip)
    words = "Latents: a column a channel, a row a frame in time; red above 0, blue below"
    drawn = [(words, picture_of_latents(found.latents))]
    if found.tokens is not None:
        words = "Tokens: a column a book, a row a frame in time; each code has a colour of its own"
        drawn.append((words, picture_of_tokens(found.tokens)))
    figures = "".join(
        f'<figure class="inside"><img src="{html.picture(picture)}" alt="{escape(words)}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
        for words, picture in drawn
    )
    picture = html.moving(found.real, found.fps, "the clip")
    first = f'<figure class="video">{picture}<figcaption><b>the clip</b></figcaption></figure>'
    return f'<div class="insides">{first}{figures}</div>'


def _stages(studio: Studio) -> str:
    """Both networks as a chain of boxes with shapes and numbers of parameters."""
    pipeline, config = studio.pipeline, studio.pipeline.config
    size = (config["num_frames"], config["height"], config["width"])
    clip = ("clip", "3 × " + " × ".join(map(str, size)))
    latents = ("latents", " × ".join(map(str, pipeline.latent_shape(*size))))
    tokenizer, denoiser = pipeline.tokenizer, pipeline.denoiser
    first = ""
    if tokenizer is not None:
        codebook = tokenizer.codebook
        books = f"{len(codebook.books)} books of " if isinstance(codebook, ProductCodebook) else ""
        codes = "continuous" if codebook is None else f"{books}{codebook.num_codes:,} codes"
        chain = [
            clip,
            ("encoder", html.millions(tokenizer.encoder)),
            latents,
            ("quantiser", codes),
            ("decoder", html.millions(tokenizer.decoder)),
            clip,
        ]
        first = f"<h3>Stage 1, the tokenizer</h3>{html.chain(chain)}"
    levels = " · ".join(str(width) for width in denoiser.config["channels"])
    chain = [
        ("noise", latents[1]),
        ("denoiser", f"{html.millions(denoiser)}, widths {levels}"),
        (f"{config['num_inference_steps']} steps", f"guidance {config['guidance_scale']:g}"),
        latents,
    ]
    classes = f"{pipeline.num_classes} classes" if pipeline.num_classes else "no classes"
    return f"{first}<h3>Stage 2, the denoiser</h3>{html.chain(chain)}{html.status(f'Told: {classes}, the frame rate.')}"
