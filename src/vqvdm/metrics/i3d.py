"""I3D, the network of FVD: Inception inflated to video, 400 logits of Kinetics (Carreira and Zisserman 2017).

Written after the graph of TF-hub's `deepmind/i3d-kinetics-400/1`, whose output `RGB/inception_i3d/Mean` FVD takes: the
logits, averaged over time. All padding is TensorFlow's SAME. Tensors are named by unit, such as
`Mixed_3b.Branch_0.Conv3d_0a_1x1`, with `.weight` (c_out, c_in, t, h, w) and, of batch norm without a gain, `.beta`,
`.mean` and `.variance` (c,); the logits have `.weight` and `.bias`. How files in other layouts become these, and which
are the right ones: `vqvdm.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 400
SIDE = 224  # pixels that the network was trained on
LEAST_FRAMES = 9  # of fewer, the last pooling has nothing to average
LOGITS = "Logits.Conv3d_0c_1x1"

# Channels of the branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1.
MIXED: Mapping[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def units() -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Each convolution with batch norm: its name and the shape of its weight."""
    yield "Conv3d_1a_7x7", (64, 3, 7, 7, 7)
    yield "Conv3d_2b_1x1", (64, 64, 1, 1, 1)
    yield "Conv3d_2c_3x3", (192, 64, 3, 3, 3)
    width = 192
    for name, (one, reduce_1, three_1, reduce_2, three_2, pooled) in MIXED.items():
        yield f"{name}.Branch_0.Conv3d_0a_1x1", (one, width, 1, 1, 1)
        yield f"{name}.Branch_1.Conv3d_0a_1x1", (reduce_1, width, 1, 1, 1)
        yield f"{name}.Branch_1.Conv3d_0b_3x3", (three_1, reduce_1, 3, 3, 3)
        yield f"{name}.Branch_2.Conv3d_0a_1x1", (reduce_2, width, 1, 1, 1)
        yield f"{name}.Branch_2.Conv3d_0b_3x3", (three_2, reduce_2, 3, 3, 3)
        yield f"{name}.Branch_3.Conv3d_0b_1x1", (pooled, width, 1, 1, 1)
        width = one + three_1 + three_2 + pooled


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of each of the 230 tensors."""
    named: dict[str, tuple[int, ...]] = {}
    for unit, shape in units():
        named[f"{unit}.weight"] = shape
        named |= {f"{unit}.{part}": shape[:1] for part in ("beta", "mean", "variance")}
    return named | {f"{LOGITS}.weight": (CLASSES, 1024, 1, 1, 1), f"{LOGITS}.bias": (CLASSES,)}


class I3D(nn.Module):
    """The network with batch norm folded into its convolutions; always float32 and never trained."""

    def __init__(self, tensors: Mapping[str, Tensor], epsilon: float = 1e-3) -> None:
        """Build it from the tensors of `shapes`.

        Args:
            tensors: name -> float32.
            epsilon: of batch norm: 1e-3 in DeepMind's graph, 1e-5 in VideoGPT's code and all that descends from it.
        """
        super().__init__()
        for name, shape in shapes().items():
            assert tuple(tensors[name].shape) == shape, (name, tuple(tensors[name].shape), shape)
        folded = {unit: _folded(tensors, unit, epsilon) for unit, _ in units()}
        self.conv1 = _convolution(*folded["Conv3d_1a_7x7"], stride=2)
        self.conv2 = nn.Sequential(
            _convolution(*folded["Conv3d_2b_1x1"]), nn.ReLU(inplace=True), _convolution(*folded["Conv3d_2c_3x3"])
        )
        self.mixed = nn.ModuleDict({name: _Mixed(name, folded) for name in MIXED})
        self.logits = _convolution(tensors[f"{LOGITS}.weight"], tensors[f"{LOGITS}.bias"])
        self.requires_grad_(False)
        self.eval()
        nn.utils.convert_conv3d_weight_memory_format(self, torch.channels_last_3d)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips (b, 3, t, 224, 224) in -1..1, t at least 9 -> logits averaged over time, float32 (b, 400)."""
        assert (clips.shape[1], *clips.shape[3:]) == (3, SIDE, SIDE), tuple(clips.shape)
        assert clips.shape[2] >= LEAST_FRAMES, tuple(clips.shape)
        with torch.autocast(clips.device.type, enabled=False):
            x = clips.float().contiguous(memory_format=torch.channels_last_3d)
            x = F.relu_(self.conv1(_same(x, (7, 7, 7), (2, 2, 2))))
            x = _pool_frames(x)
            x = F.relu_(self.conv2(x))
            x = _pool_frames(x)
            for name, mixed in self.mixed.items():
                if name == "Mixed_4b":
                    x = _pool(x, (3, 3, 3), (2, 2, 2))
                elif name == "Mixed_5b":
                    x = _pool(x, (2, 2, 2), (2, 2, 2))
                x = mixed(x)
            x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (b, 1024, t', h', w')
            return self.logits(x)[..., 0, 0].mean(dim=2)  # the graph drops height and width, which are 1


class _Mixed(nn.Module):
    """An inception block; the three 1x1 convolutions that read its input are computed as one."""

    def __init__(self, name: str, folded: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        one, reduce_1, _, reduce_2, _, _ = MIXED[name]
        self.widths = [one, reduce_1, reduce_2]
        first = [folded[f"{name}.Branch_{branch}.Conv3d_0a_1x1"] for branch in range(3)]
        self.reduce = _convolution(torch.cat([w for w, _ in first]), torch.cat([b for _, b in first]))
        self.branch1 = _convolution(*folded[f"{name}.Branch_1.Conv3d_0b_3x3"])
        self.branch2 = _convolution(*folded[f"{name}.Branch_2.Conv3d_0b_3x3"])
        self.branch3 = _convolution(*folded[f"{name}.Branch_3.Conv3d_0b_1x1"])

    def forward(self, x: Tensor) -> Tensor:
        one, reduced_1, reduced_2 = F.relu_(self.reduce(x)).split(self.widths, dim=1)
        pooled = F.max_pool3d(x, 3, stride=1, padding=1)
        rest = [self.branch1(reduced_1), self.branch2(reduced_2), self.branch3(pooled)]
        return torch.cat([one, *map(F.relu_, rest)], dim=1)


def _folded(tensors: Mapping[str, Tensor], unit: str, epsilon: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution followed by its batch norm."""
    beta, mean, variance = (tensors[f"{unit}.{part}"].double() for part in ("beta", "mean", "variance"))
    scale = (variance + epsilon).rsqrt()
    weight = tensors[f"{unit}.weight"].double() * scale.view(-1, 1, 1, 1, 1)
    return weight.float(), (beta - mean * scale).float()


def _convolution(weight: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv3d:
    """A convolution with these numbers; of stride 1 it pads by itself."""
    out, fan_in, *_, extent = weight.shape  # a cube
    layer = nn.Conv3d(fan_in, out, extent, stride=stride, padding=extent // 2 if stride == 1 else 0)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros around (b, c, t, h, w) as TensorFlow's SAME has them: the odd one goes behind."""
    padding: list[int] = []
    for length, extent, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        missing = max((-(-length // step) - 1) * step + extent - length, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)


def _pool_frames(x: Tensor) -> Tensor:
    """Maximum over 3x3 at every second place of each frame; height and width are even, so SAME pads behind."""
    frames = x.transpose(1, 2).flatten(0, 1)  # (b*t, c, h, w): in two dimensions, pooling is five times faster
    pooled = F.max_pool2d(frames, 3, stride=2, ceil_mode=True)
    return pooled.unflatten(0, (len(x), -1)).transpose(1, 2)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Maximum; zeros at the edge change nothing, since what is pooled has been through ReLU."""
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)
