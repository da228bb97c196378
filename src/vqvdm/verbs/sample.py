"""`vqvdm sample`: generate videos into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from accelerate.utils import gather_object

from vqvdm import models
from vqvdm.errors import InputError, check_at_least_one, logger_of
from vqvdm.files import check_writable
from vqvdm.generation import Order, compile_for, generate, make_orders, usual_batch
from vqvdm.loading import load_pipeline, own_device, pick_dtype
from vqvdm.preparation import prepare
from vqvdm.processes import this_process
from vqvdm.request import Request, doubts, provenance
from vqvdm.video import Video, enlarged, write_sheet, write_video

logger = logger_of(__name__)

Format = Literal["mp4", "webm", "gif", "webp", "png"]
_SHEET_ROWS = 100


def main(
    model: str = models.DEFAULT,
    *,
    classes: str | None = None,
    count: int = 1,
    fps: float | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    image: Path | None = None,
    last_image: Path | None = None,
    video: Path | None = None,
    mask: Path | None = None,
    length: int | None = None,
    overlap: int = 8,
    out: Path = Path("samples"),
    format: Format = "mp4",
    scale: int = 1,
    batch: int | None = None,
    tiled: bool = False,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> None:
    """Generate videos: one file each, and a sheet of all.

    The same seed gives the same files; a video depends on the seed, its class and its number alone. Several processes
    (torchrun) share the videos.

    Args:
        model: a pipeline folder, a run folder, a name on the hub (owner/name), or the model that comes with the
            package, of moving shapes.
        classes: names or ids with commas between (left,3), "all", or "none" for unconditional; all by default.
        count: videos of each class.
        fps: frames per second; the model's own by default.
        frames: frames of each video.
        height: pixels.
        width: pixels.
        seed: of all randomness.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance; 1 is none.
        image: a picture with which each video begins.
        last_image: a picture with which each video ends.
        video: a video that each one continues, or of which a part is made anew; frames are taken out of it, or
            repeated, so that its speed stays at the frame rate of what is made.
        mask: a picture whose bright parts are made anew, in the first frames of --video.
        length: frames of each finished video, those given included; longer ones are made window by window. By default
            one window, beyond the video to continue.
        overlap: frames of which each further window is given, at least.
        scheduler: dpm++, unipc, euler, heun, ddim or ddpm, as far as it fits the model's noise.
        out: folder for the files; made if absent.
        format: of the files; png is a row of frames.
        scale: how often each pixel is repeated in the files, either way: small videos are hard to see.
        batch: videos made at a time; changes memory and time, not the videos. By default 8, on a GPU 64.
        tiled: decode in overlapping tiles, for long or large videos.
        device: cpu, cuda, mps or auto.
        dtype: in which the networks compute; auto is bfloat16 where the processor is fast at it, else float32.
    """
    check_at_least_one(
        count=count, steps=steps, batch=batch, scale=scale, length=length, overlap=overlap, frames=frames
    )
    check_writable(out)
    here, place = this_process(), own_device(device)
    pipeline = load_pipeline(model, str(place), pick_dtype(dtype, place))
    if scheduler is not None:
        pipeline.scheduler = pipeline.objective.make_scheduler(scheduler)
    if tiled:
        if pipeline.tokenizer is None:
            raise InputError("--tiled is for decoding, but this model makes pixels without a tokenizer; leave it out")
        pipeline.tokenizer.enable_tiling()
    orders = make_orders(pipeline, classes, count, seed)
    own = orders[here.process_index :: here.num_processes]
    compile_for(pipeline, len(own), steps or pipeline.config["num_inference_steps"])
    request = Request(
        fps=fps,
        frames=frames,
        height=height,
        width=width,
        steps=steps,
        guidance=guidance,
        image=image,
        last_image=last_image,
        video=video,
        mask=mask,
        length=length,
        overlap=overlap,
    )
    before = {path.name for path in out.glob("*") if path.suffix in {f".{name}" for name in get_args(Format)}}
    before -= {"sheet.png"}
    call, arguments = prepare(pipeline, request)
    for doubt in doubts(pipeline, fps, steps) if here.is_main_process else ():
        logger.warning("%s", doubt)
    facts = provenance(pipeline, model, request)
    shown: dict[str, Video] = {}
    rows = {order.file for order in orders[:_SHEET_ROWS]}
    for order, made, rate in generate(pipeline, own, batch or usual_batch(pipeline.device), arguments, call):
        metadata = {**facts, "seed": order.seed, "class": order.name, "fps": rate}
        shown_as = enlarged(made, scale * made.shape[1])
        write_video(out / f"{order.file}.{format}", shown_as, rate, metadata)
        if order.file in rows:
            shown[order.file] = made
    if here.num_processes > 1:
        shown = dict(pair for part in gather_object([shown]) for pair in part.items())
    if here.is_main_process:
        _finish(out, orders, shown, {**facts, "seed": seed}, before, format)
    here.destroy_process_group()


def _finish(
    out: Path, orders: list[Order], shown: dict[str, Video], facts: dict[str, Any], before: set[str], format: str
) -> None:
    """Write the sheet and say what there is; `before` are the videos that were there already."""
    labels = [order.file for order in orders[:_SHEET_ROWS]]
    write_sheet(out / "sheet.png", [shown[label] for label in labels], labels, metadata=facts)
    videos = "1 video" if len(orders) == 1 else f"{len(orders)} videos"
    print(f"{videos} and sheet.png in {out}")
    if older := len(before - {f"{order.file}.{format}" for order in orders}):
        print(f"{older} older {'video stays' if older == 1 else 'videos stay'} in {out}: --out names another folder")
