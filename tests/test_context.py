"""Given latents: shown where they are known, drawn in training as often as asked, heeded by the denoiser."""

from __future__ import annotations

import pytest
import torch

from vqvdm.context import context_of, drawn_context
from vqvdm.denoiser import VideoDenoiser


def test_known_latents_are_shown_and_no_others() -> None:
    latents = torch.randn(2, 3, 4, 5, 6)
    known = torch.tensor([[True, True, False, False], [False, False, False, False]])
    context = context_of(latents, known)
    assert context.shape == (2, 5, 4, 5, 6)
    assert torch.equal(context[0, :3, :2], latents[0, :, :2])
    assert context[0, :3, 2:].abs().max() == 0 and context[1].abs().max() == 0
    assert torch.equal(context[0, 3], torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None, None].expand(4, 5, 6))
    assert context[:, 4].abs().max() == 0


def test_stills_stand_at_the_ends_with_a_mask_of_their_own() -> None:
    latents, stills = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 2, 3, 5, 6)
    context = context_of(
        latents, torch.zeros(2, 4, dtype=torch.bool), stills, torch.tensor([[True, False], [True, True]])
    )
    assert torch.equal(context[:, :3, 0], stills[:, 0])
    assert torch.equal(context[1, :3, 3], stills[1, 1]) and context[0, :, 3].abs().max() == 0
    assert context[:, :, 1:3].abs().max() == 0
    assert context[:, 4, [0, 3], 0, 0].tolist() == [[1, 0], [1, 1]] and context[:, 3].abs().max() == 0


def test_what_a_training_draws() -> None:
    n = 4000
    latents, stills = torch.ones(n, 1, 4, 1, 1), torch.full((n, 2, 1, 1, 1), 2.0)
    chance = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    drawn = drawn_context(latents, stills, 0.4, chance)[..., 0, 0]  # (n, 3, t)
    shown, known, still = drawn.unbind(1)
    given = shown.abs().amax(1) > 0
    assert given.float().mean() == pytest.approx(0.4, abs=0.02)
    kinds = {
        "1": [1, 0, 0, 0], "2": [1, 1, 0, 0], "3": [1, 1, 1, 0], "ends": [1, 0, 0, 1], "still": [2, 0, 0, 0],
        "stills": [2, 0, 0, 2],
    }  # fmt: skip
    counts = {name: int((shown[given] == torch.tensor(kind)).all(1).sum()) for name, kind in kinds.items()}
    assert sum(counts.values()) == given.sum()
    shares = {name: count / int(given.sum()) for name, count in counts.items()}
    expected = {"1": 1 / 6, "2": 1 / 6, "3": 1 / 6, "ends": 0.15, "still": 0.2, "stills": 0.15}
    assert shares == pytest.approx(expected, abs=0.03)
    assert torch.equal(known, (shown == 1).float()) and torch.equal(still, (shown == 2).float())


def test_without_stills_and_with_two_places_there_are_beginnings_alone() -> None:
    chance = torch.rand(200, 3)
    shown, known, still = drawn_context(torch.ones(200, 1, 2, 1, 1), None, 1.0, chance)[..., 0, 0].unbind(1)
    assert torch.equal(shown, torch.tensor([1.0, 0.0]).expand(200, 2))
    assert torch.equal(known, shown) and still.abs().max() == 0


@torch.no_grad()
def test_the_denoiser_heeds_it_and_takes_none_for_nothing_given() -> None:
    torch.manual_seed(0)
    model = VideoDenoiser(
        3, (8, 16), blocks=1, head_dim=8, num_classes=2, patch=(1, 2, 2), self_condition=True, context=True
    ).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    noisy, labels, fps = torch.randn(2, 3, 4, 8, 8), torch.tensor([0, 1]), torch.full((2,), 8.0)
    nothing = torch.zeros(2, 5, 4, 8, 8)
    plain = model(noisy, 500.0, labels, fps)
    torch.testing.assert_close(model(noisy, 500.0, labels, fps, context=nothing), plain)
    given = context_of(torch.randn(2, 3, 4, 8, 8), torch.tensor([[True, False, False, False]] * 2))
    assert (model(noisy, 500.0, labels, fps, context=given) - plain).abs().max() > 1e-3
