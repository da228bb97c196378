"""`vqvdm evaluate`: figures of videos, with the protocol beside each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import Parameter
from torch import nn

from vqvdm.data.clips import ClipTiming
from vqvdm.data.layouts import Layout
from vqvdm.data.worlds import WORLDS
from vqvdm.errors import InputError, check_at_least_one
from vqvdm.evaluation.calibration import DAMAGES, DamagedVideos, HalfOfVideos
from vqvdm.evaluation.compare import Dataset, away_from_published, published_table, read_report, rows_of, side_by_side
from vqvdm.evaluation.features import Extractor, Network
from vqvdm.evaluation.models import GeneratedVideos, Quality, ReconstructedVideos
from vqvdm.evaluation.report import as_text, write_report
from vqvdm.evaluation.score import score
from vqvdm.evaluation.sides import DrawnVideos, Side, StoredReference, store_reference
from vqvdm.evaluation.sources import Videos, open_videos
from vqvdm.files import check_writable, sha256_of, write_json
from vqvdm.generation import compile_for, make_orders, usual_batch
from vqvdm.loading import load_pipeline, load_tokenizer, own_device, pick_dtype
from vqvdm.metrics.c3d import FRAMES as C3D_FRAMES
from vqvdm.metrics.protocol import Protocol, preset
from vqvdm.metrics.resize import Convention
from vqvdm.perceptual import ALEXNET, SMALLEST_SIDE
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import one_of_each_host_first, this_process
from vqvdm.verbs.reconstruct import trained_on
from vqvdm.verbs.terminal import say
from vqvdm.weights.c3d import load_c3d
from vqvdm.weights.folder import FILES, weights_file, weights_folder
from vqvdm.weights.i3d import load_i3d
from vqvdm.weights.lpips import load_lpips

MEASURED = 4  # clips that I3D sees at a time
LPIPS_LEAST = SMALLEST_SIDE[ALEXNET]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        protocol: vqvdm, google, tats, stylegan-v or latte; the options below change single fields of it. By default
            vqvdm, or that of a stored reference.
        clips: of each side; fewer than that are refused. By default the protocol's number (2048), or all there are.
        repeats: draws, of which mean and deviation are given.
        frames: of a clip.
        stride: of the reference's frames.
        fps: frames per second of the clips, in the place of a stride.
        seed: of draws, windows and generated clips.
        split: of the reference, where it has splits.
        window: of each video: one at random, any (long videos count more), or the first.
        order: of the videos that are taken.
        all_real: take all of the reference, not as many as are scored.
        resize: how frames become 224x224: half_pixel, legacy or align_corners.
        fit: resize both sides (direct), or the shorter one and cut out the middle (crop).
        side: resize to this many pixels first, without antialiasing, as MAGVIT's script does.
        quantise: how generated floats become 8 bits: round, truncate or none.
        epsilon: of I3D's batch norm.
        ddof: covariances are divided by n - ddof.
        splits: of the inception scores.
        size: resize and cut the frames of files to this many pixels first.
        layout: of the reference's folder.
        batch: clips a network sees, or a model makes, at a time; changes memory and time, not the figures. By default
            4 for what measures, and 8, on a GPU 64, for what is made.
        device: cpu, cuda, mps or auto.
    """

    protocol: str | None = None
    clips: int | None = None
    repeats: int | None = None
    frames: int | None = None
    stride: int | None = None
    fps: float | None = None
    seed: int | None = None
    split: Literal["train", "test", "all"] | None = None
    window: Literal["one", "any", "first"] | None = None
    order: Literal["random", "sorted"] | None = None
    all_real: bool | None = None
    resize: Convention | None = None
    fit: Literal["direct", "crop"] | None = None
    side: int | None = None
    quantise: Literal["round", "truncate", "none"] | None = None
    epsilon: float | None = None
    ddof: int | None = None
    splits: int | None = None
    size: int | None = None
    layout: Layout = "auto"
    batch: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least_one(batch=self.batch, clips=self.clips)

    def stated(self, reference: str | None = None, **model: Any) -> Protocol:
        """The protocol: the named one, else that of a stored reference; as the model asks; then what was given.

        Args:
            reference: may be a stored one.
            model: fields that the model decides where the named protocol does not differ from the standard in them.
        """
        chosen = preset(self.protocol or "vqvdm")
        if self.protocol is None and reference is not None and StoredReference.is_at(reference):
            chosen = StoredReference.open(reference).protocol
        else:
            model = {name: value for name, value in model.items() if getattr(chosen, name) == getattr(ORDINARY, name)}
        if self.fps is not None and self.stride is not None:
            raise InputError(f"--fps {self.fps:g} and --stride {self.stride} are two ways to say one thing; give one")
        if self.fps is not None or self.stride is not None:
            model = {name: value for name, value in model.items() if name not in ("fps", "stride")}
        names = {field.name for field in fields(Protocol)} - {"name", "clips"}
        given = {name: value for name, value in vars(self).items() if name in names}
        return chosen.changed(**model).changed(**given)


ORDINARY = Protocol()
STANDARD = Options()


def files(samples: str, *, reference: str, report: Path | None = None, options: Options = STANDARD) -> None:
    """Score videos of any system against reference videos: FVD, KVD, motion, precision, recall, density,
    coverage, and the inception score if C3D's weights are there.

    Either side is a folder of videos, GIFs or frames, or one array file (.npy, .npz, .pt) of (n, t, h, w, 3). Features
    are kept in the cache, so the same reference costs nothing the second time, and an interrupted run goes on.

    Args:
        samples: what is scored.
        reference: what it is compared with: a folder, an array file, toy, toy-clouds, or what `vqvdm evaluate
            reference` stored.
        report: JSON file for the figures and all that they depend on; Markdown and pictures go beside it.
    """
    check_report(report)
    protocol = options.stated(reference)
    timing = ClipTiming(protocol.frames, protocol.fps, protocol.fake_stride)
    _score(
        lambda extractor: open_videos(samples, size=protocol.size, timing=timing),
        timing, reference, protocol, options, report,
    )  # fmt: skip


def samples(
    model: str,
    *,
    reference: str,
    report: Path | None = None,
    classes: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    options: Options = STANDARD,
) -> None:
    """Score what a model generates, without files in between.

    Each class is asked for equally often, by seeds of its own. Frames, size and rate are the model's, and the reference
    is cut likewise, unless options say otherwise.

    Args:
        model: a pipeline folder, a run folder, or a name on the hub (owner/name).
        reference: as in `vqvdm evaluate files`.
        report: as in `vqvdm evaluate files`.
        classes: names or ids with commas between (left,3), "all", or "none" for unconditional; all by default.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance; 1 is none.
        scheduler: dpm++, unipc, euler, heun, ddim or ddpm, as far as it fits the model's noise.
        dtype: in which the model computes, auto as in `vqvdm sample`; what measures is always float32.
    """
    check_report(report)
    check_at_least_one(steps=steps)
    device = device_of(options)
    pipeline = load_pipeline(model, device, pick_dtype(dtype, torch.device(device)))
    if scheduler is not None:
        pipeline.scheduler = pipeline.objective.make_scheduler(scheduler)
    protocol = generated_protocol(model, pipeline, reference, options)
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance}
    _score(
        lambda extractor: generated(model, pipeline, classes, protocol, options, sampling),
        ClipTiming(protocol.frames), reference, protocol, options, report,
    )  # fmt: skip


def generated_protocol(model: str, pipeline: VQVDMPipeline, reference: str, options: Options) -> Protocol:
    """By which a model's clips are measured: frames, size and rate are the model's unless options say otherwise.

    Raises:
        InputError: the model cannot make such clips.
    """
    protocol = options.stated(reference, **_made_as(model, pipeline, reference))
    height, width = _size(pipeline, options)
    if height != width:
        raise InputError(f"{model} makes {width}x{height}, and a reference is cut to squares: give --size")
    pipeline.latent_shape(protocol.frames, height, width)
    return protocol


def generated(
    model: str,
    pipeline: VQVDMPipeline,
    classes: str | None,
    protocol: Protocol,
    options: Options,
    sampling: Mapping[str, Any],
) -> GeneratedVideos:
    """The clips that are measured, each class asked for equally often; `sampling` are arguments of the call."""
    height, width = _size(pipeline, options)
    arguments = {"num_frames": protocol.frames, "height": height, "width": width, "fps": protocol.fps, **sampling}
    wanted = (options.clips or protocol.clips) * protocol.repeats  # each draw is generated anew
    kinds = len(make_orders(pipeline, classes, 1, protocol.seed))
    orders = make_orders(pipeline, classes, math.ceil(wanted / kinds), protocol.seed)
    orders = sorted(orders, key=lambda order: order.number)[:wanted]  # classes by turns: equally often in any number
    compile_for(pipeline, len(orders), sampling.get("num_inference_steps") or pipeline.config["num_inference_steps"])
    return GeneratedVideos(model, pipeline, orders, arguments, options.batch or usual_batch(pipeline.device))


class SamplesScorer:
    """Measures what one model makes by several ways of sampling, against one reference."""

    def __init__(
        self,
        model: str,
        pipeline: VQVDMPipeline,
        classes: str | None,
        reference: str,
        options: Options,
        asked: int | None,
    ) -> None:
        """The reference is opened; its features are computed with the first measurement.

        Args:
            model: its name.
            pipeline: whose scheduler may be changed between measurements.
            classes: as in `samples`.
            reference: as in `samples`.
            options: with the number of clips.
            asked: as in `score`.
        """
        self.protocol = generated_protocol(model, pipeline, reference, options).changed(clips=options.clips)
        self.extractor = extractor_of(self.protocol, options)
        self._generated = partial(generated, model, pipeline, classes, self.protocol, options)
        self._asked = asked
        with one_of_each_host_first():
            self._real = real_side(reference, self.protocol, options, self.extractor)

    def metrics(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The report's figures by name; `sampling` are arguments of the pipeline's call."""
        fake = DrawnVideos(self._generated(sampling), self.protocol, ClipTiming(self.protocol.frames), self.extractor)
        return score(fake, self._real, self.protocol, asked=self._asked).report["metrics"]


def _size(pipeline: VQVDMPipeline, options: Options) -> tuple[int, int]:
    """Height and width."""
    return options.size or pipeline.config["height"], options.size or pipeline.config["width"]


def _made_as(model: str, pipeline: VQVDMPipeline, reference: str) -> dict[str, Any]:
    """The protocol's fields by which real clips are cut as those were that the model learnt from."""
    config = pipeline.config
    made = {"frames": config["num_frames"], "size": config["height"]}
    trained = trained_on(Path(model))
    if reference not in WORLDS and trained.fps is None and trained.stride > 1:
        return made | {"stride": trained.stride}
    # A world's clips each have a rate of their own, the model's have one: the world follows. A model whose recipe is
    # not there is taken at its word.
    unknown = not Path(model).is_dir()
    return made | {"fps": trained.fps or (config["fps"] if unknown or reference in WORLDS else None)}


def reconstructions(
    model: str, path: str, *, report: Path | None = None, lpips: bool = True, options: Options = STANDARD
) -> None:
    """Score a tokenizer on the clips of a data set: rFVD, PSNR, SSIM, LPIPS, by frame too, and the codebook's use.

    Frames, size, rate and stride are those the model was trained with, and the split is the test split, unless options
    say otherwise; of data that names no splits it is what training holds out.

    Args:
        model: a tokenizer, pipeline or run folder, or a name on the hub (owner/name).
        path: a folder of videos in any layout, a manifest, an array file, toy, or toy-clouds.
        report: as in `vqvdm evaluate files`.
        lpips: measure LPIPS with VGG16 and AlexNet, which takes longer than all else.
    """
    check_report(report)
    tokenizer = load_tokenizer(model, device_of(options))
    trained = trained_on(Path(model))
    timed: dict[str, Any] = {"fps": trained.fps} if path in WORLDS else {"fps": trained.fps, "stride": trained.stride}
    protocol = options.stated(frames=trained.frames, size=trained.size, split="test", **timed)
    protocol = protocol.changed(fake_stride=protocol.stride)
    options = replace(options, split=protocol.split)  # what training holds out counts
    timing = timing_of(protocol)
    size = protocol.size or 0
    tokenizer.latent_shape(protocol.frames, size, size)
    if lpips and size < LPIPS_LEAST:
        raise InputError(f"LPIPS needs frames of at least {LPIPS_LEAST} pixels a side, not {size}; add --no-lpips")
    networks = {name: _network(f"lpips-{name}", partial(load_lpips, name)) for name in ("vgg", "alex")} if lpips else {}
    quality = Quality(networks, device_of(options))

    def reconstructed(extractor: Extractor) -> Videos:
        return ReconstructedVideos(open_reference(path, protocol, options), tokenizer, model, quality, extractor.batch)

    _score(reconstructed, timing, path, protocol, options, report)


def reference(path: str, out: Path, *, options: Options = STANDARD) -> None:
    """Measure reference videos once and store the figures of their clips, for `--reference`.

    Args:
        path: a folder of videos in any layout, a manifest, an array file, toy, or toy-clouds.
        out: folder for reference.safetensors and reference.json.
    """
    check_writable(out)
    protocol = options.stated().changed(clips=options.clips)
    extractor = extractor_of(protocol, options)
    with one_of_each_host_first():
        side = drawn(path, protocol, options, extractor)
    if options.clips is not None and side.count(0) < options.clips:
        raise InputError(f"{path}: {options.clips} clips were asked for, and {side.count(0)} are there")
    store_reference(side, out)
    if this_process().is_main_process:
        say(f"{side.count(0)} clips of {path} in {out}: {side.protocol.line()}")
    this_process().destroy_process_group()


def calibrate(path: str, *, report: Path | None = None, options: Options = STANDARD) -> None:
    """Show what the figures mean on a data set: its two halves against each other, its training split against its test
    split, and its clips against damaged copies of them.

    A model's figures are worth reading between these: near the halves it is as good as real clips in this number. Of
    each side there are at most `--clips`.

    Args:
        path: a folder of videos in any layout, a manifest, an array file, toy, or toy-clouds.
        report: JSON file with the reports of all rows.
    """
    check_report(report)
    protocol = options.stated(split="all").changed(clips=options.clips)
    protocol = protocol.changed(fake_stride=protocol.stride)
    timing = timing_of(protocol)
    extractor = extractor_of(protocol, options)
    with one_of_each_host_first():
        videos = open_reference(path, protocol, options)
        parted = [replace(protocol, split=split) for split in ("train", "test")]
        splits = [open_reference(path, part, options, held_out=True) for part in parted]
    pairs: dict[str, tuple[Videos, Videos]] = {
        "one half against the other": (HalfOfVideos(videos, 0), HalfOfVideos(videos, 1))
    }
    if splits[0].digest != splits[1].digest and all((part.starts(timing) > 0).sum() > 1 for part in splits):
        pairs["training split against test split"] = (splits[0], splits[1])
    pairs |= {damage: (videos, DamagedVideos(videos, damage)) for damage in DAMAGES}
    drawn = {name: [DrawnVideos(side, protocol, timing, extractor) for side in sides] for name, sides in pairs.items()}
    reports = {name: score(fake, real, protocol).report for name, (real, fake) in drawn.items()}
    if this_process().is_main_process:
        say(rows_of(reports))
        if report is not None:
            write_json(report, reports)
    this_process().destroy_process_group()


def compare(*reports: Path, dataset: Dataset | None = None) -> None:
    """Print reports side by side, and where their protocols differ.

    Args:
        reports: files that `vqvdm evaluate` wrote.
        dataset: add the published figures on UCF-101 (ucf101), of Sky Time-lapse (sky), or of tokenizers
            (ucf101-reconstruction), and how the reports' protocols differ from theirs where those are known.
    """
    if not reports and dataset is None:
        raise InputError("nothing to compare: give reports, or --dataset ucf101 or sky for the published figures")
    read = {path.stem if names_differ(reports) else str(path): read_report(path) for path in reports}
    if reports:
        say(side_by_side(read))
    if dataset is not None:
        say(f"\nPublished, each by its own protocol:\n\n{published_table(dataset)}\n")
        say(away_from_published(read, dataset))


def names_differ(paths: Sequence[Path]) -> bool:
    """Whether files can be told apart by their names without folder and suffix."""
    return len({path.stem for path in paths}) == len(paths)


def _score(
    open_fake: Callable[[Extractor], Videos],
    timing: ClipTiming,
    reference: str,
    protocol: Protocol,
    options: Options,
    report: Path | None,
) -> None:
    """Measure both sides, in all processes together; the first one prints and writes."""
    extractor = extractor_of(protocol, options)
    protocol = protocol.changed(clips=options.clips)
    processes = this_process()
    with one_of_each_host_first():
        fake = DrawnVideos(open_fake(extractor), protocol, timing, extractor)
        real = real_side(reference, protocol, options, extractor)
    found = score(fake, real, protocol, asked=options.clips)
    if processes.is_main_process:
        say(as_text(found.report))
        if report is not None:
            write_report(report, found, real.shown(), fake.shown())
    processes.destroy_process_group()


def real_side(reference: str, protocol: Protocol, options: Options, extractor: Extractor) -> Side:
    """What is compared with: a stored reference that fits, or videos, of which one process makes the index first."""
    if not StoredReference.is_at(reference):
        return drawn(reference, protocol, options, extractor)
    stored = StoredReference.open(reference)
    stored.check(protocol, extractor.identities())
    return stored


def check_report(report: Path | None) -> None:
    """Raise `InputError` if a report could not be written there; asked before hours of work."""
    if report is None:
        return
    if report.suffix != ".json" or report.is_dir():
        raise InputError(f"--report {report}: must name a file that ends in .json; Markdown and pictures go beside it")
    check_writable(report.parent)


def drawn(path: str, protocol: Protocol, options: Options, extractor: Extractor) -> DrawnVideos:
    """Clips of the videos at a path, drawn as the protocol says."""
    videos = open_reference(path, protocol, options)
    return DrawnVideos(videos, protocol, timing_of(protocol), extractor, everything=protocol.all_real)


def open_reference(path: str, protocol: Protocol, options: Options, held_out: bool = False) -> Videos:
    """The videos at a path, as the protocol has them."""
    return open_videos(
        path,
        layout=options.layout,
        split=protocol.split,
        held_out=held_out or options.split is not None,
        size=protocol.size,
        timing=timing_of(protocol),
    )


def timing_of(protocol: Protocol) -> ClipTiming:
    """The reference's clips."""
    return ClipTiming(protocol.frames, protocol.fps, protocol.stride)


def device_of(options: Options) -> str:
    """Where its networks compute."""
    return str(own_device(options.device))


def extractor_of(protocol: Protocol, options: Options) -> Extractor:
    """The networks that measure."""
    scored = protocol.frames == C3D_FRAMES and (weights_folder() / FILES["c3d"]).is_file()
    classifier = _network("c3d", load_c3d) if scored else None
    i3d = _network("i3d", partial(load_i3d, protocol.epsilon))
    return Extractor(i3d, classifier, device_of(options), options.batch or MEASURED)


def _network(name: str, load: Callable[[], nn.Module]) -> Network:
    return Network(sha256_of(weights_file(name))[:16], load)
