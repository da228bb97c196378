"""Exported programs against the pipeline they come from, loaded where this package is not imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_pipeline import LABELS, tiny_denoiser, tiny_pipeline
from vqvdm import VideoTokenizer, VQVDMPipeline
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.export import sampler
from vqvdm.export.command import main
from vqvdm.export.programs import write_programs
from vqvdm.export.sampler import load, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

torch.set_num_threads(1)


def quantizing_pipeline(trained: bool = True) -> VQVDMPipeline:
    """With two codebooks of 8 codes."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(
        channels=(8, 16), strides=((2, 2, 2),), patch=(1, 2, 2), latent_channels=4, quantizer="ema", codebook_size=8,
        codebooks=2,
    )  # fmt: skip
    if trained:
        for name, buffer in tokenizer.named_buffers():
            if name.endswith("updates"):
                buffer.fill_(1)
    scheduler = Objective(prediction="flow", shift=3.0).make_scheduler("euler")
    return VQVDMPipeline(
        tokenizer.eval(), tiny_denoiser(), scheduler, LABELS, num_frames=4, height=16, width=16,
        num_inference_steps=4, guidance_scale=2.0, diffusion=Objective(prediction="flow", shift=3.0).for_sampling(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["flow with codebooks", "flow with estimates", "v_prediction", "pixels"])
def test_programs_make_what_the_pipeline_makes(kind, tmp_path):
    if kind.startswith("flow"):
        pipeline = quantizing_pipeline()
        if kind == "flow with estimates":
            pipeline.register_modules(denoiser=tiny_denoiser(self_condition=True))
            pipeline.register_to_config(guidance_interval={"low": 0.6, "high": 0.95})
    else:
        pipeline = tiny_pipeline(objective=Objective("v_prediction"), pixels=kind == "pixels", scheduler="ddim")
    write_programs(pipeline, tmp_path)
    settings, denoiser, decoder = load(tmp_path)
    assert (decoder is None) == (kind == "pixels")
    noise = torch.randn(3, *settings["latent_shape"], generator=torch.Generator().manual_seed(0))
    if not kind.startswith("flow"):
        settings["levels"] = [
            *((float(t), *pipeline.objective.level_at(float(t))) for t in times_of_ddim(pipeline)), (0.0, 1.0, 0.0)
        ]  # fmt: skip
    for classes, fps, guidance in (([0, 2, 1], 12.0, None), ([1, 1, 1], None, 1.0), (None, 8.0, None)):
        made = sample(settings, denoiser, decoder, classes, noise, fps, guidance)
        asked = {"fps": fps, "guidance_scale": guidance, "latents": noise, "output_type": "np"}
        if classes is None:
            frames = pipeline(num_videos_per_prompt=3, **asked).frames
        else:
            frames = pipeline(classes, **asked).frames
        assert (made.float() / 255 - torch.from_numpy(frames)).abs().max() < 0.01


def times_of_ddim(pipeline: VQVDMPipeline) -> list[float]:
    pipeline.scheduler.set_timesteps(pipeline.config["num_inference_steps"])
    return pipeline.scheduler.timesteps.tolist()


def test_the_folder_needs_torch_alone(tmp_path):
    quantizing_pipeline().save_pretrained(tmp_path / "model")
    main(str(tmp_path / "model"), out=tmp_path / "out", steps=2, frames=8, device="cpu")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert len(settings["levels"]) == 3 and settings["classes"] == {"0": "left", "1": "right", "2": "up"}
    ran = "import runpy, sys; sys.argv = ['sampler.py', '--classes', 'left,2'];"
    ran += f"runpy.run_path({str(tmp_path / 'out' / 'sampler.py')!r}, run_name='__main__');"
    ran += "assert not {'vqvdm', 'diffusers', 'numpy.testing'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", ran], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "videos.pt").shape == (2, 8, 16, 16, 3)


def test_programs_move_with_what_their_graphs_make(tmp_path):
    write_programs(quantizing_pipeline(), tmp_path)
    settings, denoiser, decoder = load(tmp_path, device="meta")
    noise = torch.zeros(2, *settings["latent_shape"], device="meta")
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    latents = denoiser(noise, torch.tensor(500.0, device="meta"), labels, torch.zeros(2, device="meta"))
    assert decoder(latents).device.type == "meta" and settings["device"] == "cpu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "down"], "--classes: 'down' is none of this model's 3 classes (0 left, 1 right, 2 up)"),
        (["--classes", "0,3"], "--classes: '3' is none of this model's 3 classes"),
        (["--classes", "none"], "this model never learnt to do without a class"),
        (["--guidance", "3"], "this model never learnt to do without a class"),
    ],
)
def test_the_sampler_tells_what_it_cannot_do(words, said, tmp_path, monkeypatch):
    pipeline = quantizing_pipeline()
    pipeline.register_to_config(about={"class_dropout": 0.0}, guidance_scale=1.0)
    write_programs(pipeline, tmp_path)
    monkeypatch.setattr("sys.argv", ["sampler.py", *words, "--out", str(tmp_path / "videos.pt")])
    monkeypatch.setattr(sampler, "HERE", tmp_path)
    monkeypatch.setattr(sampler.load, "__defaults__", (tmp_path, None))
    with pytest.raises(SystemExit, match=re.escape(said)):
        sampler.main()
    assert not (tmp_path / "videos.pt").exists()


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match="codebook is untrained"):
        write_programs(quantizing_pipeline(trained=False), tmp_path)
    quantizing_pipeline().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="cannot be divided by the tokenizer's factors"):
        main(str(tmp_path / "model"), out=tmp_path / "out", frames=3, device="cpu")
    assert not Path(tmp_path / "out" / "denoiser.pt2").exists()
