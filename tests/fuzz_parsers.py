"""Every parser of what comes from outside, as a function of bytes; `PARSERS` names them all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import fuzz_weights as weights
from fuzz_shards import shards, shards_seeds
from fuzz_weights import header_of, with_header
from fuzzing import Parser
from tiny_pipeline import tiny_pipeline
from vqvdm import Recipe, VideoDenoiser, VideoTokenizer
from vqvdm.app.description import of_folder
from vqvdm.app.settings import Settings, check
from vqvdm.building import check_arguments
from vqvdm.data import open_dataset
from vqvdm.data.index import VERSION, cache_file
from vqvdm.data.layouts import find_videos
from vqvdm.decode import probe, read_frames
from vqvdm.errors import InputError
from vqvdm.evaluation.compare import away_from_published, read_report, side_by_side
from vqvdm.evaluation.sides import StoredReference
from vqvdm.latents import LatentCache
from vqvdm.loading import load_pipeline
from vqvdm.metrics.protocol import PRESETS
from vqvdm.recipe import DataRecipe
from vqvdm.runs import charts, read_run
from vqvdm.train.checkpoint import check_fits, latest_checkpoint
from vqvdm.video import encode_video, write_video

# -------------------------------------------------------------------------------------------------------------- recipes


def _recipe(data: bytes, folder: Path) -> None:
    (folder / "mine.yaml").write_bytes(data)
    recipe = Recipe.load(folder / "mine.yaml")
    recipe.save(folder / "again.yaml")
    assert Recipe.load(folder / "again.yaml") == recipe


def _recipe_seeds(folder: Path) -> list[bytes]:
    return [
        b"description: x\ntokenizer: {training: {steps: 1e3, betas: [0.9, 0.99]}, start_from: null}\n",
        b"base: toy\ndata: {path: clips, fps: 8}\ntokenizer: {model: &m {channels: [8, 16]}}\n",
        _BOMB,
    ]


_BOMB = b"a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b]\nd: {<<: {name: x}}\n? [y]\n: 2024-01-01\n"


def _override(data: bytes, folder: Path) -> None:
    (folder / "mine.yaml").write_text("name: mine\n")
    Recipe.load(folder / "mine.yaml", data.decode(errors="surrogateescape").split("\n"))


def _networks(data: bytes, folder: Path) -> None:
    """The networks' arguments, as YAML or JSON has read them."""
    try:
        values = json.loads(data)
        tokenizer, denoiser = ({str(key): value for key, value in each.items()} for each in values)
    except (ValueError, RecursionError, TypeError, AttributeError) as error:  # the YAML parser's to refuse
        raise InputError("no two tables") from error
    check_arguments(VideoTokenizer, tokenizer, {}, "model")
    check_arguments(VideoDenoiser, denoiser, {}, "model")


def _networks_seeds(folder: Path) -> list[bytes]:
    tokenizer = {
        "channels": [4, 8], "patch": [1, 2, 2], "strides": [[2, 2, 2]], "blocks": 1, "latent_channels": 2,
        "quantizer": "ema", "codebook_size": 16, "codebooks": 2, "pixel_channels": 2, "pixel_blocks": 1,
    }  # fmt: skip
    denoiser = {"in_channels": 2, "channels": [4, 8], "blocks": [1, 1], "num_classes": 3, "head_dim": 4}
    return [json.dumps([tokenizer, denoiser]).encode()]


def _override_seeds(folder: Path) -> list[bytes]:
    return [
        b"data.fps=8\ntokenizer.training.steps=1e3",
        b"denoiser.model.channels=[8, 16]",
        b"data={path: x}\nname='y'",
    ]


# --------------------------------------------------------------------------------------------------------- lists, index


def _manifest(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        for name in ("a.mp4", "b.mp4"):
            (folder / name).touch()
        (folder / f"list{suffix}").write_bytes(data)
        find_videos(folder / f"list{suffix}")

    return run


def _manifest_seeds(folder: Path) -> list[bytes]:
    rows = [{"file": "a.mp4", "label": "x", "split": "train", "start": 0, "end": 1.5}, {"file": "b.mp4", "label": "y"}]
    return ["\n".join(map(json.dumps, rows)).encode(), b'{"file": "../work/a.mp4", "fps": 8}']


def _csv_seeds(folder: Path) -> list[bytes]:
    return [b'file,label,split,start,end,fps\na.mp4,x,train,0,1.5,8\n"b.mp4",y,test,,,\n', b"video\na.mp4\n/x.mp4\n"]


def _splits(data: bytes, folder: Path) -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    for name, part in zip(("trainlist01", "testlist01", "classInd"), data.split(b"==="), strict=False):
        (lists / f"{name}.txt").write_bytes(part)
    for name in ("Apply", "Bike"):
        (folder / name).mkdir()
        (folder / name / f"v_{name}_g01_c01.avi").touch()
    find_videos(folder, "ucf101")


def _splits_seeds(folder: Path) -> list[bytes]:
    train, test, classes = b"Apply/v_Apply_g01_c01.avi 1\n", b"Bike/v_Bike_g01_c01.avi\n", b"1 Apply\r\n2 Bike\r\n"
    return [b"===".join([train, test, classes]), b"===".join([train, test]), b"===".join([b"../Apply/v.avi 1", test])]


def _tiny_video(path: Path) -> Path:
    frames = (np.arange(6 * 16 * 16 * 3) % 251).astype(np.uint8).reshape(6, 16, 16, 3)
    write_video(path, frames, 8.0)
    return path


@cache
def _a_video() -> bytes:
    return encode_video((np.arange(6 * 16 * 16 * 3) % 251).astype(np.uint8).reshape(6, 16, 16, 3), 8.0, "gif")


def _index(data: bytes, folder: Path) -> None:
    videos = folder / "videos"
    videos.mkdir()
    for name in ("a.gif", "b.gif"):
        (videos / name).write_bytes(_a_video())
        os.utime(videos / name, ns=(10**18, 10**18))
    cache = cache_file(videos)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)
    for split in ("train", "test"):  # of either one video
        clips = open_dataset(DataRecipe(path=str(videos), frames=4, size=8, fps=8.0), split, progress=False)
        clips[(0, 0)]


def _index_seeds(folder: Path) -> list[bytes]:
    (folder / "a.gif").write_bytes(_a_video())
    info, size = asdict(probe(folder / "a.gif")), len(_a_video())
    uneven = {**info, "times": [0.1 * k * k for k in range(6)], "keys": [0, 3]}
    entries = {
        "a.gif": {"stamp": [size, 10**18], "info": info, "error": ""},
        "b.gif": {"stamp": [size, 10**18], "info": uneven, "error": ""},
    }
    broken = {"a.gif": {"stamp": [size, 10**18], "info": None, "error": "cut short"}}
    return [json.dumps({"version": VERSION, "root": "/x", "entries": each}).encode() for each in (entries, broken)]


# -------------------------------------------------------------------------------------------------------------- latents


_LATENTS = {
    "format": 1, "tokenizer": "0123456789abcdef", "data": {}, "digest": None, "classes": ["x", "y"],
    "clip_shape": [3, 4, 16, 16], "latent_shape": [2, 2, 4, 4], "dtype": "float16", "videos": 3, "windows": 1,
    "flips": False, "shard_size": 2, "shards": 2, "complete": True,
}  # fmt: skip


def _shard(rows: int) -> bytes:
    latents = torch.zeros(rows, 2, 2, 4, 4, dtype=torch.float16)
    return save({"latents": latents, "class_label": torch.zeros(rows, dtype=torch.int64), "fps": torch.ones(rows)})


def _read_latents(folder: Path) -> None:
    cache = LatentCache(folder)
    for video in range(min(len(cache), 10)):
        item = cache[(video, 1)]
        assert tuple(item["latents"].shape) == cache.latent_shape


def _latents(data: bytes, folder: Path) -> None:
    (folder / "index.json").write_bytes(data)
    for number, rows in enumerate((2, 1)):
        (folder / f"shard-{number:05d}.safetensors").write_bytes(_shard(rows))
    _read_latents(folder)


def _latents_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(_LATENTS).encode()]


def _latents_shard(data: bytes, folder: Path) -> None:
    (folder / "index.json").write_text(json.dumps({**_LATENTS, "videos": 2}))
    content = _shard(2)
    (folder / "shard-00000.safetensors").write_bytes(with_header(data, content[8 + len(header_of(content)) :]))
    _read_latents(folder)


def _latents_shard_seeds(folder: Path) -> list[bytes]:
    return [header_of(_shard(2))]


# ---------------------------------------------------------------------------------------------------- runs, evaluations


def _log(data: bytes, folder: Path) -> None:
    (folder / "log.jsonl").write_bytes(data)
    if read_run(folder) is not None:
        charts(folder)


def _log_seeds(folder: Path) -> list[bytes]:
    rows = [{"stage": "tokenizer", "step": k, "seconds": k, "loss": 1 / (k + 1), "test_psnr": 20.0} for k in range(3)]
    return ["\n".join(map(json.dumps, rows)).encode()]


def _checkpoint(data: bytes, folder: Path) -> None:
    (folder / "step-00000001").mkdir()
    (folder / "step-00000001" / "state.json").write_bytes(data)
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.step >= 0
    check_fits(found, found.state["architecture"], {})


def _checkpoint_seeds(folder: Path) -> list[bytes]:
    return [json.dumps({"step": 1, "seconds": 2.5, "architecture": {"model.channels": [8, 16]}}).encode()]


@cache
def _features() -> bytes:
    return save({"0.logits": torch.zeros(3, 4), "0.motion": torch.zeros(3, 2), "shown": torch.zeros(1, 2, 2, 2, 3)})


def _reference(data: bytes, folder: Path) -> None:
    (folder / "reference.safetensors").write_bytes(_features())
    (folder / "reference.json").write_bytes(data)
    reference = StoredReference.open(folder)
    reference.check(PRESETS["vqvdm"], {"i3d": "0123"})
    reference.description()
    for repeat in range(min(reference.protocol.repeats, 3)):
        assert len(reference.features(repeat, reference.count(repeat))["logits"]) == 3
    reference.shown()


def _reference_seeds(folder: Path) -> list[bytes]:
    digest = hashlib.sha256(_features()).hexdigest()
    about = {"name": "x", "split": "train", "videos": 3, "skipped": [], "too_short": 0, "digest": "0"}
    networks = {"i3d": "0123"}
    whole = {"form": 1, "protocol": asdict(PRESETS["vqvdm"]), "networks": networks, "about": about, "features": digest}
    return [json.dumps({**whole, "clips": [3]}).encode()]


def _figure(value: float) -> dict[str, Any]:
    return {"value": value, "deviation": None, "real": 1.0, "better": "lower"}


_SIDE = {"name": "x", "videos": 3, "skipped": 1, "skipped_videos": ["a: cut"], "digest": "0"}
_REPORT = {
    "metrics": {"fvd": _figure(100.0), "kvd": _figure(2.0)}, "counts": {"real": 3, "fake": 3}, "real": _SIDE,
    "fake": _SIDE, "protocol": {**asdict(PRESETS["vqvdm"]), "line": PRESETS["vqvdm"].line()}, "warnings": [],
    "networks": {"i3d": "0123"}, "versions": {"vqvdm": "0"},
}  # fmt: skip


def _report(data: bytes, folder: Path) -> None:
    (folder / "report.json").write_bytes(data)
    reports = {"one": read_report(folder / "report.json"), "other": _REPORT}
    side_by_side(reports)
    away_from_published(reports, "ucf101")


def _report_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(_REPORT).encode()]


# --------------------------------------------------------------------------------------------------------------- models


@cache
def _model_files() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tiny_pipeline().save_pretrained(folder)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
        }


def _model(changed: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        for name, content in {**_model_files(), changed: data}.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if name == changed and name.endswith(".safetensors"):
                content = with_header(data, _model_files()[name][8 + len(header_of(_model_files()[name])) :])
            path.write_bytes(content)
        of_folder("it", folder)
        load_pipeline(folder, "cpu")

    return run


def _model_seeds(changed: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        content = _model_files()[changed]
        return [header_of(content) if changed.endswith(".safetensors") else content]

    return seeds


# ------------------------------------------------------------------------------------------------- the page, and videos


def _settings(data: bytes, folder: Path) -> None:
    """What the page's API hands on."""
    try:
        settings = Settings(**json.loads(data))
    except (ValueError, RecursionError, TypeError) as error:  # gradio's to refuse
        raise InputError("no settings") from error
    check(settings)


def _settings_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(asdict(Settings(("x",)))).encode()]


def _video(data: bytes, folder: Path) -> None:
    (folder / "v.gif").write_bytes(data)
    info = probe(folder / "v.gif")
    assert len(info.frame_times()) == info.frames
    read_frames(folder / "v.gif", [0, info.frames - 1], info, short_side=8)


def _video_seeds(folder: Path) -> list[bytes]:
    return [_tiny_video(folder / f"a.{form}").read_bytes() for form in ("gif", "mp4", "webm")]


def _images(data: bytes, folder: Path) -> None:
    (folder / "v").mkdir()
    (folder / "v" / "1.png").write_bytes(data)
    info = probe(folder / "v")
    read_frames(folder / "v", [0], info, short_side=8)


def _images_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for form in ("png", "jpeg", "bmp", "webp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, form)
        seeds.append(buffer.getvalue())
    return seeds


_DENOISER, _TOKENIZER = "denoiser/config.json", "tokenizer/config.json"
_WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"

PARSERS: Mapping[str, Parser] = {
    "recipe": Parser(_recipe, _recipe_seeds, "recipes: YAML, bases, ranges", "yaml"),
    "networks": Parser(_networks, _networks_seeds, "arguments of both networks, built without memory", "json"),
    "override": Parser(_override, _override_seeds, "key=value changes of a recipe"),
    "manifest-csv": Parser(_manifest(".csv"), _csv_seeds, "manifests as CSV"),
    "manifest-jsonl": Parser(_manifest(".jsonl"), _manifest_seeds, "manifests as JSON lines", "lines"),
    "splits": Parser(_splits, _splits_seeds, "UCF-101's split lists and class list"),
    "index": Parser(_index, _index_seeds, "the cached index of a folder, and clips cut by it", "json"),
    "latents": Parser(_latents, _latents_seeds, "index.json of a latent cache", "json"),
    "latents-shard": Parser(_latents_shard, _latents_shard_seeds, "header of a latent cache's shard", "json"),
    "shards": Parser(shards, shards_seeds, "index.json of shards, local and remote, and clips cut by it", "json"),
    "safetensors": Parser(
        weights.safetensors_header, weights.safetensors_seeds, "weights: header of .safetensors", "json"
    ),
    "pickle": Parser(weights.weights(".ckpt"), weights.pickle_seeds, "weights: pickles of arrays"),
    "msgpack": Parser(weights.weights(".flax"), weights.msgpack_seeds, "weights: Flax's msgpack"),
    "torch": Parser(
        weights.torch_pickle, weights.torch_seeds, "weights and videos: the pickle in a file of torch.save"
    ),
    "torch-file": Parser(
        weights.torch_file, weights.torch_file_seeds, "weights and videos: whole files of torch.save, new and old"
    ),
    "npy": Parser(weights.npy, weights.npy_seeds, "weights and videos: .npy and .npz"),
    "package-index": Parser(
        weights.package_index, weights.package_index_seeds, "the page of a package index, JSON or HTML"
    ),
    "log": Parser(_log, _log_seeds, "log.jsonl of a run, and its charts", "lines"),
    "checkpoint": Parser(_checkpoint, _checkpoint_seeds, "state.json of a checkpoint", "json"),
    "reference": Parser(_reference, _reference_seeds, "reference.json of a stored reference", "json"),
    "report": Parser(_report, _report_seeds, "report.json, compared with another", "json"),
    "model-index": Parser(_model("model_index.json"), _model_seeds("model_index.json"), "model_index.json", "json"),
    "denoiser-config": Parser(_model(_DENOISER), _model_seeds(_DENOISER), "config.json of a denoiser", "json"),
    "tokenizer-config": Parser(_model(_TOKENIZER), _model_seeds(_TOKENIZER), "config.json of a tokenizer", "json"),
    "model-weights": Parser(_model(_WEIGHTS), _model_seeds(_WEIGHTS), "header of a denoiser's weights", "json"),
    "settings": Parser(_settings, _settings_seeds, "settings as the page's API takes them", "json"),
    "video": Parser(_video, _video_seeds, "video files (FFmpeg through PyAV)"),
    "images": Parser(_images, _images_seeds, "folders of frames (Pillow)"),
}
