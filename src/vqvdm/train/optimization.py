"""The arithmetic of an update: learning rate, optimisers, gradient norm, averaged weights, precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from vqvdm.processor import fast_bf16
from vqvdm.recipe import TrainingRecipe
from vqvdm.train.muon import Muon
from vqvdm.train.sharding import whole

Model = TypeVar("Model", bound=nn.Module)


def learning_rate(training: TrainingRecipe, step: int) -> float:
    """The learning rate of update `step`, from 0: linear warm-up, then a cosine (Loshchilov and Hutter 2017, eq. 5).

    A function of the step alone, so that nothing of it needs saving.
    """
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    progress = min((step - training.warmup) / max(training.steps - training.warmup, 1), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * (training.final_learning_rate + (1 - training.final_learning_rate) * share)


def set_learning_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Make `rate` the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def make_optimizers(model: nn.Module, training: TrainingRecipe) -> dict[str, Optimizer]:
    """The optimisers of what is trained of a network, by the names that checkpoints give them; they share the rate.

    With "muon" that is Muon for the weights of linear and convolution layers, and AdamW for all else: biases, norms,
    embeddings, and the layer that makes the output ("head"), as Jordan 2024 has it.
    """
    rate, betas, decay = training.learning_rate, training.betas, training.weight_decay
    if training.optimizer == "adamw":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return {"optimizer": make_adamw(trained, rate, betas, decay)}
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
    inner = [layer for name, layer in model.named_modules() if isinstance(layer, kinds) and not name.endswith("head")]
    weights = [layer.weight for layer in inner if layer.weight.requires_grad]
    theirs = set(map(id, weights))
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in theirs]
    return {"optimizer": make_adamw(rest, rate, betas, decay), "muon": Muon(weights, rate, weight_decay=decay)}


def make_adamw(
    parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float], weight_decay: float = 0.0
) -> AdamW:
    """AdamW (fused) in which biases and norms do not decay."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=rate, betas=betas, fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients to a norm of at most `largest` (0: leave them) and return the norm before, a scalar."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, largest if largest > 0 else math.inf))


def averaged_copy(model: Model) -> Model:
    """A copy for `update_average` to keep; it is never trained and always in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average <- d * average + (1 - d) * model with d = min(decay, (1 + step) / (10 + step)); buffers are copied.

    The decay warms up so that early, bad weights are soon forgotten. It is a function of the step alone (torch's
    `AveragedModel` keeps its own counter, one more thing to save, and reads it from the device at every update).
    """
    d = min(decay, (1 + step) / (10 + step))
    kept_weights: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(kept_weights, weights, 1 - d)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def usable_copy(model: Model) -> Model:
    """A copy to use or to save: evaluation mode, no gradients, weights laid out as files hold them."""
    copied = averaged_copy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.contiguous()
    return copied


def channels_last(model: Model, device: torch.device) -> Model:
    """The same model with the weights of its convolutions stored channels-last, as a GPU's fast kernels want them.

    Not on a CPU, whose kernels order weights anew in any case, and whose fused AdamW copies what is not contiguous:
    there an update takes 5% longer with them.
    """
    if device.type == "cpu":
        return model
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
    return model


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 arithmetic where the recipe asks for it and the device is fast at it; float32 otherwise."""
    enabled = precision == "bf16" and fast_bf16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def synchronised(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around forward and backward: gradients are averaged over the processes only in an update's last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()
