"""What a model makes, scored as it is made: the same figures as of its files, its quality, and stored references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_evaluation
from tiny_evaluation import EXTRACTOR, logits, score_videos, stored, videos
from tiny_pipeline import tiny_pipeline, tiny_tokenizer
from vqvdm import cli
from vqvdm.data.clips import ClipTiming
from vqvdm.errors import InputError
from vqvdm.evaluation.models import GeneratedVideos, Quality, ReconstructedVideos
from vqvdm.evaluation.score import score
from vqvdm.evaluation.sides import DrawnVideos, StoredReference, store_reference
from vqvdm.evaluation.sources import in_8_bits, open_videos
from vqvdm.generation import make_orders
from vqvdm.judge import judge
from vqvdm.metrics import frechet_distance
from vqvdm.metrics.protocol import Draw, Protocol
from vqvdm.metrics.quality import psnr, squared_errors
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.verbs.evaluate import Options
from vqvdm.video import to_clip, to_video

TIMING = ClipTiming(12)


def with_codebook(codebooks: int = 1) -> VideoTokenizer:
    """Its codes come from clips."""
    torch.manual_seed(0)
    settings = {"channels": (8, 16), "patch": (1, 2, 2), "strides": ((2, 2, 2),), "latent_channels": 4}
    tokenizer = VideoTokenizer(**settings, codebooks=codebooks)
    tokenizer.train()(torch.stack([to_clip(video) for video in videos(4, 8, frames=12)]))
    return tokenizer.eval()


PROTOCOL = Protocol(frames=12)


def values(report: dict) -> dict[str, float]:
    """Figures of a report, by name."""
    return {name: figure["value"] for name, figure in report["metrics"].items()}


def generated(batch: int = 4) -> GeneratedVideos:
    pipeline = tiny_pipeline()
    pipeline.register_to_config(about={**pipeline.config["about"], "data": "toy"})
    orders = make_orders(pipeline, None, 4, seed=5)
    return GeneratedVideos("tiny", pipeline, orders, {"num_frames": 12, "fps": None}, batch)


def test_generated_clips_have_the_figures_of_their_files(tmp_path):
    source = generated()
    made = np.stack([in_8_bits(clip.frames) for clip in source.clips([Draw(k, 0) for k in range(12)], TIMING)])
    assert made.shape == (12, 12, 16, 16, 3)
    real = open_videos(stored(tmp_path / "real.npy", videos(1, 20, frames=12)))
    live = score_videos(source, real, PROTOCOL)
    filed = score_videos(open_videos(stored(tmp_path / "made.npy", made)), real, PROTOCOL)
    for report in (live, filed):
        del report["metrics"]["kinetics_score"]  # its splits follow the order of the draws
    asked = [judge(clip, 8.0).name == order.name for clip, order in zip(made, source.orders, strict=True)]
    assert live["metrics"].pop("judge")["value"] == np.mean(asked)  # classes of the toy world
    assert live["metrics"].pop("outline")["value"] == pytest.approx(
        np.mean([judge(clip, 8.0).keeps_outline for clip in made])
    )
    assert values(live) == pytest.approx(values(filed), rel=1e-6)
    assert live["counts"] == {"real": 12, "fake": 12}
    assert (live["fake"]["steps"], live["fake"]["guidance_scale"], live["fake"]["fps"]) == (4, 3.0, 8.0)
    assert live["fake"]["model"] == source.pipeline.fingerprint()


def test_a_generated_clip_does_not_depend_on_its_batch():
    draws = [Draw(k, 0) for k in (7, 2, 9)]
    one, three = (np.stack([c.frames for c in generated(batch).clips(draws, TIMING)]) for batch in (1, 3))
    np.testing.assert_allclose(one, three, atol=0.02)  # of 255


def test_what_was_generated_has_a_name_of_its_own():
    """Other weights, steps, seeds, classes or schedulers are other clips, and never served from the cache."""

    def named(pipeline=None, orders=None, **arguments) -> str:
        source = generated()
        return GeneratedVideos(
            "tiny", pipeline or source.pipeline, orders or source.orders, {**source.arguments, **arguments}, 4
        ).digest

    orders = generated().orders
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(0.1)
    other_interval = tiny_pipeline()
    other_interval.register_to_config(guidance_interval={"low": 0.2, "high": 0.9})
    names = [
        named(),
        named(other),
        named(tiny_pipeline(scheduler="unipc")),
        named(orders=[replace(order, seed=order.seed + 1) for order in orders]),
        named(orders=[replace(order, label=0) for order in orders]),
        named(num_inference_steps=5),
        named(guidance_scale=1.0),
        named(guidance_interval=(0.3, 0.6)),
        named(other_interval),
        named(weaker_denoiser=generated().pipeline.denoiser),
        named(weaker_denoiser=other.denoiser),
    ]
    assert len(set(names)) == len(names)
    assert named() == names[0]


@pytest.mark.slow
def test_the_name_is_the_same_in_every_process():
    """Python's own hashes are not; an interrupted run must find its features again."""
    code = "import test_evaluation_models as t; print(t.generated().digest)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("codebooks", [1, 2])
def test_reconstructions_bring_their_quality(codebooks, tmp_path):
    array = videos(0, 9, frames=12)
    real = open_videos(stored(tmp_path / "real.npy", array))
    tokenizer = with_codebook(codebooks)
    source = ReconstructedVideos(real, tokenizer, "tiny", Quality(), batch=2)
    protocol = replace(PROTOCOL, clips=7)
    report = score_videos(source, real, protocol)
    draws = [draw.video for draw in DrawnVideos(real, protocol, TIMING, EXTRACTOR)._draws[0]]
    clips = torch.stack([to_clip(array[k]) for k in draws])
    latents = tokenizer.encode(clips)
    made = np.stack([to_video(clip) for clip in tokenizer.decode(latents)])
    errors = np.stack([squared_errors(array[k], video) for k, video in zip(draws, made, strict=True)])
    assert report["metrics"]["psnr"]["value"] == pytest.approx(psnr(errors.mean(axis=1)).mean())
    assert report["per_frame"]["psnr"] == pytest.approx(psnr(errors).mean(axis=0))
    assert len(report["per_frame"]["ssim"]) == 12
    tokens = tokenizer.tokens(clips).numpy().reshape(-1, codebooks)
    shares = [np.bincount(part)[np.bincount(part) > 0] / len(tokens) for part in tokens.T]
    assert report["codebook"]["used"] == np.mean([len(share) for share in shares]) > 1
    assert report["codebook"]["usage"] == pytest.approx(report["codebook"]["used"] / 1024)
    perplexities = [np.exp(-(share * np.log(share)).sum()) for share in shares]
    assert report["codebook"]["perplexity"] == pytest.approx(np.mean(perplexities))
    features = [logits(clips) for clips in (array[draws], made)]
    assert report["metrics"]["rfvd"]["value"] == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert "fvd" not in report["metrics"]


def test_a_tokenizer_without_a_codebook(tmp_path):
    real = open_videos(stored(tmp_path / "real.npy", videos(0, 8, frames=12)))
    report = score_videos(ReconstructedVideos(real, tiny_tokenizer(), "tiny", Quality(), 4), real, PROTOCOL)
    assert report["codebook"] is None
    assert report["metrics"]["psnr"]["value"] > 0


def reference_of(path: Path, array: Path, protocol: Protocol) -> StoredReference:
    store_reference(DrawnVideos(open_videos(array), protocol, TIMING, EXTRACTOR), path)
    return StoredReference.open(path)


def test_a_stored_reference_gives_the_same_figures(tmp_path):
    protocol = replace(PROTOCOL, repeats=2)
    real = stored(tmp_path / "real.npy", videos(0, 20, frames=12))
    kept = reference_of(tmp_path / "kept", real, protocol)
    real.unlink()
    fake = DrawnVideos(open_videos(stored(tmp_path / "fake.npy", videos(1, 9, frames=12))), protocol, TIMING, EXTRACTOR)
    found = score(fake, kept, protocol).report
    again = score_videos(
        open_videos(tmp_path / "fake.npy"), open_videos(stored(real, videos(0, 20, frames=12))), protocol
    )
    assert values(found) == pytest.approx(values(again), rel=1e-6)
    assert found["counts"] == {"real": 9, "fake": 9}
    assert found["real"]["digest"] == again["real"]["digest"]
    assert len(kept.shown()) == 6


def test_a_stored_reference_of_something_else_is_refused(tmp_path):
    kept = reference_of(tmp_path / "kept", stored(tmp_path / "real.npy", videos(0, 8, frames=12)), PROTOCOL)
    kept.check(replace(PROTOCOL, ddof=0, clips=4), {"i3d": "projection", "c3d": "any"})
    with pytest.raises(InputError, match=r"was measured with epsilon 0\.001, not 1e-05"):
        kept.check(replace(PROTOCOL, epsilon=1e-5), {"i3d": "projection"})
    with pytest.raises(InputError, match="was measured with other weights of i3d"):
        kept.check(PROTOCOL, {"i3d": "others"})
    (tmp_path / "kept" / "reference.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"does not belong to the reference\.json beside it; store the reference anew"):
        StoredReference.open(tmp_path / "kept").shown()
    about = json.loads((tmp_path / "kept" / "reference.json").read_text())
    (tmp_path / "kept" / "reference.json").write_text(json.dumps({**about, "form": 0}))
    with pytest.raises(InputError, match="is no stored reference: it is of another version"):
        StoredReference.open(tmp_path / "kept")
    (tmp_path / "kept" / "reference.json").write_text("{}")
    with pytest.raises(InputError, match="is no stored reference: 'form'"):
        StoredReference.open(tmp_path / "kept")


def run(*words: str) -> None:
    assert cli.main(["evaluate", *words]) == 0


def test_the_commands(commands, capsys):
    run("samples", "model", "--reference", "real.npy", "--clips", "12", "--report", "made/samples.json")
    run("reference", "real.npy", "kept", "--frames", "12", "--size", "16", "--fps", "8")
    run("samples", "model", "--reference", "kept", "--clips", "12", "--report", "made/again.json")
    samples, again = (json.loads((commands / "made" / f"{n}.json").read_text()) for n in ("samples", "again"))
    assert samples["metrics"] == again["metrics"]
    assert samples["protocol"]["frames"] == 12
    assert samples["counts"]["fake"] == 12
    run("reconstructions", "model", "real.npy", "--no-lpips", "--report", "made/rec.json")
    found = json.loads((commands / "made" / "rec.json").read_text())
    assert {"rfvd", "psnr", "ssim"} <= found["metrics"].keys()
    assert "lpips_vgg" not in found["metrics"]
    words = (commands / "made" / "rec.md").read_text()
    assert found["protocol"]["line"] in words
    assert "rec-frames.png" in words
    assert {"rec-frames.png", "rec-motion.svg"} <= {file.name for file in (commands / "made").iterdir()}
    capsys.readouterr()
    assert cli.main(["evaluate", "samples", "model", "--reference", "kept", "--epsilon", "1e-5"]) == 2
    assert "was measured with epsilon 0.001, not 1e-05" in capsys.readouterr().err
    for words, message in (
        (["--classes", "lift"], "lift"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--frames", "13"], "13"),
        (["--size", "18"], "18"),
    ):
        assert cli.main(["evaluate", "samples", "model", "--reference", "real.npy", *words]) == 2
        assert message in capsys.readouterr().err
    run("reference", "real.npy", "fast", "--frames", "12", "--size", "16", "--fps", "16")
    assert cli.main(["evaluate", "samples", "model", "--reference", "fast"]) == 2
    assert "was measured with fps 16.0, not 8.0" in capsys.readouterr().err
    assert cli.main(["evaluate", "reconstructions", "model", "real.npy"]) == 2
    assert "add --no-lpips" in capsys.readouterr().err
    assert cli.main(["evaluate", "reference", "real.npy", "kept", "--frames", "12", "--clips", "21"]) == 2
    assert "21 clips were asked for, and 20 are there" in capsys.readouterr().err


def test_classes_come_equally_often_and_every_draw_is_made_anew(commands):
    """Also by protocols that take the first clips in order."""
    run("samples", "model", "--reference", "real.npy", "--protocol", "stylegan-v", "--clips", "8", "--repeats", "2",
        "--report", "twice.json")  # fmt: skip
    found = json.loads((commands / "twice.json").read_text())
    assert found["protocol"]["name"] == "stylegan-v+"
    assert found["metrics"]["fvd"]["deviation"] > 0
    assert found["counts"]["fake"] == 8
    source = generated()
    side = DrawnVideos(
        GeneratedVideos("tiny", source.pipeline, sorted(source.orders, key=lambda o: o.number), {"num_frames": 12}, 4),
        replace(PROTOCOL, clips=6, repeats=2), TIMING, EXTRACTOR,
    )  # fmt: skip
    draws = [[draw.video for draw in part] for part in side._draws]
    assert draws == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_named_protocol_keeps_what_makes_it():
    """The model decides frames and rate only where the protocol says nothing of its own."""
    stated = Options(protocol="latte").stated(frames=12, stride=1, fps=None, size=16)
    assert (stated.stride, stated.frames, stated.size) == (3, 12, 16)
    assert Options(protocol="latte", stride=2).stated(stride=1).stride == 2
    assert Options().stated(frames=12, fps=8.0).fps == 8
    assert Options(stride=2).stated(fps=8.0).fps is None


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path, commands):
    stored(tmp_path / "fake.npy", videos(2, 13, frames=16))
    stored(tmp_path / "real.npy", videos(3, 15, frames=16))
    reports = []
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "VQVDM_CACHE": str(tmp_path / "own")
        }  # fmt: skip
        (tmp_path / "own").mkdir(exist_ok=True)
        if processes == 1:
            (tmp_path / "own" / "weights").symlink_to(commands / "cache" / "weights")
        for file in (tmp_path / "own").glob("features/*"):
            file.unlink()
        command = [sys.executable, *launch, tiny_evaluation.__file__, "fake.npy", "real.npy", f"{processes}.json"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("KVD") == 1  # one of them speaks
        reports.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    assert values(reports[0]) == pytest.approx(values(reports[1]), rel=1e-6)
    assert reports[0]["counts"] == reports[1]["counts"] == {"real": 13, "fake": 13}


def test_what_figures_mean_on_a_data_set(commands, capsys):
    run("calibrate", "real.npy", "--frames", "12", "--report", "calibration.json")
    found = json.loads((commands / "calibration.json").read_text())
    fvd = {name: report["metrics"]["fvd"]["value"] for name, report in found.items()}
    assert found["one half against the other"]["counts"] == {"real": 10, "fake": 10}
    assert found["frozen"]["counts"] == {"real": 20, "fake": 20}
    assert "training split against test split" not in found  # an array has none
    assert fvd["JPEG, quality 95"] < fvd["JPEG, quality 75"] < fvd["red and blue exchanged"]
    motion = {name: report["metrics"]["motion"]["value"] for name, report in found.items()}
    assert motion["frozen"] > motion["frames shuffled"] > motion["red and blue exchanged"]
    printed = capsys.readouterr().out
    assert "| frozen | 20 |" in printed
    assert "Protocol: vqvdm+" in printed
