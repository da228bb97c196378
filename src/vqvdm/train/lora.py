"""Fine-tuning by low-rank adapters (LoRA, Hu et al. 2022) through diffusers' adapters and peft."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import InputError
from vqvdm.layers import Conv3d, Linear
from vqvdm.train.optimization import usable_copy

_BLOCKS = ("down.", "middle.", "up.")
CLASSES = "class_embed.safetensors"


def add_lora(denoiser: VideoDenoiser, rank: int) -> None:
    """Freeze a denoiser but for adapters beside the layers of its blocks, which begin as nothing, and its classes.

    Raises:
        InputError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError("denoiser.lora_rank needs peft; install it with: pip install 'vqvdm[lora]'")
    denoiser.requires_grad_(False)
    names = [name for name, layer in denoiser.named_modules() if name.startswith(_BLOCKS) and _is_adapted(layer)]
    config = importlib.import_module("peft").LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    denoiser.add_adapter(config)
    if denoiser.class_embed is not None:
        denoiser.class_embed.requires_grad_(True)


def _is_adapted(layer: nn.Module) -> bool:
    """Linear layers and convolutions over several places: of a convolution over one, peft cannot merge the adapter."""
    return isinstance(layer, Linear) or (isinstance(layer, Conv3d) and max(layer.kernel_size) > 1)


def base_of(denoiser: nn.Module) -> dict[str, str]:
    """Names of a plain denoiser's weights -> names of the same weights beside adapters."""
    names = [name for name in denoiser.state_dict() if ".lora_" not in name]
    return {name.replace(".base_layer.", "."): name for name in names}


def save_lora(denoiser: VideoDenoiser, folder: Path) -> None:
    """Write the adapters, as diffusers' `load_lora_adapter` reads them, and the classes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    denoiser.save_lora_adapter(str(folder), adapter_name="default")
    if denoiser.class_embed is not None:
        save_file({"weight": denoiser.class_embed.weight.detach().contiguous()}, folder / CLASSES)


def merged(denoiser: VideoDenoiser) -> VideoDenoiser:
    """A usable copy in which the adapters have become part of the weights, and are gone."""
    copied = usable_copy(denoiser)
    copied.fuse_lora()
    copied.unload_lora()
    return copied
