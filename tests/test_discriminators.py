"""Discriminators and their losses against the formulas written out in numpy and against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqvdm.discriminators import (
    LeCam,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    one_frame,
    r1_penalty,
    ramp_factor,
)
from vqvdm.errors import InputError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize(
    ("shape", "layers"), [((3, 16, 32, 32), 3), ((3, 9, 40, 24), 3), ((3, 8, 8, 8), 3), ((1, 4, 16, 16), 2)]
)
def test_shapes_of_logits_and_features(shape: tuple[int, int, int, int], layers: int, norm: str) -> None:
    video = PatchDiscriminator(3, in_channels=shape[0], channels=16, layers=layers, norm=norm)  # type: ignore[arg-type]
    image = PatchDiscriminator(2, in_channels=shape[0], channels=16, layers=layers, norm=norm)  # type: ignore[arg-type]
    clip = noise(2, *shape)
    for net, x in ((video, clip), (image, clip[:, :, 0])):
        out = net(x)
        assert out.logits.shape == (2, 1, *(side // 2**layers for side in x.shape[2:]))
        assert len(out.features) == layers + 1
        assert [f.shape[1] for f in out.features] == [16 * 2**i for i in range(layers + 1)]
        out.logits.sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_full_size_shapes() -> None:
    with torch.device("meta"):
        out = PatchDiscriminator(3)(torch.empty(2, 3, 16, 128, 128))
    assert out.logits.shape == (2, 1, 2, 16, 16)
    assert [f.shape[1] for f in out.features] == [64, 128, 256, 512]


def test_every_logit_sees_its_own_patch_only() -> None:
    """Without normalisation nothing far away has influence: 5 of the two last layers, then n -> 2n + 2 twice, is 26."""
    net = PatchDiscriminator(2, channels=8, layers=2, norm="none")
    x = noise(1, 3, 64, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).logits[0, 0, 8, 8], x)
    rows = torch.nonzero(gradient.abs().sum(dim=(0, 1, 3))).flatten()
    assert len(rows) == rows[-1] - rows[0] + 1 == 26


def test_samples_are_judged_independently() -> None:
    """No batch statistics: one forward on real and generated samples together equals two."""
    net = PatchDiscriminator(3, channels=16, layers=2).train()
    real, fake = noise(2, 3, 8, 16, 16), noise(2, 3, 8, 16, 16, seed=1) * 3
    together = net(torch.cat([real, fake])).logits
    torch.testing.assert_close(together, torch.cat([net(real).logits, net(fake).logits]), rtol=1e-4, atol=1e-5)


def test_channels_last_stays_and_changes_nothing() -> None:
    net = PatchDiscriminator(3, channels=16, layers=2)
    x = noise(2, 3, 8, 16, 16)
    out = net(x.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(out.logits, net(x).logits, rtol=1e-4, atol=1e-5)
    assert out.features[-1].is_contiguous(memory_format=torch.channels_last_3d)


def test_one_frame_takes_each_clips_own() -> None:
    clip = noise(3, 2, 5, 4, 4)
    index = torch.tensor([4, 0, 2])
    assert torch.equal(one_frame(clip, index), torch.stack([clip[b, :, int(t)] for b, t in enumerate(index)]))


def test_losses_are_their_formulas() -> None:
    real, fake = noise(4, 1, 3, 3).double() * 2, noise(4, 1, 3, 3, seed=1).double() * 2
    r, f = real.numpy(), fake.numpy()
    hinge = np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx(hinge, rel=1e-5)
    assert float(generator_loss(fake, "hinge")) == pytest.approx(-f.mean(), rel=1e-5)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    classic = -np.log(sigmoid(r)).mean() - np.log(1 - sigmoid(f)).mean()
    assert float(discriminator_loss(real, fake, "non_saturating")) == pytest.approx(classic, rel=1e-5)
    assert float(generator_loss(fake, "non_saturating")) == pytest.approx(-np.log(sigmoid(f)).mean(), rel=1e-5)


def test_losses_stay_finite_and_float32_in_low_precision() -> None:
    big = torch.tensor([300.0, -300.0], dtype=torch.bfloat16)
    for kind in ("hinge", "non_saturating"):
        for loss in (discriminator_loss(big, big, kind), generator_loss(big, kind)):
            assert torch.isfinite(loss)
            assert loss.dtype == torch.float32


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_a_discriminator_learns_to_tell_two_kinds_of_video(kind: str) -> None:
    """Still clips against moving ones of the same frames: only time tells them apart."""
    torch.manual_seed(0)
    net = PatchDiscriminator(3, channels=8, layers=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        moving = noise(8, 3, 4, 8, 8, seed=seed)
        return moving, moving[:, :, :1].expand_as(moving)

    for step in range(60):
        moving, still = batch(step)
        loss = discriminator_loss(net(moving).logits, net(still).logits, kind)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moving, still = batch(1000)
    right = torch.cat([net(moving).logits.mean(dim=(1, 2, 3, 4)) > 0, net(still).logits.mean(dim=(1, 2, 3, 4)) < 0])
    assert right.float().mean() >= 0.9


def test_feature_matching_is_a_mean_over_layers_and_teaches_the_generator_only() -> None:
    real = [noise(2, 4, 3, seed=s).requires_grad_() for s in (0, 1)]
    fake = [noise(2, 4, 3, seed=s).requires_grad_() for s in (2, 3)]
    loss = feature_matching_loss(real, fake)
    expected = np.mean([np.abs((r - f).detach().numpy()).mean() for r, f in zip(real, fake, strict=True)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(r.grad is None for r in real)
    assert all(f.grad is not None for f in fake)


def test_lecam_follows_its_moving_averages() -> None:
    """alpha starts at the first batch's mean, then alpha <- gamma alpha + (1 - gamma) mean; penalty as in eq. 3."""
    decay, lecam = 0.9, LeCam(decay=0.9)
    alpha_real = alpha_fake = None
    for step in range(5):
        real, fake = noise(3, 1, 2, 2, seed=step) + 1, noise(3, 1, 2, 2, seed=50 + step) - 1
        r, f = real.numpy().astype(np.float64), fake.numpy().astype(np.float64)
        alpha_real = r.mean() if alpha_real is None else decay * alpha_real + (1 - decay) * r.mean()
        alpha_fake = f.mean() if alpha_fake is None else decay * alpha_fake + (1 - decay) * f.mean()
        expected = ((r - alpha_fake) ** 2).mean() + ((f - alpha_real) ** 2).mean()
        assert float(lecam(real, fake)) == pytest.approx(expected, rel=1e-5)
    before = lecam.means.clone()
    lecam.eval()(real, fake)
    assert torch.equal(lecam.means, before)

    real.requires_grad_()
    (gradient,) = torch.autograd.grad(lecam(real, fake), real)
    torch.testing.assert_close(gradient, 2 * (real.detach() - before[1]) / real.numel())


def test_lecam_state_can_be_saved(tmp_path: Path) -> None:
    lecam, other = LeCam(), LeCam()
    lecam(torch.ones(4), -torch.ones(4))
    save_file(lecam.state_dict(), tmp_path / "lecam.safetensors")
    other.load_state_dict(load_file(tmp_path / "lecam.safetensors"))
    real, fake = noise(4), noise(4, seed=1)
    assert torch.equal(lecam(real, fake), other(real, fake))


def test_r1_of_a_linear_discriminator_is_half_its_squared_weights() -> None:
    """D(x) = w.x: gradient w for each sample, so R1 = |w|^2 / 2 and its gradient is w."""
    weights = noise(3, 4, 4).requires_grad_()
    real = noise(5, 3, 4, 4, seed=1).requires_grad_()
    logits = (real * weights).sum(dim=(1, 2, 3))[:, None]
    penalty = r1_penalty(logits, real)
    torch.testing.assert_close(penalty, 0.5 * weights.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weights)
    torch.testing.assert_close(gradient, weights.detach())


def test_r1_of_a_network_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(3, in_channels=1, channels=2, layers=1, norm="none").double()
    real = noise(2, 1, 2, 4, 4).double().requires_grad_()
    penalty = r1_penalty(net(real).logits, real)
    squares = 0.0
    with torch.no_grad():
        for b in range(2):
            for i in range(real[0].numel()):
                nudge = torch.zeros_like(real)
                nudge[b].view(-1)[i] = 1e-6
                slope = (net(real + nudge).logits[b].mean() - net(real - nudge).logits[b].mean()) / 2e-6
                squares += float(slope) ** 2
    assert penalty.item() == pytest.approx(0.5 * squares / 2, rel=1e-4)
    penalty.backward()
    assert net.blocks[0][0].weight.grad is not None


def test_ramp_factor() -> None:
    assert [ramp_factor(step, start=10, ramp=4) for step in (0, 9, 10, 11, 12, 14, 99)] == [0, 0, 0, 0.25, 0.5, 1, 1]
    assert [ramp_factor(step, start=10, ramp=0) for step in (9, 10, 11)] == [0, 1, 1]


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    """Losses a.w and b.w of a last layer w have the gradients a and b."""
    layer = nn.Conv3d(2, 3, 1)
    a, b = noise(3, 2, 1, 1, 1), noise(3, 2, 1, 1, 1, seed=1)
    reconstruction, adversarial = (a * layer.weight).sum(), (b * layer.weight).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    torch.testing.assert_close(weight, a.norm() / (b.norm() + 1e-6))
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()  # both graphs are still there
    assert float(adaptive_weight((a * layer.weight).sum(), 0 * layer.weight.sum(), layer.weight)) == 1e4


def _averages(rank: int, world: int) -> dict[str, Tensor]:
    lecam = LeCam(decay=0.7)
    for step in range(3):
        lecam(noise(4, 1, 2, seed=step).chunk(world)[rank], noise(4, 1, 2, seed=9 + step).chunk(world)[rank])
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 3, 1)
    out = layer(noise(4, 2, 2, 2, 2).chunk(world)[rank])
    weight = adaptive_weight(out.square().mean(), out.mean(), layer.weight)
    return {"means": lecam.means, "weight": weight}


def _average_as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    save_file(_averages(rank, world=2), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow  # importing torch in two fresh processes
def test_two_processes_average_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_average_as_rank, args=(str(tmp_path),), nprocs=2)
    alone = _averages(0, world=1)
    for rank in (0, 1):
        for name, value in load_file(tmp_path / f"{rank}.safetensors").items():
            torch.testing.assert_close(value, alone[name], msg=f"{name} of rank {rank}")


def test_impossible_settings_and_inputs_are_the_users_mistake() -> None:
    with pytest.raises(InputError, match="layers"):
        PatchDiscriminator(3, layers=0)
    with pytest.raises(InputError, match="norm"):
        PatchDiscriminator(2, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 8"):
        PatchDiscriminator(3, channels=2)(noise(1, 3, 4, 32, 32))
