"""Stage 1: the 3D VQGAN. A clip becomes a small grid of latents, and a clip again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vqvdm.autoencoder import DOWN, Decoder, Encoder, PixelBlock, Resampling, TATSDecoder, TATSEncoder
from vqvdm.errors import InputError
from vqvdm.identity import Configured, changed_settings, fingerprint
from vqvdm.layers import Stride
from vqvdm.processor import packed_weights
from vqvdm.quantizers import (
    EMACodebook,
    FiniteScalarQuantizer,
    Gradient,
    ProductCodebook,
    Quantizer,
    QuantizerOutput,
    RunningNorm,
)
from vqvdm.tiling import blend_tiles


@dataclass(frozen=True)
class TokenizerOutput:
    """What a training step needs of one forward pass."""

    reconstruction: Tensor  # clip (b, c, t, h, w)
    loss: Tensor  # the quantiser's own loss, scalar
    tokens: Tensor | None  # int64 (b, t, h, w), of several codebooks (b, t, h, w, books); None without a quantiser
    perplexity: Tensor  # scalar
    usage: Tensor  # scalar, 0..1


class VideoTokenizer(ModelMixin, Configured):
    """The 3D VQGAN: `encode` gives normalised latents, `decode` a clip; in between a codebook, FSQ or nothing.

    Latents are normalised per channel by statistics that are saved with the weights; nothing outside this class sees
    others. `decode` snaps what it is given to the codebook whenever there is one, as in training; a codebook that has
    seen no training batch yet (`quantize_after`) leaves values as they are, which is what its decoder knows.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["ResidualBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "codebook"]  # noqa: RUF012  diffusers' own form
    _keep_in_fp32_modules = ["codebook", "running_norm", "latents_mean", "latents_std"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        channels: tuple[int, ...] = (64, 128, 256),
        patch: tuple[int, int, int] = (1, 2, 2),
        strides: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2)),
        blocks: int | tuple[int, ...] = 1,
        latent_channels: int = 3,
        quantizer: Literal["ema", "fsq", "none"] = "ema",
        latents: Literal["before", "after"] = "before",
        codebook_size: int = 1024,
        codebooks: int = 1,
        codebook_decay: float = 0.99,
        commitment: float = 0.25,
        codebook_init: Literal["data", "kmeans"] = "data",
        restart_after: int = 200,
        fsq_levels: tuple[int, ...] = (8, 8, 8),
        layout: Literal["vqvdm", "tats"] = "vqvdm",
        resampling: Resampling = "shortcut",
        codebook_gradient: Gradient = "straight",
        pixel_channels: int = 0,
        pixel_blocks: int = 0,
    ) -> None:
        """Build an untrained tokenizer.

        Args:
            in_channels: colours of a clip.
            channels: width of each level, finest first.
            patch: extent (t, h, w) folded into channels before the first convolution.
            strides: down-sampling (t, h, w) after each level but the last; times `patch` gives `factors`.
            blocks: residual blocks of each level, in encoder and decoder each; one number serves all levels.
            latent_channels: channels of the latent grid, and of a code.
            quantizer: "ema" for a codebook with moving averages, "fsq" for finite scalar quantisation, "none".
            latents: whether `encode` returns values from before or after the quantiser.
            codebooks: of "ema", each for an equal part of the latent channels; see `ProductCodebook`.
            codebook_size, codebook_decay, commitment, codebook_init, restart_after: see `EMACodebook`.
            fsq_levels: levels per latent channel, see `FiniteScalarQuantizer`.
            layout: "vqvdm", or "tats" for comparison, which has no patch and blocks of its own.
            resampling: how "vqvdm" changes the resolution, see `vqvdm.autoencoder`.
            codebook_gradient: see `EMACodebook`.
            pixel_channels: width of the last layers of "vqvdm", which work on single pixels (see
                `vqvdm.autoencoder.Pixels`); 0 makes each patch by one linear layer.
            pixel_blocks: gated residual blocks among them, over 3x3x3 pixels.

        Raises:
            InputError: settings that contradict each other.
        """
        super().__init__()
        channels, patch = tuple(channels), tuple(patch)
        strides = tuple(tuple(stride) for stride in strides)
        blocks = (blocks,) * len(channels) if isinstance(blocks, int) else tuple(blocks)
        _check(in_channels, latent_channels, channels, patch, strides, blocks)
        _check_layout(layout, resampling, channels, patch, strides)
        _check_pixels(layout, pixel_channels, pixel_blocks)
        ft, fh, fw = (math.prod(axis) for axis in zip(patch, *strides, strict=True))
        self.factors: Stride = (ft, fh, fw)
        self.running_norm = RunningNorm(latent_channels)
        self.encoder: Encoder | TATSEncoder
        self.decoder: Decoder | TATSDecoder
        if layout == "tats":
            self.encoder = TATSEncoder(in_channels, channels, strides, latent_channels)
            self.decoder = TATSDecoder(latent_channels, channels, strides, in_channels)
        else:
            self.encoder = Encoder(in_channels, channels, patch, strides, blocks, latent_channels, resampling)
            self.decoder = Decoder(
                latent_channels,
                channels,
                patch,
                strides,
                blocks,
                in_channels,
                resampling,
                pixel_channels,
                pixel_blocks,
            )
        self.codebook: Quantizer | None = None
        if quantizer == "ema":
            if codebooks < 1 or latent_channels % codebooks:
                raise InputError(f"codebooks {codebooks} must divide the {latent_channels} latent channels")
            books = [
                EMACodebook(
                    codebook_size,
                    latent_channels // codebooks,
                    decay=codebook_decay,
                    commitment=commitment,
                    restart_after=restart_after,
                    init=codebook_init,
                    seed=number,
                    gradient=codebook_gradient,
                )
                for number in range(codebooks)
            ]
            self.codebook = books[0] if codebooks == 1 else ProductCodebook(books)
        elif quantizer == "fsq":
            if len(fsq_levels) != latent_channels:
                raise InputError(
                    f"fsq_levels {tuple(fsq_levels)} must name one level for each of {latent_channels} channels"
                )
            self.codebook = FiniteScalarQuantizer(tuple(fsq_levels))
        elif quantizer != "none":
            raise InputError(f'quantizer must be "ema", "fsq" or "none", not {quantizer!r}')
        self.latents_mean: Tensor
        self.latents_std: Tensor
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))
        self.use_tiling = False
        self.tile: Stride = (16, 256, 256)  # in pixels
        self.tile_overlap: Stride = (8, 64, 64)
        self.apply(_initialise)

    # --- the door -----------------------------------------------------------------------------------------------

    @apply_forward_hook
    @torch.no_grad()
    @packed_weights()
    def encode(self, clip: Tensor) -> Tensor:
        """Clip (b, c, t, h, w) in -1..1 -> latents (b, latent_channels, t/ft, h/fh, w/fw), normalised per channel."""
        self.latent_shape(*clip.shape[2:])
        return self._normalise(self._encode(clip))

    @apply_forward_hook
    @torch.no_grad()
    @packed_weights()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, c, t, h, w) -> clip (b, 3, t*ft, h*fh, w*fw), about -1..1 (not clamped)."""
        z = self._snap(self._denormalise(latents)).to(self.dtype)
        if not self.use_tiling:
            return self.decoder(z)
        (t, h, w), (ft, fh, fw), (ot, oh, ow) = self.tile, self.factors, self.tile_overlap
        tile, overlap = (max(t // ft, 1), max(h // fh, 1), max(w // fw, 1)), (ot // ft, oh // fh, ow // fw)
        return blend_tiles(self.decoder, z, tile, overlap, tuple(Fraction(f) for f in self.factors))

    @apply_forward_hook
    @torch.no_grad()
    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """The codes nearest to latents (b, c, t, h, w); `quantized` is normalised as latents are."""
        output = self._codes("it makes latents, not tokens").snap(self._denormalise(latents))
        return output._replace(quantized=self._normalise(output.quantized))

    def tokens(self, clip: Tensor) -> Tensor:
        """Clip (b, c, t, h, w) in -1..1 -> codebook indices (b, t/ft, h/fh, w/fw), int64; see `TokenizerOutput`."""
        return self.quantize(self.encode(clip)).tokens

    @apply_forward_hook
    @torch.no_grad()
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Codebook indices as of `tokens` -> clip (b, 3, t*ft, h*fh, w*fw)."""
        codebook = self._codes("it decodes latents, not tokens")
        return self.decode(self._normalise(codebook.embed(tokens)))

    def forward(self, clip: Tensor, quantize: bool = True, noise: Tensor | None = None) -> TokenizerOutput:
        """Reconstruct a clip (b, c, t, h, w), differentiably; in training mode norm and codebook learn from it.

        Args:
            clip: (b, c, t, h, w) in -1..1.
            quantize: False passes continuous latents on, as training does at first (`quantize_after`); so does, in
                evaluation mode, a codebook that has not learnt yet.
            noise: added to the latents (b, latent_channels, t/ft, h/fh, w/fw), which have a deviation of 1, before
                they are quantised.
        """
        u = self.running_norm(self.encoder(clip))
        u = u if noise is None else u + noise
        if self.codebook is None or not quantize or not (self.training or self.codebook.ready):
            zero = u.new_zeros((), dtype=torch.float32)
            return TokenizerOutput(self.decoder(u), zero, None, zero, zero)
        codes = self.codebook(u)
        return TokenizerOutput(self.decoder(codes.quantized), codes.loss, codes.tokens, codes.perplexity, codes.usage)

    # --- latents ------------------------------------------------------------------------------------------------

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (c, t, h, w) of the latents of such a clip; InputError where the factors do not divide it."""
        extent = (frames, height, width)
        if any(n < f or n % f for n, f in zip(extent, self.factors, strict=True)):
            nearest = tuple(max(round(n / f), 1) * f for n, f in zip(extent, self.factors, strict=True))
            raise InputError(
                f"a clip of {frames} frames of {height}x{width} cannot be divided by the tokenizer's factors "
                f"{self.factors}; the nearest that can is {nearest[0]} frames of {nearest[1]}x{nearest[2]}"
            )
        t, h, w = (n // f for n, f in zip(extent, self.factors, strict=True))
        return self.config["latent_channels"], t, h, w

    @torch.no_grad()
    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Make `encode` exact: mean and std (c,) of what it returns while they are 0 and 1."""
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std.clamp(min=1e-6))

    def _encode(self, clip: Tensor) -> Tensor:
        clip = clip.to(self.dtype)
        if self.use_tiling:
            scale = tuple(Fraction(1, f) for f in self.factors)
            z = blend_tiles(self.encoder, clip, self.tile, self.tile_overlap, scale)
        else:
            z = self.encoder(clip)
        u = self.running_norm.normalise(z)
        if self.codebook is None:
            return u
        u = self.codebook.bound(u)
        return self._snap(u) if self.config["latents"] == "after" else u

    def _normalise(self, u: Tensor) -> Tensor:
        return (u.float() - _per_channel(self.latents_mean)) / _per_channel(self.latents_std)

    def _denormalise(self, latents: Tensor) -> Tensor:
        return latents.float() * _per_channel(self.latents_std) + _per_channel(self.latents_mean)

    def _snap(self, u: Tensor) -> Tensor:
        """What the decoder has learnt to take: codes, or the values themselves until the quantiser has entered."""
        return u if self.codebook is None or not self.codebook.ready else self.codebook.snap(u).quantized

    def _codes(self, otherwise: str) -> Quantizer:
        if self.codebook is None:
            raise InputError(f'this tokenizer has no codebook (quantizer="none"): {otherwise}')
        if not self.codebook.ready:
            raise InputError(
                f"this tokenizer's codebook is untrained, as before update quantize_after of its training: {otherwise}"
            )
        return self.codebook

    # --- the rest -----------------------------------------------------------------------------------------------

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, by which the adaptive adversarial weight compares gradients."""
        return self.decoder.head.weight

    def enable_tiling(self, tile: Stride | None = None, overlap: Stride | None = None) -> None:
        """Encode and decode in tiles of (frames, height, width) pixels that share `overlap`: memory stays flat.

        Results differ slightly from those of the whole clip, since group norms see one tile at a time.
        """
        tile, overlap = tile or self.tile, overlap or self.tile_overlap
        for n, shared, f in zip(tile, overlap, self.factors, strict=True):
            if n % f or shared % f or shared >= n:
                raise InputError(
                    f"tile {tile} and overlap {overlap} must be multiples of {self.factors}, overlap smaller"
                )
        self.use_tiling, self.tile, self.tile_overlap = True, tile, overlap

    def disable_tiling(self) -> None:
        """Encode and decode clips whole again."""
        self.use_tiling = False

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name these settings and weights."""
        return fingerprint(changed_settings(self), self.state_dict())

    def latents_fingerprint(self) -> str:
        """As `fingerprint`, of all but the decoder: what latents follow from, and so the key of their cache."""
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("decoder.")}
        settings = {name: value for name, value in changed_settings(self).items() if name not in _OF_THE_DECODER}
        return fingerprint(settings, weights)


_OF_THE_DECODER = frozenset({"pixel_channels", "pixel_blocks"})  # settings on which latents do not depend


def _per_channel(values: Tensor) -> Tensor:
    return values.float().view(1, -1, 1, 1, 1)


def _initialise(module: nn.Module) -> None:
    """Variance-preserving weights; residual branches work from the start."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, PixelBlock):
        module.begin_as_identity()


def _check(
    in_channels: int,
    latent_channels: int,
    channels: tuple[int, ...],
    patch: Stride,
    strides: tuple[Stride, ...],
    blocks: tuple[int, ...],
) -> None:
    for name, number in (("in_channels", in_channels), ("latent_channels", latent_channels)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")
    if not channels or min(channels) < 1:
        raise InputError(f"channels must be one or more widths of at least 1, not {channels}")
    if len(strides) != len(channels) - 1:
        raise InputError(
            f"{len(channels)} levels of channels {channels} need {len(channels) - 1} strides, not {len(strides)}"
        )
    if len(blocks) != len(channels):
        raise InputError(f"blocks {blocks} must be one number, or one for each of the levels {channels}")
    if min(blocks) < 0:
        raise InputError(f"blocks must be at least 0, not {min(blocks)}")
    if any(len(stride) != 3 or min(stride) < 1 for stride in strides):
        raise InputError(f"each stride must be three whole numbers (t, h, w) of at least 1, not {strides}")
    if len(patch) != 3 or min(patch) < 1:
        raise InputError(f"patch must be three whole numbers (t, h, w) of at least 1, not {patch}")


def _check_layout(
    layout: str,
    resampling: str,
    channels: tuple[int, ...],
    patch: Stride,
    strides: tuple[Stride, ...],
) -> None:
    if layout not in ("vqvdm", "tats"):
        raise InputError(f'layout must be "vqvdm" or "tats", not {layout!r}')
    if resampling not in DOWN:
        raise InputError(f"resampling must be one of {', '.join(DOWN)}, not {resampling!r}")
    if layout == "tats" and (patch != (1, 1, 1) or resampling != "shortcut"):
        raise InputError(
            'layout "tats" resamples in its own way, without a patch: leave resampling, set patch [1, 1, 1]'
        )
    fixed = layout == "tats" or resampling == "strided"  # their kernel of 4 is made for strides of 1, 2 and 4
    for fine, coarse, stride in zip(channels, channels[1:], strides, strict=False):
        if fixed and max(stride) > 4:
            raise InputError(f"strided convolutions have kernels of 4, too small for stride {stride}")
        if not fixed and resampling == "shortcut" and (fine * math.prod(stride)) % coarse:
            raise InputError(
                f"channels {coarse} must divide the {fine} x {math.prod(stride)} channels folded by stride {stride}"
            )


def _check_pixels(layout: str, channels: int, blocks: int) -> None:
    if channels < 0 or blocks < 0:
        raise InputError(f"pixel_channels and pixel_blocks must be at least 0, not {channels} and {blocks}")
    if blocks and not channels:
        raise InputError(f"pixel_blocks {blocks} need a width: set pixel_channels, such as 8")
    if layout == "tats" and channels:
        raise InputError('layout "tats" has no layers of single pixels: leave pixel_channels and pixel_blocks')


VideoTokenizer.__module__ = "vqvdm"  # what saved pipelines record: the door, so that files may move behind it
