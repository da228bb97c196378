"""All tabs on one page, and how it looks."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vqvdm import __version__
from vqvdm.app import follow, generate, inside, reconstruct
from vqvdm.app.studio import Studio

_HERE = Path(__file__).parent
_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")


def make_page(studio: Studio, runs: Path) -> gr.Blocks:
    """The page for a model; `runs` is a folder of runs to watch."""
    with gr.Blocks(title="vqvdm", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f'<header class="top"><h1>vqvdm</h1><p>Videos from noise, made by <b>{escape(studio.description.name)}</b> '
            "on this machine.</p></header>",
            elem_id="top",
        )
        with gr.Tab("Generate", id="generate"):
            generate.build(studio)
        if studio.description.reconstructs:
            with gr.Tab("Reconstruct", id="reconstruct"):
                reconstruct.build(studio)
            with gr.Tab("Inside", id="inside"):
                inside.build(studio)
        with gr.Tab("Runs", id="runs") as tab:
            follow.build(runs, tab)
        gr.HTML(f"<footer>vqvdm {__version__} · what is made here is marked as generated in the files</footer>")
        page.unload(generate.stopper(studio))
    return page


def looks() -> dict[str, Any]:
    """Theme and style, as gradio's launching takes them."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONT,
        font_mono=_MONO,
    )
    return {"theme": theme, "css": (_HERE / "page.css").read_text(encoding="utf-8")}
