"""Stage 2's network: a latent U-Net of 3D residual blocks, spatial and temporal attention, or of transformer blocks.

Noise level, class and frame rate are embedded, added, and enter every block as scale and shift (Dhariwal and Nichol
2021, section 3). Only height and width are down-sampled. With `in_channels=3` and more levels the same network
works on pixels and is the VDM baseline (Ho et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvdm.attention import Attention, JointAttention, SelfAttention, Turns, turns_of, turns_of_places
from vqvdm.context import MASKS
from vqvdm.errors import InputError
from vqvdm.identity import Configured, changed_settings, fingerprint
from vqvdm.layers import Conv3d, Linear, Stride, fold, groups_of, unfold

_PLANNED = 4096  # steps times clips, at most, whose modulations are held at a time


class ResidualBlock(nn.Module):
    """Two 3D convolutions; the condition scales and shifts between them. The second one starts at zero."""

    def __init__(self, channels: int, out_channels: int, condition: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.norm1 = nn.GroupNorm(groups_of(channels), channels)
        self.conv1 = Conv3d(channels, out_channels, kernel, padding=padding)
        self.condition = nn.Linear(condition, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups_of(out_channels), out_channels)
        self.conv2 = Conv3d(out_channels, out_channels, kernel, padding=padding)
        self.skip = Conv3d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, made: bool = False) -> Tensor:
        """(b, c, t, h, w), (b, e) -> (b, c', t, h, w); if it is `made`, `condition` is its modulation (b, 2 c')."""
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = condition if made else self.modulation(condition)
        scale, shift = modulation[:, :, None, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.conv2(F.silu(h), plus=self.skip(x))

    def modulation(self, condition: Tensor) -> Tensor:
        """Scale and shift (b, 2 c') of a condition (b, e)."""
        return self.condition(F.silu(condition))


class Block(nn.Module):
    """3D residual block, spatial attention, temporal attention."""

    def __init__(
        self, channels: int, level: Level, condition: int, kernel: tuple[int, int, int], head_dim: int, qk_norm: bool
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels, level.channels, condition, kernel)
        self.space = Attention(level.channels, head_dim, qk_norm) if level.attention else nn.Identity()
        self.time = Attention(level.channels, head_dim, qk_norm)

    def forward(self, x: Tensor, condition: Tensor, turns: Turns, made: bool = False) -> Tensor:
        """(b, c, t, h, w), (b, e) -> (b, out, t, h, w); see `ResidualBlock`."""
        return self.time(self.space(self.residual(x, condition, made)), turns[self.time.head_width])

    def modulation(self, condition: Tensor) -> Tensor:
        """See `ResidualBlock`."""
        return self.residual.modulation(condition)


class TransformerBlock(nn.Module):
    """Attention among all places of the clip, then a gated layer at each place (SwiGLU, Shazeer 2020).

    The condition scales and shifts what either of them sees (Peebles and Xie 2023, "Scalable Diffusion Models with
    Transformers", section 3.2); both begin as nothing.
    """

    def __init__(self, channels: int, level: Level, condition: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        width = level.channels
        self.merge = Linear(channels, width) if channels != width else nn.Identity()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = JointAttention(width, head_dim, qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.wide = Linear(width, 4 * width)
        self.narrow = Linear(2 * width, width)
        self.condition = nn.Linear(condition, 4 * width)

    def forward(self, x: Tensor, condition: Tensor, turns: Turns, made: bool = False) -> Tensor:
        """(b, c, t, h, w), (b, e) -> (b, out, t, h, w); if it is `made`, `condition` is its modulation (b, 4 out)."""
        tokens = self.merge(x.permute(0, 2, 3, 4, 1).contiguous())  # (b, t, h, w, c)
        modulation = condition if made else self.modulation(condition)
        scale1, shift1, scale2, shift2 = modulation[:, None, None, None].chunk(4, dim=-1)
        seen = torch.addcmul(shift1, self.norm1(tokens), 1 + scale1)
        tokens = tokens + self.attention(seen, turns[self.attention.head_width])
        values, gates = self.wide(torch.addcmul(shift2, self.norm2(tokens), 1 + scale2)).chunk(2, dim=-1)
        tokens = tokens + self.narrow(values * F.silu(gates))
        return tokens.permute(0, 4, 1, 2, 3)

    def modulation(self, condition: Tensor) -> Tensor:
        """Scales and shifts (b, 4 out) of a condition (b, e)."""
        return self.condition(F.silu(condition))


class Level(NamedTuple):
    """Width of one resolution, whether its frames attend within themselves, and its blocks on the way down."""

    channels: int
    attention: bool
    blocks: int


class VideoDenoiser(ModelMixin, Configured, PeftAdapterMixin):
    """Predicts noise, velocity or clean latents from noisy ones (what, is the objective's business)."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["Block", "TransformerBlock"]  # noqa: RUF012  diffusers' own form
    _skip_layerwise_casting_patterns = ["norm", "embed"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        channels: tuple[int, ...] = (128, 256, 384),
        blocks: int | tuple[int, ...] = 2,
        num_classes: int = 0,
        head_dim: int = 64,
        kernel: tuple[int, int, int] = (3, 3, 3),
        patch: tuple[int, int, int] = (1, 1, 1),
        spatial_attention: tuple[bool, ...] | None = None,
        self_condition: bool = False,
        context: bool = False,
        qk_norm: bool = False,
        transformer: bool = False,
        condition: int | None = None,
    ) -> None:
        """Build an untrained denoiser; its output starts at zero.

        Args:
            in_channels: channels of the latents (3 for pixels).
            channels: width of each level, finest first; height and width halve between levels.
            blocks: blocks of each level on the way down, and one more on the way up; one number serves all levels.
            num_classes: 0 builds an unconditional model.
            head_dim: channels of an attention head.
            kernel: of the residual blocks' convolutions, (t, h, w), odd.
            patch: extent (t, h, w) folded into channels before the first convolution (Hoogeboom et al. 2023,
                section 3.3): (1, 2, 2) makes everything four times cheaper, and details coarser.
            spatial_attention: for each level, whether frames attend within themselves; None means all.
            self_condition: whether it takes an estimate of the clean latents beside the noisy ones (Chen et al. 2023).
            context: whether it takes given latents and their masks beside the noisy ones; see `context.py`.
            qk_norm: whether queries and keys are normalised in each head (Dehghani et al. 2023, "Scaling Vision
                Transformers to 22 Billion Parameters", section 2): without, their products grow as long as Muon
                trains, up to hundreds, where bfloat16 cannot tell them apart and a softmax learns nothing.
            transformer: blocks of attention among all places of a clip and gated layers in place of convolutions and
                attention by space and time: the U-Net with long skip connections of Bao et al. 2023 ("All are Worth
                Words"), at one resolution or several.
            condition: width of what noise level, class and rate are embedded in; None is four times the first level's.

        Raises:
            InputError: settings that contradict each other.
        """
        super().__init__()
        channels, kernel, patch = tuple(channels), tuple(kernel), tuple(patch)
        blocks = (blocks,) * len(channels) if isinstance(blocks, int) else tuple(blocks)
        _check(in_channels, channels, blocks, num_classes, head_dim, kernel, patch)
        if transformer:
            _check_transformer(channels, head_dim, kernel, spatial_attention)
        if condition is not None and condition < 1:
            raise InputError(f"denoiser: condition must be at least 1, not {condition}")
        attention = (True,) * len(channels) if spatial_attention is None else tuple(spatial_attention)
        if len(attention) != len(channels):
            raise InputError(f"spatial_attention {attention} must have one entry for each of the levels {channels}")
        levels = [Level(*level) for level in zip(channels, attention, blocks, strict=True)]
        width, condition = channels[0], condition or 4 * channels[0]
        self.time_embed = TimestepEmbedding(width, condition)
        self.fps_embed = TimestepEmbedding(width, condition)
        self.class_embed = (
            nn.Embedding(num_classes + 1, condition) if num_classes else None
        )  # the last one is "no class"

        def block(fan_in: int, level: Level) -> Block | TransformerBlock:
            if transformer:
                return TransformerBlock(fan_in, level, condition, head_dim, qk_norm)
            return Block(fan_in, level, condition, kernel, head_dim, qk_norm)

        self.patch: Stride = patch
        halvings = 2 ** (len(channels) - 1)
        self.factors: Stride = (patch[0], patch[1] * halvings, patch[2] * halvings)
        beside = self_condition * in_channels + context * (in_channels + MASKS)
        self.stem = Conv3d((in_channels + beside) * math.prod(patch), width, 3, padding=1)
        self.down, self.downsample, skips = _downward(levels, block)
        self.middle = nn.ModuleList([block(channels[-1], Level(channels[-1], True, 1)) for _ in range(2)])
        self.up, self.upsample = _upward(levels, skips, block)
        self.norm = nn.GroupNorm(groups_of(width), width)
        self.head = Conv3d(width, in_channels * math.prod(patch), 3, padding=1)
        self.gradient_checkpointing = False
        self._head_widths = {module.head_width for module in self.modules() if isinstance(module, SelfAttention)}
        self.apply(_initialise)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        noisy_latents: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None,
        fps: Tensor,
        modulations: Sequence[Tensor] | None = None,
        estimate: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            noisy_latents: (b, c, t, h, w); (t, h, w) divisible by `factors`.
            timestep: (b,) or a scalar, 0 (clean) to 1000 (noise), whole or not.
            class_labels: int64 (b,), 0..num_classes; num_classes, or None for all, means no class.
            fps: float (b,) frames per second of the clip; 0 where it is unknown.
            modulations: what `modulations` made of the last three, so that it need not be made again.
            estimate: with `self_condition` the clean latents (b, c, t, h, w) as far as they are guessed; None is zeros.
            context: with `context` the given latents (b, c + 2, t, h, w) of `context.context_of`; None: none are given.

        Returns:
            (b, c, t, h, w) in the dtype of the latents.
        """
        b = noisy_latents.shape[0]
        made = modulations is not None
        if modulations is None:
            timestep = torch.as_tensor(timestep, device=noisy_latents.device).expand(b)
            conditions: Iterator[Tensor] = repeat(self.embed_condition(timestep, class_labels, fps))
        else:
            conditions = iter(modulations)
        seen = [noisy_latents]
        if self.config["self_condition"]:
            seen.append(torch.zeros_like(noisy_latents) if estimate is None else estimate)
        if self.config["context"]:
            c, *extent = noisy_latents.shape[1:]
            seen.append(noisy_latents.new_zeros(b, c + MASKS, *extent) if context is None else context)
        x = self.stem(fold(torch.cat(seen, dim=1), self.patch))
        turns: list[Turns] = []  # of each level

        def run(block: nn.Module, x: Tensor, level: int) -> Tensor:
            condition = next(conditions)
            if self.gradient_checkpointing and self.training:
                return checkpoint(block, x, condition, turns[level], made, use_reentrant=False)
            return block(x, condition, turns[level], made)

        skips = [x]
        for level, stage in enumerate(self.down):
            turns.append(self._turns(x) if self.config["transformer"] or level == 0 else turns[0])
            for block in stage.children():
                x = run(block, x, level)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
                skips.append(x)
        for block in self.middle:
            x = run(block, x, -1)
        for level, stage in enumerate(self.up):
            for block in stage.children():
                x = run(block, torch.cat([x, skips.pop()], dim=1), -1 - level)
            if level < len(self.upsample):
                x = self.upsample[level](F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
        return unfold(self.head(F.silu(self.norm(x))), self.patch)

    def _turns(self, x: Tensor) -> Turns:
        """RoPE's angles for blocks that see x (b, c, t, h, w)."""
        t, h, w = x.shape[2:]
        if self.config["transformer"]:
            return {width: turns_of_places((t, h, w), width, x.device) for width in self._head_widths}
        return {width: turns_of(t, width, x.device) for width in self._head_widths}

    def embed_condition(self, timestep: Tensor, class_labels: Tensor | None, fps: Tensor) -> Tensor:
        """The vectors (b, e) that condition every block: noise level, class and frame rate together."""
        width, dtype = self.config["channels"][0], self.dtype
        embedded = self.time_embed(get_timestep_embedding(timestep, width, flip_sin_to_cos=True).to(dtype))
        # Equal ratios of frame rates are equal distances: 100 of the sinusoid's units for a doubling.
        octaves = 100.0 * torch.log2(fps.float().clamp(min=1e-3))
        rate = self.fps_embed(get_timestep_embedding(octaves, width, flip_sin_to_cos=True).to(dtype))
        embedded = embedded + rate * (fps > 0).to(dtype)[:, None]
        if self.class_embed is not None:
            if class_labels is None:
                class_labels = torch.full_like(timestep, self.config["num_classes"], dtype=torch.int64)
            embedded = embedded + self.class_embed(class_labels)
        return embedded

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name these settings and weights."""
        return fingerprint(changed_settings(self), self.state_dict())

    @apply_forward_hook
    def modulations(self, timestep: Tensor, class_labels: Tensor | None, fps: Tensor) -> list[Tensor]:
        """Scales and shifts (b, 2 c, or 4 c of a transformer) of each block, in the order of use, from (b,) each."""
        condition = self.embed_condition(timestep, class_labels, fps)
        stages = (*self.down, self.middle, *self.up)
        blocks = (cast(Block | TransformerBlock, block) for stage in stages for block in stage.children())
        return [block.modulation(condition) for block in blocks]


class StepModulations:
    """The modulations of all steps of a sampling, made together at the first of them."""

    def __init__(self, denoiser: VideoDenoiser, timesteps: Tensor) -> None:
        """`timesteps` (s,) are those to come; of others the modulations are made one by one."""
        self._denoiser, self._timesteps = denoiser, timesteps
        self._number = {timestep: number for number, timestep in enumerate(timesteps.tolist())}
        self._made: dict[tuple[int, int], list[Tensor]] = {}  # (s, b, 2 c or 4 c) each, by b and part of the steps

    def at(self, timestep: Tensor, class_labels: Tensor | None, fps: Tensor) -> list[Tensor] | None:
        """Those of one step; None if they are to be made where they are used.

        A sampling asks with one set of labels and rates for each size of batch: with guidance or without.
        """
        b = len(fps)
        number = self._number.get(float(timestep)) if timestep.numel() == 1 else None
        if number is None:
            return None
        together = max(_PLANNED // b, 1)
        part, place = divmod(number, together)
        if (b, part) not in self._made:
            levels = self._timesteps.split(together)[part].to(fps.device)
            steps = len(levels)
            labels = None if class_labels is None else class_labels.repeat(steps)
            made = self._denoiser.modulations(levels.repeat_interleave(b), labels, fps.repeat(steps))
            self._made = {key: kept for key, kept in self._made.items() if key[0] != b}  # those of earlier steps
            self._made[b, part] = [modulation.unflatten(0, (steps, b)) for modulation in made]
        return [modulation[place] for modulation in self._made[b, part]]


def _check(
    in_channels: int,
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    num_classes: int,
    head_dim: int,
    kernel: tuple[int, ...],
    patch: tuple[int, ...],
) -> None:
    if not channels or min(channels) < 1:
        raise InputError(f"denoiser: channels must be one or more widths of at least 1, not {channels}")
    if len(blocks) != len(channels):
        raise InputError(f"denoiser: blocks {blocks} must be one number, or one for each of the levels {channels}")
    for name, value, least in (
        ("in_channels", in_channels, 1),
        ("blocks", min(blocks), 1),
        ("num_classes", num_classes, 0),
    ):
        if value < least:
            raise InputError(f"denoiser: {name} must be at least {least}, not {value}")
    if head_dim < 1:
        raise InputError(f"denoiser: head_dim must be at least 1, not {head_dim}")
    for width in channels:
        heads = max(width // head_dim, 1)
        if width % (2 * heads):
            raise InputError(
                f"denoiser: {width} of channels {channels} cannot be divided into {heads} heads of an even number of "
                f"channels (head_dim {head_dim}); take multiples of an even head_dim"
            )
    if len(kernel) != 3 or any(extent < 1 or extent % 2 == 0 for extent in kernel):
        raise InputError(f"denoiser: kernel must be three odd numbers (t, h, w), not {kernel}")
    if len(patch) != 3 or min(patch) < 1:
        raise InputError(f"denoiser: patch must be three whole numbers (t, h, w) of at least 1, not {patch}")


def _check_transformer(
    channels: tuple[int, ...], head_dim: int, kernel: tuple[int, ...], spatial_attention: tuple[bool, ...] | None
) -> None:
    if kernel != (3, 3, 3) or spatial_attention is not None:
        name = "kernel" if spatial_attention is None else "spatial_attention"
        raise InputError(f"denoiser: {name} is for convolution blocks; with transformer leave it out")
    for width in channels:
        head = width // max(width // head_dim, 1)
        if head < 6:
            raise InputError(
                f"denoiser: heads of {head} channels (channels {channels}, head_dim {head_dim}) are too narrow for a "
                "transformer, in which frame, row and column take two channels each; take at least 6 of both"
            )


def _downward(levels: Sequence[Level], block) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
    """Blocks and down-samplings from fine to coarse, and the width of every skip connection."""
    down, downsample, skips, width = nn.ModuleList(), nn.ModuleList(), [levels[0].channels], levels[0].channels
    for number, level in enumerate(levels):
        down.append(nn.ModuleList([block(width if i == 0 else level.channels, level) for i in range(level.blocks)]))
        skips += [level.channels] * level.blocks
        width = level.channels
        if number < len(levels) - 1:
            downsample.append(Conv3d(width, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
            skips.append(width)
    return down, downsample, skips


def _upward(levels: Sequence[Level], skips: list[int], block) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Blocks and up-samplings from coarse to fine; takes the skips back in reverse."""
    up, upsample, width = nn.ModuleList(), nn.ModuleList(), levels[-1].channels
    skips = list(skips)
    for number, level in reversed(list(enumerate(levels))):
        stage = nn.ModuleList()
        for _ in range(level.blocks + 1):
            stage.append(block(width + skips.pop(), level))
            width = level.channels
        up.append(stage)
        if number > 0:
            upsample.append(Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1)))
    return up, upsample


def _initialise(module: nn.Module) -> None:
    """Residual branches begin as the identity."""
    if isinstance(module, ResidualBlock):
        _zero(module.conv2)
    elif isinstance(module, SelfAttention):
        _zero(module.out)
    elif isinstance(module, TransformerBlock):
        _zero(module.narrow)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def _zero(layer: nn.Conv3d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


VideoDenoiser.__module__ = "vqvdm"  # what saved pipelines record: the door, so that files may move behind it
