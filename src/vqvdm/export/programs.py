"""Both networks of a pipeline as programs of `torch.export`, and the numbers that sampling needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export, save

from vqvdm import __version__
from vqvdm.errors import InputError
from vqvdm.files import write_bytes, write_json, write_text
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.schedulers import fit, set_steps

MOST_VIDEOS = 1024  # at a time
_SAMPLER = Path(__file__).with_name("sampler.py")


def write_programs(pipeline: VQVDMPipeline, folder: Path) -> list[Path]:
    """Write `denoiser.pt2`, `decoder.pt2`, `settings.json` and `sampler.py`; return their paths.

    The programs take up to `MOST_VIDEOS` videos of the model's own size, in the dtype and on the device of the
    pipeline, and hold the weights. Given frames, which a denoiser may be shown beside noise, are left out: zeros.

    Raises:
        InputError: the tokenizer's codebook is untrained.
    """
    tokenizer, config = pipeline.tokenizer, pipeline.config
    if tokenizer is not None and tokenizer.codebook is not None and not tokenizer.codebook.ready:
        raise InputError("this tokenizer's codebook is untrained; train it beyond update quantize_after first")
    shape = pipeline.latent_shape(config["num_frames"], config["height"], config["width"])
    folder.mkdir(parents=True, exist_ok=True)
    device, dtype = pipeline.denoiser.device, pipeline.denoiser.dtype
    noise, at = torch.randn(2, *shape, device=device, dtype=dtype), torch.tensor(500.0, device=device)
    labels, fps = torch.zeros(2, dtype=torch.int64, device=device), torch.full((2,), 8.0, device=device)
    batch = {0: Dim("videos", min=1, max=MOST_VIDEOS)}
    estimate = [torch.zeros_like(noise)] if pipeline.denoiser.config["self_condition"] else []
    programs: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = {
        "denoiser": (
            _Denoiser(pipeline.denoiser),
            (noise, at, labels, fps, *estimate),
            (batch, None, batch, batch, *(batch for _ in estimate)),
        ),
    }
    if tokenizer is not None:
        programs["decoder"] = _Decoder(tokenizer), (noise.to(tokenizer.dtype),), (batch,)
    paths = []
    for name, (module, arguments, shapes) in programs.items():
        with torch.no_grad():
            program = export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)
        buffer = io.BytesIO()
        save(program, buffer)
        paths.append(folder / f"{name}.pt2")
        write_bytes(paths[-1], buffer.getvalue())
    paths += [folder / "settings.json", folder / "sampler.py"]
    write_json(paths[-2], settings(pipeline))
    write_text(paths[-1], _SAMPLER.read_text(encoding="utf-8"))
    return paths


def settings(pipeline: VQVDMPipeline) -> dict[str, Any]:
    """What `sampler.py` must know; `levels` are (timestep, signal, noise) of each step, the last one clean."""
    config, objective = pipeline.config, pipeline.objective
    scheduler: Any = objective.make_scheduler("euler")
    fit(scheduler, objective, bounded=pipeline.tokenizer is None)
    set_steps(scheduler, config["num_inference_steps"], config["about"].get("learnt_sigmas"))
    times = [float(time) for time in scheduler.timesteps]
    return {
        "made_by": f"vqvdm {__version__}",
        "prediction": objective.prediction,
        "levels": [*((time, *objective.level_at(time)) for time in times), (0.0, 1.0, 0.0)],
        "latent_shape": pipeline.latent_shape(config["num_frames"], config["height"], config["width"]),
        "fps": config["fps"],
        "guidance_scale": config["guidance_scale"],
        "guidance_interval": [config["guidance_interval"][end] for end in ("low", "high")],
        "self_condition": pipeline.denoiser.config["self_condition"],
        "num_classes": pipeline.num_classes,
        "classes": pipeline.id2label,
        "needs_class": pipeline.num_classes > 0 and config["about"].get("class_dropout") == 0,
        "device": pipeline.denoiser.device.type,
        "dtype": str(pipeline.denoiser.dtype).removeprefix("torch."),
    }


class _Denoiser(nn.Module):
    """What `VideoDenoiser` predicts, without given frames."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.network = denoiser

    def forward(
        self, noisy: Tensor, timestep: Tensor, labels: Tensor, fps: Tensor, estimate: Tensor | None = None
    ) -> Tensor:
        return self.network(noisy, timestep, labels, fps, estimate=estimate)


class _Decoder(nn.Module):
    """`VideoTokenizer.decode`; the encoder is left out of the program, as it is not used."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.network = tokenizer

    def forward(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents)
