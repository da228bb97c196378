"""The tab that generates: a form, the videos as they come to be, and what to do with them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vqvdm.app import html
from vqvdm.app.description import Description
from vqvdm.app.mistakes import mistakes_shown, words_of
from vqvdm.app.settings import MOST_FRAMES, MOST_STEPS, MOST_VIDEOS, Progress, Settings
from vqvdm.app.studio import Studio
from vqvdm.app.uploads import handed_out
from vqvdm.app.waiting import has_left
from vqvdm.decode import VIDEO_SUFFIXES
from vqvdm.errors import InputError
from vqvdm.request import Request
from vqvdm.video import FORMATS

UPLOADS = sorted(VIDEO_SUFFIXES)  # kinds of files that are offered; others are refused by name
_FEW = 24  # classes that are shown side by side; more are picked from a list
_FIRST = 8  # classes ticked at first
_LARGEST_SEED = 2**31 - 1


def build(studio: Studio) -> None:
    """Put the tab's parts where gradio's current context is, and wire them."""
    form = _form(studio.description)
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=3, min_width=300, elem_classes="form"):
            for part in ("classes", "count", "fps", "frames"):
                form[part].render()
            with gr.Accordion("Sampling", open=False):
                for part in ("guidance", "steps", "scheduler", "seed", "new_seed"):
                    form[part].render()
            with gr.Accordion("Begin, end or fill in with your own", open=False):
                given = _given()
            with gr.Row(elem_classes="buttons"):
                go = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="stop")
            estimate = gr.HTML(html.status(""), elem_id="estimate")
        with gr.Column(scale=7, min_width=320):
            state = gr.HTML(html.status("Press Generate."), elem_id="progress")
            videos = gr.HTML("", js_on_load=html.CLICKS, elem_id="videos")
    inputs = [*form.values(), *given.values()]
    names = [*form, *given]

    def asked(*values: Any) -> tuple[Settings, Request]:
        return _asked(dict(zip(names, values, strict=True)))

    def run(settings: Settings, request: Request, session: str) -> Iterator[dict[Any, Any]]:
        began, shown = time.perf_counter(), ()
        yield {state: html.status(_waiting(studio)), form["seed"]: settings.seed}
        try:
            for event in studio.generate(settings, request, session):
                if isinstance(event, Progress):
                    if not event.names:
                        began = time.perf_counter()
                        yield {state: html.status(_waiting(studio))}
                        continue
                    shown = event.previews or shown[: len(event.names)] if event.step > 0 else ()
                    updates = {state: html.bar(event)}
                    if event.previews or event.step == 0:
                        updates[videos] = html.coming(event, shown)
                    yield updates
                elif not event:
                    yield {videos: "", state: html.status("Stopped.")}
                else:
                    words = _made(studio, len(event), settings, time.perf_counter() - began)
                    yield {videos: html.grid(studio.gallery, event), state: html.status(words)}
        except InputError as error:
            yield {state: html.status(words_of(error)), videos: ""}
            raise gr.Error(words_of(error), print_exception=False) from error

    def on_generate(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        with mistakes_shown():
            settings, given = asked(*values)
        yield from run(settings, given, str(request.session_hash))

    def on_act(event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        with mistakes_shown():
            item = studio.gallery.get(str(event.token))
            settings: Settings = item.settings
            if event.act == "again":
                yield {**_filled(form, settings), state: html.status(f"The settings of {item.name} are in the form.")}
                return
            longer = min(len(item.video) + studio.description.window // 2, MOST_FRAMES)
            wanted, _ = asked(*values)
            settings = Settings(
                settings.classes, 1, item.fps, longer, wanted.steps, wanted.guidance, wanted.scheduler, wanted.seed
            )
        yield from run(settings, Request(video=item.video), str(request.session_hash))

    outputs = [state, videos, *form.values()]
    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
    go.click(on_generate, inputs, outputs, **model, api_visibility="private")
    videos.select(on_act, inputs, outputs, **model, api_visibility="private")
    stop.click(stopper(studio), None, None, queue=False, api_visibility="private")
    cost = [form["classes"], form["count"], form["frames"], form["steps"]]
    for part in cost:
        part.change(
            lambda classes, count, frames, steps: html.status(
                studio.forecast(max(len(classes or ()), 1) * count, frames, steps)
            ),
            cost,
            estimate,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    _api(studio)


def _waiting(studio: Studio) -> str:
    return "Waiting for the model." if studio.is_loaded else "The model is being loaded."


def _made(studio: Studio, number: int, settings: Settings, seconds: float) -> str:
    """What there is to say of finished videos."""
    made = "1 video" if number == 1 else f"{number} videos"
    words = f"{made} in {seconds:.1f} seconds on this machine's {studio.maker.device}."
    return " ".join([words, *(f"But {doubt}." for doubt in studio.maker.doubts(settings.fps, settings.steps))])


def _form(model: Description) -> dict[str, Any]:
    """The parts of the form by the names of `Settings`, not yet placed."""
    default, names = model.defaults, list(model.classes)
    if len(names) > _FEW:
        classes: Any = gr.Dropdown(
            names, value=names[:1], multiselect=True, label="Classes", info="None: videos of no class", render=False
        )
    else:
        classes = gr.CheckboxGroup(
            names,
            value=names[:_FIRST],
            label="Classes",
            info="None ticked: videos of no class" if names else "This model has no classes",
            visible=bool(names),
            elem_classes="chips",
            render=False,
        )
    return {
        "classes": classes,
        "count": gr.Slider(1, min(MOST_VIDEOS, 16), 1, step=1, label="Videos of each", render=False),
        "fps": gr.Slider(
            1,
            60,
            default.fps,
            step=1,
            label="Frames per second",
            info=model.rates and f"trained at {model.rates}",
            render=False,
        ),
        "frames": gr.Slider(
            model.step,
            8 * model.window,
            default.frames,
            step=model.step,
            label="Frames",
            info=f"more than {model.window} are made window by window",
            render=False,
        ),
        "guidance": gr.Slider(1, 10, default.guidance, step=0.1, label="Guidance", info="1: none", render=False),
        "steps": gr.Slider(1, min(MOST_STEPS, 100), default.steps, step=1, label="Steps", render=False),
        "scheduler": gr.Dropdown(
            [("the model's own", ""), *model.schedulers],
            value="",
            label="Solver",
            render=False,
        ),
        "seed": gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_LARGEST_SEED, render=False),
        "new_seed": gr.Checkbox(True, label="New seed each time", render=False),
    }


def _given() -> dict[str, Any]:
    """Pictures and videos that can be given, by the names of `Request`."""
    picture: dict[str, Any] = {
        "type": "filepath",
        "image_mode": None,
        "sources": ["upload", "clipboard"],
        "height": 140,
    }
    return {
        "image": gr.Image(label="First frame", **picture),
        "last_image": gr.Image(label="Last frame", **picture),
        "video": gr.File(label="A video to continue", file_types=UPLOADS, height=110),
        "mask": gr.Image(label="Mask: what is bright is made anew in that video", **picture),
    }


def _asked(values: dict[str, Any]) -> tuple[Settings, Request]:
    """Settings and what is given, from the values of the form."""
    seed = values["seed"] if values["seed"] is not None else 0
    if values["new_seed"]:
        seed = secrets.randbelow(_LARGEST_SEED)
    numbers = {name: values[name] for name in ("count", "frames", "steps")}
    if any(value is None for value in numbers.values()) or values["fps"] is None or values["guidance"] is None:
        raise InputError("a number is missing in the form")
    settings = Settings(
        classes=tuple(values["classes"] or ()),
        fps=float(values["fps"]),
        guidance=float(values["guidance"]),
        scheduler=values["scheduler"] or "",
        seed=int(seed),
        **{name: int(value) for name, value in numbers.items()},
    )
    image, last_image, video, mask = (
        Path(values[name]) if values[name] else None for name in ("image", "last_image", "video", "mask")
    )
    return settings, Request(image=image, last_image=last_image, video=video, mask=mask)


def _filled(form: dict[str, Any], settings: Settings) -> dict[Any, Any]:
    """The form with these settings, which give the same videos again."""
    values = {name: getattr(settings, name) for name in form if hasattr(settings, name)}
    return {form[name]: value for name, value in values.items()} | {
        form["classes"]: list(settings.classes),
        form["new_seed"]: False,
    }


def stopper(studio: Studio) -> Any:
    """What ends the work of whoever calls it."""

    def stop(request: gr.Request) -> None:
        studio.stop(str(request.session_hash))

    return stop


def _api(studio: Studio) -> None:
    """The same as functions over HTTP: see docs/page.md."""

    def generate(
        request: gr.Request,
        classes: list[str],
        count: int = 1,
        fps: float | None = None,
        frames: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        scheduler: str = "",
        seed: int = 0,
        form: str = "mp4",
    ) -> tuple[list[str], list[dict[str, Any]]]:
        default = studio.description.defaults
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise gr.Error(f"classes must be a list of names, not {classes!r}", print_exception=False)
        settings = Settings(
            tuple(classes),
            count,
            default.fps if fps is None else fps,
            default.frames if frames is None else frames,
            default.steps if steps is None else steps,
            default.guidance if guidance is None else guidance,
            scheduler or "",
            seed,
        )
        made: Sequence[str] = ()
        with mistakes_shown(), contextlib.closing(studio.generate(settings, session=str(request.session_hash))) as job:
            for event in job:
                made = event if isinstance(event, list) else made
                if has_left():
                    break
            items = [studio.gallery.take(token) for token in made]
        return [handed_out(item, form) for item in items], [item.facts for item in items]

    inputs = [
        gr.JSON(value=[], label="classes", visible=False),
        gr.Number(1, label="count", precision=0, visible=False),
        gr.Number(None, label="fps", visible=False),
        gr.Number(None, label="frames", precision=0, visible=False),
        gr.Number(None, label="guidance", visible=False),
        gr.Number(None, label="steps", precision=0, visible=False),
        gr.Textbox("", label="scheduler", visible=False),
        gr.Number(0, label="seed", precision=0, visible=False),
        gr.Dropdown(list(FORMATS), value="mp4", label="form", visible=False),
    ]
    outputs = [gr.File(file_count="multiple", visible=False), gr.JSON(visible=False)]
    gr.Button(visible=False).click(
        generate, inputs, outputs, api_name="generate", concurrency_limit=1, concurrency_id="model"
    )
