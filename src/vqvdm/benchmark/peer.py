"""The peer: VDM's pixel U-Net (Ho et al. 2022) as the package video-diffusion-pytorch has it, with random weights.

`scripts/install_vdm.sh` installs it; nothing else here needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vqvdm.benchmark.stages import GUIDANCE, STEPS_IN_A_ROW, Stage, Subject
from vqvdm.errors import InputError
from vqvdm.loading import pick_dtype

SHIPPED, TUNED, TUNED_BATCH, CONTROL = "vdm step", "vdm step, bf16", "vdm step, bf16, batch 2", "vdm at latent size"
_DIM = 64  # of the first level; 36M parameters
_CONDITION = 64  # numbers that stand for the class


def peer_stages(subject: Subject) -> tuple[dict[str, Stage], int]:
    """Guided steps of the peer by name, and its number of parameters.

    As shipped: float32, the two passes of guidance one after the other. At its best: bf16 where the processor is fast
    at it, in both ways of taking the passes. The control is the same U-Net, as shipped, on latents of our size: what it
    is faster than in pixels, any network gains by working on latents. In pixels it makes clips of half our height and
    width, as in the paper's comparison.

    Raises:
        InputError: the package is not installed, or our latents are too small for its U-Net.
    """
    height, width = subject.latent_shape[2:]
    if min(height, width) < 8:
        raise InputError(
            f"--against vdm: recipe {subject.recipe.name} has {height}x{width} latents, but the peer's U-Net halves "
            "them three times; take data.size so large that they are 8x8 at least"
        )
    unet: Any = peer_package().Unet3D
    data, device = subject.recipe.data, subject.device
    pixels, latents = (1, 3, data.frames, data.size // 2, data.size // 2), (1, *subject.latent_shape)
    torch.manual_seed(0)
    plain = unet(dim=_DIM, cond_dim=_CONDITION).to(device).eval()
    best = pick_dtype("auto", device)
    tuned = in_dtype(unet(dim=_DIM, cond_dim=_CONDITION).to(device).eval(), best)
    control = unet(dim=_DIM, cond_dim=_CONDITION, channels=latents[1]).to(device).eval()
    size = f"{data.frames}x{data.size // 2}x{data.size // 2}"
    stages = {
        SHIPPED: Stage(_two_passes(plain, pixels), f"guided step at {size} as shipped"),
        TUNED: Stage(_two_passes(tuned, pixels), f"guided step at {size}", dtype=best),
        TUNED_BATCH: Stage(_one_batch(tuned, pixels), f"guided step at {size}, both passes in one batch", dtype=best),
        CONTROL: Stage(
            _two_passes(control, latents),
            "guided step of the same U-Net on our latents, as shipped",
            repeat=STEPS_IN_A_ROW,
        ),
    }
    return stages, sum(p.numel() for p in plain.parameters())


def _two_passes(unet: Any, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    noisy, level, condition = _inputs(unet, shape)

    @torch.inference_mode()
    def run() -> Tensor:
        return unet.forward_with_cond_scale(noisy, level, cond=condition, cond_scale=GUIDANCE)

    return run


def _one_batch(unet: Any, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    noisy, level, condition = _inputs(unet, (2, *shape[1:]))
    # The package leaves out the condition of all clips or of none; another condition costs the same as none.

    @torch.inference_mode()
    def run() -> Tensor:
        first, second = unet(noisy, level, cond=condition).chunk(2)
        return second + GUIDANCE * (first - second)

    return run


def _inputs(unet: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    weight = next(unet.parameters())
    noisy = torch.randn(shape, device=weight.device).to(weight.dtype)
    condition = torch.randn(shape[0], _CONDITION, device=weight.device).to(weight.dtype)
    return noisy, torch.full(shape[:1], 500, device=weight.device), condition


def in_dtype(unet: Any, dtype: torch.dtype) -> Any:
    """The peer's network in another precision; its sinusoids of the noise level are float32 whatever the network is."""
    unet.time_mlp[1].register_forward_pre_hook(lambda layer, given: (given[0].to(dtype),))
    return unet.to(dtype)


def peer_package() -> ModuleType:
    """The peer's package.

    Raises:
        InputError: it is not installed.
    """
    missing = "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None
    if missing:
        sys.modules["torchvision"] = _StandIn("torchvision")
    try:
        return importlib.import_module("video_diffusion_pytorch")
    except ImportError as error:
        raise InputError(
            f"--against vdm needs the package video-diffusion-pytorch ({error}); scripts/install_vdm.sh installs it"
        ) from error
    finally:
        if missing:
            del sys.modules["torchvision"]  # others ask whether it is there


class _StandIn(ModuleType):
    """Answers to any name: the peer's trainer, which nobody uses here, names transforms while it is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **named: Any) -> None:
        return None
