"""Make videos with the programs beside this file; needs torch alone.

python sampler.py --classes 0,3 --seed 1 --out videos.pt
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from itertools import pairwise
from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

HERE = Path(__file__).parent


def load(folder: Path = HERE, device: str | None = None) -> tuple[dict, torch.nn.Module, torch.nn.Module | None]:
    """(settings, denoiser, decoder) of a folder; the decoder is None for models of pixels.

    Args:
        folder: of the programs.
        device: where they shall compute; by default that for which they were exported.
    """
    settings = json.loads((folder / "settings.json").read_text())

    def program(name: str) -> torch.nn.Module:
        loaded = torch.export.load(folder / name)
        if device is not None and device != settings["device"]:
            loaded = move_to_device_pass(loaded, device)  # also what its graph makes there, unlike Module.to
        return loaded.module()

    decoder = program("decoder.pt2") if (folder / "decoder.pt2").exists() else None
    return settings, program("denoiser.pt2"), decoder


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


def class_id(settings: dict, word: str) -> int:
    """The id of a class that is named, or given by its id."""
    by_name = {name: int(number) for number, name in settings["classes"].items()}
    number = by_name.get(word, int(word) if word.isdecimal() else -1)
    if not 0 <= number < settings["num_classes"]:
        names = ", ".join(f"{number} {name}" for name, number in by_name.items())
        raise SystemExit(f"--classes: {word!r} is none of this model's {settings['num_classes']} classes ({names})")
    return number


def main() -> None:
    """Make videos and save them as a tensor (b, t, h, w, 3)."""
    parser = ArgumentParser(description="make videos with exported programs")
    parser.add_argument("--classes", default="0", help="names or ids with commas between, or none")
    parser.add_argument("--fps", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="by default that for which the programs were exported")
    parser.add_argument("--out", type=Path, default=Path("videos.pt"))
    asked = parser.parse_args()
    settings, denoiser, decoder = load(device=asked.device)
    known = settings["num_classes"] > 0 and asked.classes != "none"
    classes = [class_id(settings, word) for word in asked.classes.split(",")] if known else None
    if settings["needs_class"] and (classes is None or (asked.guidance or 1) > 1):
        raise SystemExit("this model never learnt to do without a class: leave out --guidance, and name --classes")
    shape = (len(classes or [0]), *settings["latent_shape"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(asked.seed))
    videos = sample(
        settings, denoiser, decoder, classes, noise.to(asked.device or settings["device"]), asked.fps, asked.guidance
    ).cpu()
    torch.save(videos, asked.out)
    print(f"{tuple(videos.shape)} in {asked.out}")


if __name__ == "__main__":
    main()
