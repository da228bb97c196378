"""LPIPS, the perceptual distance of images (Zhang et al. 2018), with VGG16 (Simonyan and Zisserman 2015).

Its weights are not part of this package. `load_lpips` reads them from one safetensors file with these 31 float tensors:

    vgg.conv{B}_{I}.weight   (c_out, c_in, 3, 3)   the 13 convolutions of VGG16: B = 1..5 its block, I = 1, 2, (3)
    vgg.conv{B}_{I}.bias     (c_out,)              within it; torchvision calls them features.{0, 2, 5, 7, 10, 12, 14,
                                                   17, 19, 21, 24, 26, 28}
    heads.{K}                (c,)                  LPIPS' linear weights lin0 to lin4 (version 0.1), K = 0..4,
                                                   c = 64, 128, 256, 512, 512
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqvdm.errors import InputError

LPIPS_FILE = "lpips-vgg16.safetensors"
VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
SMALLEST_SIDE = 16  # VGG16 halves four times before its last block

# The mean and deviation of ImageNet for images in -1..1, to the digits that LPIPS uses
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS distance with VGG16, always in float32 and never trained; weights are random until loaded."""

    def __init__(self, blocks: Sequence[tuple[int, int]] = VGG16_BLOCKS) -> None:
        """Make the network; `blocks` (channels, convolutions) other than VGG16's are for tests."""
        super().__init__()
        self.blocks = tuple(blocks)
        self.vgg = nn.ModuleDict()
        self.heads = nn.ParameterList()
        width_in = 3
        for b, (width, depth) in enumerate(self.blocks, start=1):
            for i in range(1, depth + 1):
                self.vgg[f"conv{b}_{i}"] = nn.Conv2d(width_in, width, 3, padding=1)
                width_in = width
            self.heads.append(nn.Parameter(torch.rand(width)))
        self.requires_grad_(False)
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, x: Tensor, y: Tensor, frames: Tensor | None = None) -> Tensor:
        """Distance of `x` and `y`, both images (b, 3, h, w) or both clips (b, 3, t, h, w), -1..1.

        Args:
            x: differentiable input.
            y: differentiable input; the distance is symmetric.
            frames: (b, k) int64, the frames of each clip to compare; None compares all.

        Returns:
            (b,) float32, at least 0; for clips the mean over the frames.

        Raises:
            InputError: images smaller than 16 pixels.
        """
        assert x.shape == y.shape, f"LPIPS got {tuple(x.shape)} and {tuple(y.shape)}"
        if min(x.shape[-2:]) < SMALLEST_SIDE:
            raise InputError(f"LPIPS needs images of at least {SMALLEST_SIDE} pixels a side, got {tuple(x.shape[-2:])}")
        batch = len(x)
        if x.ndim == 5:
            x, y = _frames_as_images(x, frames), _frames_as_images(y, frames)  # (b*k, c, h, w)
        with torch.autocast(x.device.type, enabled=False):
            distances = self._distances(x.float(), y.float())  # (b*k,)
        return distances.view(batch, -1).mean(dim=1)  # (b,)

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Zhang et al. 2018, eq. 1: sum over layers of the mean over places of the weighted squared difference."""
        total = x.new_zeros(len(x))
        for head, a, b in zip(self.heads, self._features(x), self._features(y), strict=True):
            difference = (_unit(a) - _unit(b)).square()  # (n, c, h, w)
            total = total + torch.einsum("nchw,c->nhw", difference, head).mean(dim=(1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        """Activations after the last ReLU of each block: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        shift, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = (x - shift) / scale
        features = []
        for b, (_, depth) in enumerate(self.blocks, start=1):
            if b > 1:
                x = F.max_pool2d(x, 2)
            for i in range(1, depth + 1):
                x = F.relu(self.vgg[f"conv{b}_{i}"](x))
            features.append(x)
        return features


def weights_folder() -> Path:
    """Folder of downloaded weights: `weights` in $VQVDM_CACHE, else in $XDG_CACHE_HOME/vqvdm, else ~/.cache/vqvdm."""
    if cache := os.environ.get("VQVDM_CACHE"):
        return Path(cache).expanduser() / "weights"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vqvdm" / "weights"


def load_lpips(path: str | Path | None = None) -> LPIPS:
    """LPIPS in evaluation mode, on the CPU, with the weights of `path` (default: in `weights_folder()`).

    Raises:
        InputError: the file is missing, unreadable, or holds other tensors than the module's docstring lists.
    """
    file = Path(path) if path is not None else weights_folder() / LPIPS_FILE
    if not file.is_file():
        raise InputError(
            f"the perceptual loss needs the LPIPS weights (VGG16), and there is no file {file}. Put "
            f"{LPIPS_FILE} there (its layout: the documentation of vqvdm.perceptual), name another cache folder in the "
            "environment variable VQVDM_CACHE, or train without it (tokenizer.loss.perceptual=0)"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a readable safetensors file ({error}); fetch it again") from error
    lpips = LPIPS()
    expected = {name: tuple(tensor.shape) for name, tensor in lpips.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{file} does not hold LPIPS weights: {len(wrong)} tensors differ, such as {name}, "
            f"expected {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
        )
    lpips.load_state_dict(tensors)
    return lpips.eval()


def _frames_as_images(clip: Tensor, frames: Tensor | None) -> Tensor:
    """The chosen frames (b, k) of clips (b, c, t, h, w), or all, as images (b*k, c, h, w)."""
    images = clip.movedim(2, 1)  # (b, t, c, h, w)
    if frames is not None:
        images = images[torch.arange(len(clip), device=clip.device)[:, None], frames]  # (b, k, c, h, w)
    return images.flatten(0, 1)


def _unit(features: Tensor) -> Tensor:
    """Features (n, c, h, w) scaled to length 1 over channels."""
    # zeros are safe: where all channels are 0, ReLU lets no gradient through
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
