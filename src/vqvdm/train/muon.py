"""Muon: momentum whose steps have all singular values near one (Jordan 2024, https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from vqvdm.train.sharding import part_of, whole

# The quintic a*x + b*x^3 + c*x^5 of Jordan 2024: steep at 0, and five rounds of it end within about 0.7..1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(Optimizer):
    """Muon for weights of two or more axes.

    A convolution's counts as the matrix (out, in * taps), a transposed one's as (in, out * taps).

    torch.optim.Muon takes matrices alone and iterates on them in bf16, which many processors only emulate. Here the
    iteration runs in float32 on the small square gram matrices, of which those of equal size go together; each large
    matrix enters two products instead of fifteen.

    A step has the root mean square of AdamW's, 0.2 times the learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4),
    so both work at the same learning rate.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        """Make the optimiser.

        Args:
            parameters: weights of at least two axes.
            lr: learning rate, as AdamW's.
            momentum: decay of the averaged gradient; the step looks ahead by it (Nesterov).
            weight_decay: decoupled, as AdamW's.
        """
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no step here evaluates the loss again
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    direction = _matrix(self._momentum(weight, weight.grad, group["momentum"]))
                    alike[direction.shape].append((_matrix(weight), direction))
            for shape, pairs in alike.items():
                matrices, directions = zip(*pairs, strict=True)
                steps = orthogonalized(torch.stack([whole(direction) for direction in directions]))
                length = 0.2 * group["lr"] * max(shape) ** 0.5
                for matrix, update in zip(matrices, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(part_of(update, matrix), alpha=length)

    def _momentum(self, weight: Tensor, gradient: Tensor, decay: float) -> Tensor:
        assert weight.ndim >= 2, f"Muon is for matrices and convolutions, not for {tuple(weight.shape)}"
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - decay)
        return torch.lerp(gradient, state["momentum"], decay, out=torch.empty_like(weight))  # laid out as the weight


def _matrix(weight: Tensor) -> Tensor:
    """A view (out, the rest) of a weight; columns in the order of memory, which the step does not depend on."""
    channels_last = weight.ndim > 2 and not weight.is_contiguous()
    return (weight.movedim(1, -1) if channels_last else weight).view(len(weight), -1)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and singular values of about 1, in float32.

    Newton and Schulz's iteration on the gram matrix: X <- P X with P = a + b A + c A^2 and A = X X^T commutes with it,
    so that A <- P A P and the product of all P is applied to the matrices once, at the end.
    """
    x = matrices.float()
    if x.shape[1] > x.shape[2]:
        return orthogonalized(x.mT).mT
    norm = x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT / norm**2
    factor = product = _polynomial(gram)
    for _ in range(_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    return product / norm @ x


def _polynomial(gram: Tensor) -> Tensor:
    """a + b A + c A^2 of square matrices A (n, m, m)."""
    a, b, c = _COEFFICIENTS
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
