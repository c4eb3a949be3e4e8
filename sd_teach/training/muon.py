"""Muon, an optimiser for matrices and convolutions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

What momentum has gathered, as a matrix, is mostly a few large directions. Muon steps along all of them by the same
length: it takes, roughly, the nearest matrix with orthonormal rows. The length is that of Adam's steps, so that
learning rates are Adam's (Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2). What it brought is in the
miniature's card.

torch.optim.Muon takes matrices only, one after the other, in bfloat16, for which many CPUs are not made.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # of the odd polynomial that draws singular values to about 1
ITERATIONS = 5


def orthonormal(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrices with orthonormal rows: [k, m, n], m <= n.

    Singular values become 0.68 to 1.2; those below a six-hundredth of the matrix's norm stay smaller.
    """
    a, b, c = NEWTON_SCHULZ
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # x (a + b g + c g²), with g = x xᵀ, again and again: all polynomials of the first g, so x can wait
    gram = matrices @ matrices.mT
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = polynomial = a * one + b * gram + c * gram @ gram
    for _ in range(ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = a * one + b * gram + c * gram @ gram
        product = polynomial @ product
    return product @ matrices


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more: [out, in] or [out, in, k, k], which is [out, in k k] here."""

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices of one shape, stacked: many small products are slow
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                gathered = state["momentum"]
                gathered.mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad.add(gathered, alpha=group["momentum"]).flatten(1)  # Nesterov's
                wide = direction if direction.shape[0] <= direction.shape[1] else direction.T
                alike[wide.shape].append((weight, wide))
            for (rows, columns), pairs in alike.items():
                steps = orthonormal(torch.stack([wide for _, wide in pairs]))
                for (weight, _), step in zip(pairs, steps, strict=True):
                    step = step if len(weight) == rows else step.T
                    weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                    weight.add_(step.reshape(weight.shape), alpha=-0.2 * columns**0.5 * group["lr"])
