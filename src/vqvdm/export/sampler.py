"""Make videos with the programs beside this file; needs torch alone.

python sampler.py --classes 0,3 --seed 1 --out videos.pt
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from itertools import pairwise
from pathlib import Path

import torch

HERE = Path(__file__).parent


def load(folder: Path = HERE, device: str = "cpu") -> tuple[dict, torch.nn.Module, torch.nn.Module | None]:
    """(settings, denoiser, decoder) of a folder; the decoder is None for models of pixels."""
    settings = json.loads((folder / "settings.json").read_text())
    programs = [folder / "denoiser.pt2", folder / "decoder.pt2"]
    denoiser, decoder = (torch.export.load(path).module().to(device) if path.exists() else None for path in programs)
    assert denoiser is not None
    return settings, denoiser, decoder


@torch.no_grad()
def sample(
    settings: dict,
    denoiser: torch.nn.Module,
    decoder: torch.nn.Module | None,
    classes: list[int] | None,
    noise: torch.Tensor,
    fps: float | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """Euler's method over the levels of `settings`, with classifier-free guidance.

    Args:
        settings, denoiser, decoder: of `load`.
        classes: ids, one for each video; None for videos of no class.
        noise: (b, *settings["latent_shape"]) of deviation 1.
        fps: frames per second; the model's own by default.
        guidance: scale; the model's own by default, 1 is none.

    Returns:
        Videos (b, t, h, w, 3), uint8.
    """
    b, kind = len(noise), settings["prediction"]
    scale = settings["guidance_scale"] if guidance is None else guidance
    no_class = torch.full((b,), settings["num_classes"], dtype=torch.int64, device=noise.device)
    labels = no_class if classes is None else torch.tensor(classes, device=noise.device)
    rates = torch.full((b,), float(settings["fps"] if fps is None else fps), device=noise.device)
    x, (low, high) = noise.float(), settings["guidance_interval"]
    taken = taken_without = torch.zeros_like(x)  # for clean in the step before, with the class and without
    for (timestep, alpha, sigma), (_, alpha_next, sigma_next) in pairwise(settings["levels"]):
        prediction = conditional = predict(settings, denoiser, x, taken, timestep, labels, rates)
        taken = split(kind, conditional, x, alpha, sigma)[0]
        if scale > 1 and classes is not None and low <= timestep / 1000 <= high:
            nor_rate = torch.zeros_like(rates)
            without = predict(settings, denoiser, x, taken_without, timestep, no_class, nor_rate)
            taken_without = split(kind, without, x, alpha, sigma)[0]
            prediction = without + scale * (conditional - without)
        else:
            taken_without = taken
        clean, eps = split(kind, prediction, x, alpha, sigma)
        x = alpha_next * clean + sigma_next * eps
    clips = x if decoder is None else decoder(x.to(getattr(torch, settings["dtype"])))  # (b, 3, t, h, w) in -1..1
    return clips.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1)


def predict(
    settings: dict,
    denoiser: torch.nn.Module,
    noisy: torch.Tensor,
    taken: torch.Tensor,
    timestep: float,
    labels: torch.Tensor,
    rates: torch.Tensor,
) -> torch.Tensor:
    """What the denoiser predicts, which may see beside noise what it took for clean before."""
    dtype, at = getattr(torch, settings["dtype"]), torch.tensor(timestep, device=noisy.device)
    estimate = [taken.to(dtype)] if settings["self_condition"] else []
    return denoiser(noisy.to(dtype), at, labels, rates, *estimate).float()


def split(
    kind: str, prediction: torch.Tensor, noisy: torch.Tensor, alpha: float, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is clean and what is noise in `noisy`, that is alpha times the one plus sigma times the other."""
    if kind == "epsilon":
        return (noisy - sigma * prediction) / alpha, prediction
    if kind == "sample":
        return prediction, (noisy - alpha * prediction) / sigma
    if kind == "flow":
        return noisy - sigma * prediction, noisy + alpha * prediction
    return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction


def main() -> None:
    """Make videos and save them as a tensor (b, t, h, w, 3)."""
    parser = ArgumentParser(description="make videos with exported programs")
    parser.add_argument("--classes", default="0", help="ids with commas between, or none")
    parser.add_argument("--fps", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("videos.pt"))
    asked = parser.parse_args()
    settings, denoiser, decoder = load(device=asked.device)
    known = settings["num_classes"] > 0 and asked.classes != "none"
    classes = [int(word) for word in asked.classes.split(",")] if known else None
    shape = (len(classes or [0]), *settings["latent_shape"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(asked.seed)).to(asked.device)
    videos = sample(settings, denoiser, decoder, classes, noise, asked.fps, asked.guidance).cpu()
    torch.save(videos, asked.out)
    print(f"{tuple(videos.shape)} in {asked.out}")


if __name__ == "__main__":
    main()
