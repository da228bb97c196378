"""Pieces of HTML: cards of videos, bars, tables. All text that comes from outside is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from vqvdm.app.gallery import Gallery, Item
from vqvdm.app.settings import Progress, in_words
from vqvdm.video import Video, shrunk, strip

_LINKS = {"mp4": "MP4", "gif": "GIF", "webp": "WebP", "png": "PNG"}
# For gr.HTML: videos hold still when clicked; a click on a button says which button, and of which video.
CLICKS = """
const hold = video => video.paused ? video.play() : video.pause();
element.addEventListener('click', event => {
  if (event.target.tagName === 'VIDEO') hold(event.target);
  const button = event.target.closest('button[data-act]');
  if (button) trigger('select', {act: button.dataset.act, token: button.dataset.token});
});
element.addEventListener('keydown', event => {
  if (event.target.tagName !== 'VIDEO' || ![' ', 'Enter'].includes(event.key)) return;
  event.preventDefault();
  hold(event.target);
});
"""
_STRIP_SIDE, _STRIP_LENGTH = 128, 16000  # pixels; WebP knows no longer pictures


def grid(gallery: Gallery, tokens: Sequence[str]) -> str:
    """Finished videos that play, each with its settings and what can be done with it."""
    if not tokens:
        return ""
    cards = "".join(card(token, gallery.get(token)) for token in tokens)
    if len(tokens) == 1:
        return f'<div class="videos">{cards}</div>'
    asked = ",".join(tokens)
    links = "".join(
        f'<a href="media/all.zip?tokens={asked}&amp;form={form}" download>{word}</a>' for form, word in _LINKS.items()
    )
    sheet = f'<a href="media/sheet.png?tokens={asked}" download>sheet</a>'
    downloads = f'<p class="downloads">All {len(tokens)} as {links} in a zip, or one {sheet}</p>'
    return f'<div class="videos">{cards}</div>{downloads}'


def card(token: str, item: Item) -> str:
    """One finished video."""
    name, seed, rate = item.facts.get("class", item.name), item.facts.get("seed"), f"{item.fps:g} fps"
    about = f"{name}, {len(item.video)} frames, {rate}" + (f", seed {seed}" if seed is not None else "")
    links = "".join(
        f'<a href="media/{token}.{form}?download=1" download="{escape(item.name)}.{form}">{word}</a>'
        for form, word in _LINKS.items()
    )
    return (
        f'<figure class="video">{player(f"media/{token}.mp4", about, item.video)}<figcaption><b>{escape(str(name))}</b>'
        f'<span class="facts" title="{escape(about)}">{len(item.video)} frames · {rate}</span>'
        f'<span class="does"><button data-act="continue" data-token="{token}" '
        f'aria-label="continue {escape(about)}">Continue</button>'
        f'<button data-act="again" data-token="{token}" aria-label="take the settings of {escape(about)}">'
        f"Settings</button></span>"
        f'<span class="links">{links}</span></figcaption></figure>'
    )


def player(source: str, about: str, video: Video | None = None) -> str:
    """A looping video that a click, or the space bar, holds still (see `CLICKS`); its place is kept if it is known."""
    place = "" if video is None else f' style="aspect-ratio: {video.shape[2]} / {video.shape[1]}"'
    return (
        f'<video src="{source}" autoplay loop muted playsinline disablepictureinpicture tabindex="0" role="button" '
        f'title="click to hold still" aria-label="{escape(about)}"{place}></video>'
    )


def coming(progress: Progress, shown: Sequence[Video]) -> str:
    """Videos on their way, as the denoiser takes them for now."""
    boxes = []
    for number, name in enumerate(progress.names):
        picture = '<span class="moving empty"></span>'
        if number < len(shown):
            video = shown[number]
            picture = moving(video, progress.fps, f"{name}, on its way")
        boxes.append(f'<figure class="video coming">{picture}<figcaption><b>{escape(name)}</b></figcaption></figure>')
    return f'<div class="videos">{"".join(boxes)}</div>'


def moving(video: Video, fps: float, words: str) -> str:
    """A looping video without a player: a strip of all frames that CSS moves on."""
    time, ratio = len(video) / fps, video.shape[2] / video.shape[1]
    video = shrunk(video, _STRIP_SIDE)
    video = video[:: -(-len(video) * video.shape[2] // _STRIP_LENGTH)]
    return (
        f'<span class="moving" role="img" aria-label="{escape(words)}" style="--frames: {len(video)}; '
        f'--time: {time:g}s; aspect-ratio: {ratio:g}; background-image: url({strip(video)})"></span>'
    )


def bar(progress: Progress) -> str:
    """How far it is, and how long it will take."""
    share = 100 * progress.step / max(progress.steps, 1)
    left = "" if progress.seconds_left is None else f" · {in_words(progress.seconds_left)} left"
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<span style="width: {share:.1f}%"></span></div>'
        f'<p class="status">step {progress.step} of {progress.steps}{left}</p>'
    )


def status(words: str) -> str:
    """A line that screen readers speak."""
    return f'<p class="status" role="status">{escape(words)}</p>'


def table(rows: Mapping[str, str]) -> str:
    """Names and values."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f'<table class="facts">{body}</table>'


def chain(boxes: Sequence[tuple[str, str]]) -> str:
    """What leads to what: names, and what there is to say of each."""
    parts = [f"<li><b>{escape(name)}</b><span>{escape(about)}</span></li>" for name, about in boxes]
    return f'<ol class="chain">{"".join(parts)}</ol>'


def picture(pixels: np.ndarray) -> str:
    """uint8 (h, w, 3) as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
