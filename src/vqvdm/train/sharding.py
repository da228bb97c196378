"""A denoiser in shards over the processes (FSDP2), and the way between shards and whole tensors.

Each process holds its rows of every weight, gradient, optimiser state and average. A block's weights are gathered
where it is used and dropped again, its gradients averaged into the shards. Checkpoints hold whole tensors all the same.

This is torch's `fully_shard` and not accelerate's plugin for it, which prepares one network with its optimiser: the
average is a second one, and both are saved here under names and numbers of our own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate

from vqvdm.denoiser import Block, TransformerBlock

Model = TypeVar("Model", bound=nn.Module)


def shard(denoiser: nn.Module, device: torch.device, processes: int) -> None:
    """Leave each process its shards of the weights, on its device; the same weights must be in all of them before.

    Made block by block, so that a device never holds the whole. Optimisers are made afterwards.
    """
    # Nothing here writes into what a block returns, of which this warns at every one.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (processes,))
    blocks = [module for module in denoiser.modules() if isinstance(module, (Block, TransformerBlock))]
    for module in (*blocks, denoiser):
        fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of all its shards, for which every process must call it; one that is whole already is returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, those of shards on the CPU and made one by one, so that a device holds one at a time.

    Every process must call it; those that do not `keep` them get none.
    """
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            kept[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return kept


def part_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Of a tensor that every process has whole this process's shard, as that of `like`; all of it if that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    everywhere = DTensor.from_local(tensor.to(like.device), like.device_mesh, [Replicate()])
    return everywhere.redistribute(placements=like.placements)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
    """`network.load_state_dict` of whole tensors, whether the network lies in shards or not."""
    own = network.state_dict()
    network.load_state_dict({name: part_of(value, own.get(name)) for name, value in weights.items()}, strict=strict)


def outline_of(network: Model) -> Model:
    """A network's copy without memory, in evaluation mode, for `filled`: one that lies in shards cannot be copied."""
    return copy.deepcopy(network).to("meta").requires_grad_(False).eval()


def filled(outline: Model, weights: Mapping[str, Tensor]) -> Model:
    """A network of an outline with whole weights."""
    network = copy.deepcopy(outline)
    network.load_state_dict(weights, assign=True)
    return network
