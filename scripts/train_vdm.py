#!/usr/bin/env python
"""Train the peer, video-diffusion-pytorch, on the clips of a recipe for some minutes, and write clips that it makes.

scripts/install_vdm.sh && scripts/train_vdm.py toy --minutes 20 60 --clips 64 --out vdm
vqvdm evaluate files vdm/60.npy --reference toy --size 64 --fps 12 --clips 64

The network, the loss (L1 on the noise), the schedule (cosine, 1000 levels), Adam at 1e-4 and the moving average (0.995,
every 10 updates) are the package's own; it knows no classes. It samples by DPM-Solver++ in --steps steps on that very
schedule in place of its own 1000 ancestral steps, which take an hour a clip on two cores. Batches are as large as
--batch says: the trainer's own 64 would allow a dozen updates an hour.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvdm.benchmark.peer import in_dtype, peer_package
from vqvdm.data import open_dataset
from vqvdm.diffusion import Objective
from vqvdm.loading import pick_device, pick_dtype
from vqvdm.recipe import Recipe
from vqvdm.schedulers import fit
from vqvdm.train.order import Order, updates
from vqvdm.video import to_video

LEVELS, RATE, DECAY, AVERAGED_EVERY = 1000, 1e-4, 0.995, 10  # the package's own
_ENDLESS = 1 << 40  # updates: time ends the training


def main() -> None:
    """Train, sample, and write the clips and what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", help="whose data part says which clips")
    parser.add_argument("overrides", nargs="*", help="changes of the recipe as key=value")
    parser.add_argument("--minutes", type=int, nargs="+", required=True, help="of training, after which clips are made")
    parser.add_argument("--out", type=Path, required=True, help="folder for MINUTES.npy, uint8 (n, t, h, w, 3)")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dim", type=int, default=64)
    asked = parser.parse_intermixed_args()
    data, device = Recipe.load(asked.recipe, asked.overrides).data, pick_device()
    torch.manual_seed(0)
    package = peer_package()
    unet: Any = package.Unet3D(dim=asked.dim).to(device)
    diffusion: Any = package.GaussianDiffusion(unet, image_size=data.size, num_frames=data.frames, timesteps=LEVELS)
    shape = (3, data.frames, data.size, data.size)
    asked.out.mkdir(parents=True, exist_ok=True)
    for average, figures in train(unet, diffusion.to(device), open_dataset(data, "train"), asked):
        start = time.perf_counter()
        made = sampled(average, shape, asked.clips, asked.steps, device)
        clips = [to_video(clip) for clip in tqdm(made, desc="sampling VDM", unit="clip", total=asked.clips)]
        figures["seconds_a_clip"] = (time.perf_counter() - start) / asked.clips
        figures["parameters"] = sum(parameter.numel() for parameter in unet.parameters())
        figures |= {"clips": asked.clips, "steps": asked.steps, "batch": asked.batch}
        np.save(asked.out / f"{figures['minutes']}.npy", np.stack(clips))
        (asked.out / f"{figures['minutes']}.json").write_text(json.dumps(figures, indent=1) + "\n")
        print(json.dumps(figures), flush=True)


def train(
    unet: Any, diffusion: Any, dataset: Any, asked: argparse.Namespace
) -> Iterator[tuple[torch.nn.Module, dict[str, Any]]]:
    """The averaged network, and what was done, at the end of each number of minutes; only training counts."""
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(unet.parameters(), lr=RATE)
    device = next(unet.parameters()).device
    order, seen, losses, spent, left = Order(0, len(dataset), asked.batch, 1), 0, [], 0.0, sorted(asked.minutes)
    start = time.perf_counter()
    with tqdm(desc="training VDM", unit="clip") as bar:
        for number, (batch,) in enumerate(updates(order, dataset, 0, _ENDLESS, 0, device), start=1):
            clips = batch["clip"]
            times = torch.randint(0, LEVELS, (len(clips),), device=device)
            loss = diffusion.p_losses(clips, times)  # it takes -1..1; `forward` would shift 0..1 there
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen += len(clips)
            losses.append(float(loss.detach()))
            if number % AVERAGED_EVERY == 0:
                decay = min(DECAY, number / (10 * AVERAGED_EVERY + number))  # so that an hour is enough to forget
                torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            bar.update(len(clips))
            now = time.perf_counter()
            spent, start = spent + now - start, now
            if spent >= 60 * left[0]:
                done = {"updates": len(losses), "clips_seen": seen, "minutes": left.pop(0)}
                yield average, {**done, "loss": float(np.mean(losses[-50:]))}
                start = time.perf_counter()
            if not left:
                return


@torch.inference_mode()
def sampled(unet: torch.nn.Module, shape: tuple[int, ...], number: int, steps: int, device: torch.device) -> Any:
    """Clips (3, t, h, w) in -1..1, one after another, each of its own noise."""
    dtype = pick_dtype("auto", device)
    network: Any = in_dtype(copy.deepcopy(unet), dtype)  # training goes on with this one
    objective = Objective("epsilon", schedule="cosine", zero_terminal_snr=False)
    scheduler: Any = objective.make_scheduler("dpm++")
    fit(scheduler, objective, bounded=True)  # x0 stays in -1..1, as the package keeps it
    for seed in range(number):
        noisy: Tensor = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)).to(device)
        scheduler.set_timesteps(steps)
        for level in scheduler.timesteps:
            noise = network(noisy.to(dtype), level.expand(1).to(device)).float()
            noisy = scheduler.step(noise, level, noisy).prev_sample
        yield noisy[0].clamp(-1, 1)


if __name__ == "__main__":
    main()
