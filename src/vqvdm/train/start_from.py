"""Weights to begin with: those of another network, or of a tokenizer of images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvdm.context import MASKS
from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import InputError
from vqvdm.tokenizer import VideoTokenizer


def start_denoiser_from(denoiser: VideoDenoiser, other: VideoDenoiser, known: Mapping[int, int] | None = None) -> None:
    """Give a network the weights of another one.

    A network that takes an estimate of the clean latents, or given ones, may start from one that does not: it does not
    heed them yet. One that normalises queries and keys may, too, but attends in another way at first.

    Args:
        denoiser: gets them.
        other: gives them.
        known: class -> the other's class of the same name; any other class begins as no class at all. None takes the
            classes as they are, or, if there are more or fewer of them, takes none for known.

    Raises:
        InputError: other parts differ in their shapes.
    """
    weights = other.state_dict()
    classes, others = denoiser.config["num_classes"], other.config["num_classes"]
    if known is None and classes != others:
        known = {}
    if denoiser.patch == other.patch and denoiser.config["in_channels"] == other.config["in_channels"]:
        weights = {**weights, "stem.weight": _widened(weights["stem.weight"], denoiser, other)}
    if known is not None:
        weights = {name: value for name, value in weights.items() if not name.startswith("class_embed.")}
        if classes > 0:
            embedded = denoiser.state_dict()["class_embed.weight"]
            if others > 0:
                theirs = other.state_dict()["class_embed.weight"]
                rows = [known.get(label, others) for label in range(classes)]
                embedded = theirs[[*rows, others]]  # the last row is no class
            weights["class_embed.weight"] = embedded
    _load(denoiser, weights, "denoiser", new=".norm_qk.")


def _widened(stem: Tensor, denoiser: VideoDenoiser, other: VideoDenoiser) -> Tensor:
    """The other's first weights with zeros for what it does not see, in the order of `VideoDenoiser.forward`."""
    channels, places = other.config["in_channels"], math.prod(other.patch)
    parts = rearrange(stem, "o (p c) t h w -> o p c t h w", p=places)
    seen = {"noisy": channels, "self_condition": channels, "context": channels + MASKS}
    widened, start = [], 0
    for name, width in seen.items():
        there = name == "noisy" or other.config[name]
        part = (
            parts[:, :, start : start + width] if there else parts.new_zeros(*parts.shape[:2], width, *stem.shape[2:])
        )
        start += width if there else 0
        if there or denoiser.config[name]:  # what is there and not wanted is noticed by its shape
            widened.append(part)
    return torch.cat(widened, dim=2).flatten(1, 2)


def start_tokenizer_from(tokenizer: VideoTokenizer, other: VideoTokenizer) -> None:
    """Give a tokenizer the weights of another one, its codebook and statistics included.

    One of images (trained with data.frames=1, of factor 1 in time) is inflated, so that on clips in which nothing
    moves it reconstructs every frame as the image: kernels keep their central slice and are zero beside it (MAGVIT,
    Yu et al. 2023, section 3.1), and where frames are folded into channels each of them gets an equal part.

    A decoder with more `pixel_blocks` than the other's begins as that one: the new blocks change nothing yet.

    Raises:
        InputError: shapes differ in another way.
    """
    weights = other.state_dict()
    if other.factors != tokenizer.factors:
        if other.factors != (1, *tokenizer.factors[1:]) or tokenizer.config["resampling"] == "strided":
            raise InputError(
                f"tokenizer.start_from names a tokenizer of factors {other.factors}, where this one's are "
                f"{tokenizer.factors}; of one that differs, only images' (1 in time) can be taken, and not if strided"
            )
        weights = _inflated(tokenizer, weights)
    _load(tokenizer, weights, "tokenizer", new="decoder.pixels.blocks.")


def _inflated(tokenizer: VideoTokenizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image tokenizer's weights in the shapes of `tokenizer`, where they can be brought into them."""
    inflated = dict(weights)
    for name, layer in tokenizer.named_modules():
        weight = weights.get(f"{name}.weight")
        if not isinstance(layer, nn.Conv3d) or weight is None:
            continue
        middle = weight.shape[2] // 2
        central = torch.zeros_like(weight)
        central[:, :, middle] = weight[:, :, middle]
        # Folded channels have the frame first (`layers.fold`), so those of the frames lie one after the other.
        out, fan_in = (max(n // m, 1) for n, m in zip(layer.weight.shape, weight.shape[:2], strict=False))
        inflated[f"{name}.weight"] = central.repeat(out, fan_in, 1, 1, 1) / fan_in
        if f"{name}.bias" in weights:
            inflated[f"{name}.bias"] = weights[f"{name}.bias"].repeat(out)
    return inflated


def _load(network: nn.Module, weights: Mapping[str, Tensor], part: str, new: str) -> None:
    """Load them; parts whose names contain `new` keep the network's own where the other has none."""
    own = {name: value for name, value in network.state_dict().items() if new in name}
    weights = {**own, **weights}
    shapes, wanted = ({(name, value.shape) for name, value in some.items()} for some in (weights, network.state_dict()))
    if differing := sorted({name for name, _ in shapes ^ wanted}):
        raise InputError(
            f"{part}.start_from names a network of another architecture (weights differ in shape: {differing[0]} and "
            f"{len(differing) - 1} more); take its {part}.model"
        )
    network.load_state_dict(weights)
