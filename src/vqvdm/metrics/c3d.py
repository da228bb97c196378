"""C3D fine-tuned on UCF-101: the network of the Inception Score of video (Tran et al. 2015; Saito et al. 2020).

Written after TGAN-2's evaluation. Tensors are those of `conv3d_deepnetA_ucf.npz` with "/W" and "/b" as ".weight" and
".bias"; the input is BGR, in 0..255 minus a mean volume.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvdm.metrics.resize import resize

CLASSES = 101
FRAMES, SIDE = 16, 112
_WIDTHS = {
    "conv1a": 64,
    "conv2a": 128,
    "conv3a": 256,
    "conv3b": 256,
    "conv4a": 512,
    "conv4b": 512,
    "conv5a": 512,
    "conv5b": 512,
}
_POOLED_AFTER = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of each of the 23 tensors; `mean` is the volume that is subtracted, BGR."""
    named: dict[str, tuple[int, ...]] = {}
    fan_in = 3
    for name, width in _WIDTHS.items():
        named |= {f"{name}.weight": (width, fan_in, 3, 3, 3), f"{name}.bias": (width,)}
        fan_in = width
    for name, width, fan_in in (("fc6", 4096, 8192), ("fc7", 4096, 4096), ("fc8", CLASSES, 4096)):
        named |= {f"{name}.weight": (width, fan_in), f"{name}.bias": (width,)}
    return named | {"mean": (3, FRAMES, SIDE, SIDE)}


class C3D(nn.Module):
    """Probabilities of the 101 classes; always float32 and never trained."""

    mean: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Build it from the tensors of `shapes`."""
        super().__init__()
        expected = shapes()
        layers: dict[str, nn.Module] = {}
        for name, shape in expected.items():
            if name.endswith(".weight"):
                layer = (
                    nn.Conv3d(shape[1], shape[0], 3, padding=1) if len(shape) == 5 else nn.Linear(shape[1], shape[0])
                )
                layers[name.removesuffix(".weight")] = layer
        self.layers = nn.ModuleDict(layers)
        self.register_buffer("mean", torch.zeros(expected["mean"]))
        self.load_state_dict({name if name == "mean" else f"layers.{name}": tensors[name] for name in expected})
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        """Clips (b, 3, 16, h, w), RGB in -1..1 -> probabilities (b, 101).

        TGAN-2's evaluation: channels swapped, times 128, resized with corners aligned, plus 128 minus the mean.
        """
        assert videos.shape[1:3] == (3, FRAMES), tuple(videos.shape)
        with torch.autocast(videos.device.type, enabled=False):
            frames = videos.float().flip(1).transpose(1, 2).flatten(0, 1) * 128  # (b*t, 3, h, w)
            frames = resize(frames, SIDE, SIDE, "align_corners").unflatten(0, (len(videos), FRAMES)).transpose(1, 2)
            return self.logits(frames + (128 - self.mean)).softmax(dim=1)

    def logits(self, x: Tensor) -> Tensor:
        """Prepared clips (b, 3, 16, 112, 112) -> (b, 101)."""
        for name in _WIDTHS:
            x = F.relu_(self.layers[name](x))
            if name in _POOLED_AFTER:
                # The last frames and rows get a window of their own where they are odd ones out: 7x7 becomes 4x4.
                kernel = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                x = F.max_pool3d(x, kernel, stride=kernel, ceil_mode=True)
        x = x.flatten(1)  # (b, 8192), in the order c, t, h, w
        x = F.relu(self.layers["fc6"](x))
        x = F.relu(self.layers["fc7"](x))
        return self.layers["fc8"](x)
