"""The arithmetic of updates against torch's own."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel

from vqvdm.processor import fast_bf16
from vqvdm.recipe import TrainingRecipe
from vqvdm.train.optimization import (
    autocast,
    averaged_copy,
    channels_last,
    clip_gradients,
    learning_rate,
    make_adamw,
    update_average,
    usable_copy,
)


def test_learning_rate_is_that_of_torchs_schedulers() -> None:
    training = TrainingRecipe(steps=30, warmup=10, learning_rate=0.5, final_learning_rate=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=9)
    cosine = CosineAnnealingLR(optimizer, T_max=20, eta_min=0.05)
    with warnings.catch_warnings():  # torch's SequentialLR calls its parts in a way torch itself deprecates
        warnings.simplefilter("ignore")
        scheduler = SequentialLR(optimizer, [warmup, cosine], milestones=[10])
        for step in range(30):
            assert learning_rate(training, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
            optimizer.step()
            scheduler.step()


def test_learning_rate_without_warmup_or_beyond_the_end() -> None:
    training = TrainingRecipe(steps=10, warmup=0, learning_rate=1.0)
    assert learning_rate(training, 0) == 1.0
    assert learning_rate(training, 5) == pytest.approx(0.5)
    assert learning_rate(training, 99) == 0.0
    assert learning_rate(TrainingRecipe(steps=5, warmup=5, learning_rate=1.0), 5) == 1.0


def test_average_is_that_of_torchs_averaged_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = averaged_copy(model)

    def warm(averages: list[torch.Tensor], weights: list[torch.Tensor], number: torch.Tensor) -> None:
        decay = min(0.6, (1 + int(number)) / (10 + int(number)))
        for kept, weight in zip(averages, weights, strict=True):
            kept.copy_(decay * kept + (1 - decay) * weight)

    reference = AveragedModel(model, multi_avg_fn=warm)
    reference.n_averaged.fill_(1)  # at 0 it copies, whatever the function says
    for step in range(1, 20):
        model(torch.randn(5, 3)).sum()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_average(average, model, 0.6, step)
        reference.update_parameters(model)
    theirs = dict(reference.module.state_dict())
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, theirs[name])
    assert torch.equal(average[1].running_mean, model[1].running_mean)
    assert not average.training


def test_only_matrices_decay() -> None:
    model = nn.Linear(3, 3)
    before = copy.deepcopy(model)
    optimizer = make_adamw(model.parameters(), 0.1, (0.9, 0.99), weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before.weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before.bias)


@pytest.mark.parametrize(("largest", "after"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_clipping_returns_the_norm_before(largest: float, after: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert clip_gradients(parameters, largest) == pytest.approx(5.0)
    norm = sum(float(parameter.grad.square()) for parameter in parameters) ** 0.5
    assert norm == pytest.approx(after, rel=1e-5)


def test_channels_last_changes_the_layout_alone() -> None:
    model = nn.Sequential(nn.Conv3d(4, 4, 2), nn.Linear(1, 1))
    before = copy.deepcopy(model.state_dict())
    assert channels_last(model, torch.device("cpu"))[0].weight.is_contiguous()
    assert channels_last(model, torch.device("cuda"))[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not model[0].weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert usable_copy(model)[0].weight.is_contiguous()
    assert not model[0].weight.is_contiguous()


def test_bf16_only_where_asked_for_and_fast() -> None:
    cpu = torch.device("cpu")
    layer = nn.Linear(2, 2)
    with autocast(cpu, "float32"):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32
    with autocast(cpu, "bf16"):
        assert layer(torch.zeros(1, 2)).dtype == (torch.bfloat16 if fast_bf16(cpu) else torch.float32)
