"""Muon: momentum, orthogonalised (Jordan et al. 2024; `torch.optim.Muon` of later versions)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For convolutions (A,B,h,w), each as the matrix W (A, B h w) of what it does at a pixel:

        m <- mu m + (1 - mu) g,   W <- W - lr sqrt(max(1, A / (B h w))) O((1 - mu) g + mu m)

    where O(G) is near U V^T for G = U S V^T: every direction is followed equally far. `momentum`
    is mu. Nothing is decayed.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["momentum"])

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum).flatten(1)
        rate *= max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        weight.sub_(orthogonal(update).reshape(weight.shape).to(weight.dtype), alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """U W V^T for a matrix (A,B) of U S V^T, with the entries of W between about 0.7 and 1.2:
    five iterations of Newton and Schulz's kind in bfloat16."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
