"""The denoiser: attention against torch's own, conditions that matter, samples that do not see each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from vqvdm import VideoDenoiser
from vqvdm.attention import Attention, JointAttention, _attend, _laid_out, _rotate, turns_of, turns_of_places
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["convolutions", "transformer"])
def denoiser(request) -> VideoDenoiser:
    torch.manual_seed(0)
    kind = {"transformer": True, "qk_norm": True, "condition": 24} if request.param == "transformer" else {}
    model = VideoDenoiser(in_channels=3, channels=(16, 32), blocks=1, num_classes=5, head_dim=8, **kind).eval()
    with torch.no_grad():  # residual branches start at zero: wake them, or nothing below could fail
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(4, 3, 2, 4, 6, generator=generator)
    return noisy, torch.tensor([10.0, 300.0, 700.0, 999.0]), torch.tensor([0, 1, 4, 5]), torch.tensor([8.0, 8, 16, 24])


@torch.no_grad()
def test_shape_and_batch_order(denoiser, batch) -> None:
    out = denoiser(*batch)
    assert out.shape == batch[0].shape
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(denoiser(*(part[order] for part in batch)), out[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(denoiser(*(part[1:2] for part in batch)), out[1:2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_every_condition_changes_the_output(denoiser, batch) -> None:
    noisy, t, labels, fps = batch
    plain = denoiser(noisy, t, labels, fps)
    for other in (
        denoiser(noisy, t + 50, labels, fps),
        denoiser(noisy, t, (labels + 1) % 5, fps),
        denoiser(noisy, t, labels, 2 * fps),
    ):
        assert ((other - plain).flatten(1).norm(dim=1) > 1e-3 * plain.flatten(1).norm(dim=1)).all()


@torch.no_grad()
def test_no_labels_means_the_null_class(denoiser, batch) -> None:
    noisy, t, _, fps = batch
    torch.testing.assert_close(denoiser(noisy, t, None, fps), denoiser(noisy, t, torch.full((4,), 5), fps))


@torch.no_grad()
def test_an_unknown_frame_rate_adds_nothing(denoiser, batch) -> None:
    noisy, t, labels, _ = batch
    unknown = denoiser.embed_condition(t, labels, torch.zeros(4))
    without = denoiser.time_embed(get_timestep_embedding(t, 16, flip_sin_to_cos=True)) + denoiser.class_embed(labels)
    torch.testing.assert_close(unknown, without)
    assert denoiser(noisy, t, labels, torch.zeros(4)).isfinite().all()


@torch.no_grad()
def test_a_scalar_timestep_serves_the_batch(denoiser, batch) -> None:
    noisy, _, labels, fps = batch
    torch.testing.assert_close(
        denoiser(noisy, torch.tensor(300), labels, fps), denoiser(noisy, torch.full((4,), 300.0), labels, fps)
    )


@torch.no_grad()
def test_spatial_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, head_dim=8), nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(ours.out.weight)
    theirs.in_proj_weight.copy_(ours.qkv.weight)
    theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.weight.copy_(ours.out.weight)
    theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 16, 3, 4, 5)
    frames = ours.norm(x.permute(0, 2, 3, 4, 1)).reshape(6, 20, 16)  # (b t) (h w) c
    expected = theirs(frames, frames, frames)[0].view(2, 3, 4, 5, 16).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(ours(x) - x, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_temporal_attention_sees_time_alone_and_its_order() -> None:
    torch.manual_seed(0)
    attention = Attention(16, head_dim=8)
    nn.init.normal_(attention.out.weight)
    x, turns = torch.randn(1, 16, 4, 3, 3), turns_of(4, 8, CPU)
    plain = attention(x, turns)
    elsewhere = x.clone()
    elsewhere[..., 0, 0] = torch.randn(1, 16, 4)
    torch.testing.assert_close(attention(elsewhere, turns)[..., 1:, 1:], plain[..., 1:, 1:])
    swapped = x.clone()
    swapped[:, :, 1:3] = x[:, :, 1:3].flip(2)
    assert (attention(swapped, turns)[:, :, 0] - plain[:, :, 0]).abs().max() > 1e-4, "order of the frames must matter"


@torch.no_grad()
def test_temporal_attention_is_torchs_own_between_rotated_frames() -> None:
    """Rotation as multiplication of complex numbers, RoPE's own form (Su et al. 2021, eq. 13)."""
    torch.manual_seed(0)
    ours, theirs = Attention(16, head_dim=8), nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(ours.out.weight)
    theirs.in_proj_weight.copy_(torch.eye(16).repeat(3, 1))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 16, 6, 4, 5)
    q, k, v = ours.qkv(ours.norm(x.permute(0, 3, 4, 2, 1).reshape(40, 6, 16))).chunk(3, dim=-1)  # (b h w) t c

    def rotated(vectors: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(*vectors.view(40, 6, 2, 2, 4).unbind(3))  # (b h w) t n d/2
        speeds = torch.tensor([1.0, 100**-0.25, 100**-0.5, 100**-0.75])
        turned = pairs * torch.polar(torch.ones(6, 4), torch.arange(6.0)[:, None] * speeds)[:, None]
        return torch.stack([turned.real, turned.imag], dim=3).view(40, 6, 16)

    expected = theirs(rotated(q), rotated(k), v)[0].view(2, 4, 5, 6, 16).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(ours(x, turns_of(6, 8, CPU)) - x, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("side", [4, 12])  # from 128 places on, attention in space is products of matrices
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_in_bf16_is_that_in_single_precision(axis: str, side: int, trained: bool, qk_norm: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(32, head_dim=16, qk_norm=qk_norm), torch.randn(2, 32, 4, side, side)
    nn.init.normal_(attention.qkv.weight, std=0.5)
    nn.init.normal_(attention.out.weight, std=0.2)
    turns = turns_of(4, 16, CPU) if axis == "time" else None
    expected = attention(x, turns).detach()
    with torch.set_grad_enabled(trained):
        found = attention.bfloat16()(x.bfloat16(), turns).float()
    assert (expected - x).std() > 0.3
    assert (found - expected).abs().mean() < 0.02 * (expected - x).std()


def test_scores_of_hundreds_are_told_apart_in_bf16_training() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2, 64, 32).bfloat16() for _ in range(3))
    q, k = 8 * q, 8 * k  # scores of deviation 64, as they stood in a network trained for a day
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = _attend(q.requires_grad_(), k, v)
    assert (found - expected).abs().mean() < 0.001  # 0.006 with scores in bf16


def test_normalised_queries_and_keys_keep_scores_small() -> None:
    """A score is a product of unit vectors times the square root of the width and the two gains."""
    torch.manual_seed(0)
    attention, x = Attention(16, head_dim=8, qk_norm=True), torch.randn(2, 16, 3, 4, 5)
    nn.init.normal_(attention.qkv.weight)
    nn.init.normal_(attention.out.weight)
    frames = attention.norm(x.permute(0, 2, 3, 4, 1)).reshape(6, 20, 16)  # (b t) (h w) c
    q, k, v = (part.view(6, 20, 2, 8).transpose(1, 2) for part in attention.qkv(frames).chunk(3, dim=-1))
    q, k = (y - y.mean(-1, keepdim=True) for y in (q, k))
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
    weights = (q @ k.transpose(-1, -2) * 8**0.5).softmax(-1)
    expected = attention.out((weights @ v).transpose(1, 2).reshape(2, 3, 4, 5, 16)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(attention(x) - x, expected, atol=1e-3, rtol=1e-3)
    once = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 100  # those of queries and keys
        attention.qkv.bias[:32] *= 100
    torch.testing.assert_close(attention(x), once, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_gradients_of_attention_in_bf16_are_those_in_single_precision(axis: str, qk_norm: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(32, head_dim=16, qk_norm=qk_norm), torch.randn(2, 32, 4, 6, 6)
    nn.init.normal_(attention.qkv.weight, std=0.5)
    nn.init.normal_(attention.out.weight, std=0.2)
    turns, weights = turns_of(4, 16, CPU) if axis == "time" else None, torch.randn_like(x)
    gradients = []
    for low in (False, True):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            (attention(given, turns).float() * weights).sum().backward()
        assert given.grad is not None and attention.qkv.weight.grad is not None
        gradients.append((given.grad - weights, attention.qkv.weight.grad.clone()))
        attention.zero_grad()
    for exact, rounded in zip(*gradients, strict=True):
        assert exact.std() > 0.1
        assert (rounded - exact).abs().mean() < 0.03 * exact.std()


@torch.no_grad()
def test_short_sequences_are_in_single_precision_however_many_heads_there_are() -> None:
    heads, frames, side = 10, 16, 12
    along_time = torch.zeros(3, 1, 2, 2, heads, frames, 8, dtype=torch.bfloat16)
    within_frames = torch.zeros(3, 1, frames, heads, side, side, 8, dtype=torch.bfloat16)
    assert _laid_out(along_time, places=1).dtype == torch.float32
    assert _laid_out(within_frames, places=2).dtype == torch.bfloat16
    with torch.enable_grad():  # products, whose backward pass is the fast one
        assert _laid_out(along_time, places=1).dtype == torch.bfloat16


@torch.no_grad()
def test_temporal_attention_depends_on_distance_in_time_alone() -> None:
    """RoPE: a sequence among repeated, identical neighbours gives the same scores wherever it starts."""
    turned = [_rotate(torch.randn(8).expand(10, 8), turns_of(10, 8, CPU)) for _ in range(2)]
    scores = turned[0] @ turned[1].T
    for offset in (0, 1, 4):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joint_attention_is_torchs_own_among_rotated_places(dtype: torch.dtype) -> None:
    """Each pair of channels turns by the number of frame, row or column, as complex numbers multiply."""
    torch.manual_seed(0)
    heads, width, (t, h, w) = 2, 16, (3, 6, 8)  # 144 places: products of matrices in bf16
    ours, theirs = JointAttention(32, head_dim=16), nn.MultiheadAttention(32, 2, batch_first=True)
    nn.init.normal_(ours.out.weight, std=0.3)
    theirs.in_proj_weight.copy_(torch.eye(32).repeat(3, 1))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, t, h, w, 32)
    q, k, v = ours.qkv(x).view(2, t * h * w, 3, heads, width).unbind(2)
    frames, rows, columns = (n.flatten().float() for n in torch.meshgrid(*map(torch.arange, (t, h, w)), indexing="ij"))
    speeds = {2: torch.tensor([1.0, 0.1]), 3: torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)])}
    angles = torch.cat([n[:, None] * speeds[many] for n, many in ((frames, 2), (rows, 3), (columns, 3))], -1)

    def rotated(vectors: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(vectors[..., :8].contiguous(), vectors[..., 8:].contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([turned.real, turned.imag], -1).flatten(2)

    expected = theirs(rotated(q), rotated(k), v.flatten(2))[0].view(2, t, h, w, 32)
    found = ours.to(dtype)(x.to(dtype), turns_of_places((t, h, w), width, CPU)).float()
    assert (found - expected).abs().mean() < (1e-5 if dtype == torch.float32 else 0.03) * expected.std()


@pytest.mark.parametrize("width", [6, 8, 16, 32, 64])
def test_places_of_one_clip_all_turn_otherwise(width: int) -> None:
    turns = turns_of_places((3, 4, 5), width, CPU)
    assert turns.shape == (2, 60, width)
    vectors = _rotate(torch.ones(60, width), turns)
    assert torch.cdist(vectors, vectors).fill_diagonal_(9).min() > 0.05
    torch.testing.assert_close(vectors[0], torch.ones(width))  # the first place does not turn


def test_a_transformer_block_begins_as_nothing_and_sees_the_whole_clip() -> None:
    torch.manual_seed(0)
    model = VideoDenoiser(in_channels=3, channels=(16,), blocks=2, head_dim=8, transformer=True, condition=8)
    assert len(model.modulations(torch.tensor([5.0]), None, torch.tensor([8.0]))) == 7
    block, x, condition = model.middle[0], torch.randn(1, 16, 4, 6, 6, requires_grad=True), torch.randn(1, 8)
    turns = {8: turns_of_places((4, 6, 6), 8, CPU)}
    torch.testing.assert_close(block(x, condition, turns), x)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    block(x, condition, turns)[0, :, 0, 0, 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(1) > 1e-7).all(), "one place of the output depends on all places"


@torch.no_grad()
def test_an_exported_network_takes_clips_of_any_length(denoiser, batch) -> None:
    if torch.__version__ < "2.13" and not denoiser.config["transformer"]:
        pytest.skip("torch before 2.13 finds the lengths of convolutions fixed")
    frames = torch.export.Dim("frames", min=3, max=64)  # two are computed in another way on a CPU (`layers.Conv3d`)
    traced = torch.export.export(
        denoiser, (torch.randn(4, 3, 4, 4, 6), *batch[1:]), dynamic_shapes=({2: frames}, None, None, None), strict=False
    ).module()
    for length in (3, 7):
        noisy = torch.randn(4, 3, length, 4, 6)
        torch.testing.assert_close(traced(noisy, *batch[1:]), denoiser(noisy, *batch[1:]), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing(denoiser, batch) -> None:
    def gradient() -> torch.Tensor:
        denoiser.zero_grad()
        denoiser(*batch).square().mean().backward()
        assert denoiser.stem.weight.grad is not None
        return denoiser.stem.weight.grad.clone()

    denoiser.train()
    plain = gradient()
    denoiser.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)
    denoiser.disable_gradient_checkpointing()
    denoiser.eval()


def test_save_and_load_bit_for_bit(denoiser, batch, tmp_path) -> None:
    denoiser.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = VideoDenoiser.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(*batch), denoiser(*batch))


@pytest.mark.parametrize("transformer", [False, True])
def test_it_learns_one_batch_by_heart(transformer: bool) -> None:
    torch.manual_seed(0)
    model = VideoDenoiser(in_channels=2, channels=(16, 16), num_classes=2, head_dim=8, transformer=transformer)
    noisy, target = torch.randn(2, 2, 2, 4, 4), torch.randn(2, 2, 2, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = (model(noisy, 500, torch.tensor([0, 1]), torch.tensor([8.0, 8.0])) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.slow
def test_two_clips_by_heart_and_sampled_again() -> None:
    """Trained on one clip of each class, it samples that class's clip from noise that it never met."""
    torch.manual_seed(0)
    objective = Objective("flow", times="uniform")
    model = VideoDenoiser(in_channels=2, channels=(24, 24), blocks=1, num_classes=2, head_dim=8)
    clips, labels, fps = torch.randn(2, 2, 2, 4, 4), torch.tensor([0, 1]), torch.full((2,), 8.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        x0, y, rate = clips.repeat(8, 1, 1, 1, 1), labels.repeat(8), fps.repeat(8)
        loss = objective.loss(
            lambda noisy, t, y=y, rate=rate: model(noisy, t, y, rate), x0, torch.randn_like(x0), torch.rand(len(x0))
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scheduler = objective.make_scheduler("euler")
    scheduler.set_timesteps(20)
    x = torch.randn_like(clips)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, labels, fps), t, x, return_dict=False)[0]
    assert (x - clips).square().mean() < 0.01  # of clips with variance 1
    assert (x.flip(0) - clips).square().mean() > 1


def test_mismatched_settings_are_named() -> None:
    with pytest.raises(InputError, match="spatial_attention"):
        VideoDenoiser(channels=(16, 32), spatial_attention=(True,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": ()}, "channels must be"),
        ({"channels": (0,)}, "channels must be"),
        ({"channels": (7, 14), "head_dim": 7}, "even number"),
        ({"channels": (100,), "head_dim": 32}, "3 heads"),
        ({"head_dim": 0}, "head_dim must be"),
        ({"kernel": (2, 2, 2)}, "three odd numbers"),
        ({"blocks": 0}, "blocks must be"),
        ({"blocks": (1, 2, 3)}, "one for each of the levels"),
        ({"num_classes": -2}, "num_classes must be"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"condition": 0}, "condition must be"),
        ({"transformer": True, "kernel": (1, 3, 3)}, "kernel is for convolution blocks"),
        ({"transformer": True, "spatial_attention": (True, False)}, "spatial_attention is for convolution blocks"),
        ({"transformer": True, "head_dim": 4}, "take at least 6 of both"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        VideoDenoiser(**{"channels": (8, 16), "head_dim": 8, **settings})
