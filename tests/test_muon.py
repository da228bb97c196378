"""Muon against singular value decompositions and a plain second implementation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vqvdm.recipe import TrainingRecipe
from vqvdm.train.muon import Muon, orthogonalized
from vqvdm.train.optimization import make_optimizers


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8), (1, 16, 16)])
def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1.0, 1e3][: shape[0]])[:, None, None]
    result = orthogonalized(matrices)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    within = u.mT @ result @ vh.mT  # diagonal, if the singular vectors are the same
    diagonal = within.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(within, torch.diag_embed(diagonal), atol=2e-3, rtol=0)
    # The odd polynomial, five times, on each singular value by itself.
    expected = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(diagonal, expected, atol=2e-3, rtol=0)
    large = values > 0.02 * values.norm(dim=1, keepdim=True)
    assert large.sum() >= 0.8 * large.numel()
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all()


def test_zero_gradients_give_zero_steps() -> None:
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_matches_torchs_muon_on_matrices() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.ParameterList([nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(9, 4))]) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    mine = Muon(ours.parameters(), lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    before = copy.deepcopy(ours)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        # torch iterates in bf16, which errs by a percent or two of a step
        assert (a - b).norm() < 0.05 * (a - start).norm()


def test_a_convolution_counts_as_its_matrix_whatever_its_layout() -> None:
    torch.manual_seed(0)
    matrix, grad = nn.Parameter(torch.randn(4, 3 * 2 * 3 * 3)), torch.randn(4, 3 * 2 * 3 * 3)
    layer = nn.Parameter(matrix.detach().view(4, 3, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d))
    matrix.grad, layer.grad = grad, grad.view(4, 3, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    Muon([matrix], lr=0.1).step()
    Muon([layer], lr=0.1).step()
    torch.testing.assert_close(layer.detach().reshape(4, -1), matrix.detach())
    assert layer.is_contiguous(memory_format=torch.channels_last_3d)


def test_step_has_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 96))
    weight.grad = torch.randn(64, 96)
    Muon([weight], lr=0.01).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.15)


def test_inner_weights_go_to_muon_and_all_else_to_adamw() -> None:
    model = nn.Module()
    model.body, model.head = nn.Sequential(nn.Conv3d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4)), nn.Linear(4, 2)
    model.up = nn.ConvTranspose3d(4, 4, 2)
    model.embed = nn.Embedding(3, 4)
    optimizers = make_optimizers(model, TrainingRecipe(optimizer="muon", learning_rate=0.1))
    owner = {id(p): name for name, o in optimizers.items() for group in o.param_groups for p in group["params"]}
    assert {name for name, parameter in model.named_parameters() if owner[id(parameter)] == "muon"} == {
        "body.0.weight",
        "body.2.weight",
        "up.weight",
    }
    assert len(owner) == len(list(model.parameters()))
    assert list(make_optimizers(model, TrainingRecipe())) == ["optimizer"]
