"""C3D's weights: Chainer's `conv3d_deepnetA_ucf.npz` and the mean volume beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.metrics.c3d import C3D, SIDE, shapes
from vqvdm.weights.containers import read_tensors
from vqvdm.weights.folder import weights_file

MEAN_FILES = ("mean2.npz", "mean.npz")


def load_c3d() -> C3D:
    """C3D with the weights that were imported.

    Raises:
        InputError: they were never imported, or the file is damaged.
    """
    file = weights_file("c3d")
    return C3D(convert_c3d(read_tensors(file), file))


def convert_c3d(found: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors of `vqvdm.metrics.c3d.shapes` from a file in Chainer's layout; the mean lies in a file beside it.

    Raises:
        InputError: another layout, other shapes (as of C3D with Sports-1M's 487 classes), or no file of the mean.
    """
    named = {name.replace("/W", ".weight").replace("/b", ".bias"): tensor.float() for name, tensor in found.items()}
    expected = shapes()
    if "mean" not in named:
        named["mean"] = _mean(source)
    for name, shape in expected.items():
        if name not in named:
            raise InputError(f"{source}: C3D's tensor {name} is missing; there are {', '.join(sorted(found)[:4])}, ...")
        if tuple(named[name].shape) != shape:
            hint = "; this C3D knows Sports-1M's classes, not UCF-101's" if named[name].shape[0] == 487 else ""
            raise InputError(f"{source}: {name} has shape {tuple(named[name].shape)}, not {shape}{hint}")
    return {name: named[name].contiguous() for name in expected}


def _mean(source: Path) -> Tensor:
    """The mean volume (3, 16, 128, 171), cut as TGAN-2 cuts it: rows and columns 8 to 119."""
    beside = [source.with_name(name) for name in MEAN_FILES]
    file = next((path for path in beside if path.is_file()), None)
    if file is None:
        raise InputError(
            f"{source}: the mean that C3D subtracts is in a file of its own, which was expected as {beside[0]}"
        )
    content = read_tensors(file)
    if "mean" not in content or tuple(content["mean"].shape[:2]) != (3, 16):
        raise InputError(f"{file} holds no array `mean` of shape (3, 16, 128, 171)")
    cut = slice(8, 8 + SIDE)
    return content["mean"].float()[:, :, cut, cut]
