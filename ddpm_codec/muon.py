"""Muon: momentum, orthogonalised (Jordan et al. 2024; `torch.optim.Muon` of later versions)."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For convolutions (A,B,h,w), each as the matrix W (A, B h w) of what it does at a pixel:

        m <- mu m + (1 - mu) g,   W <- W - lr sqrt(max(1, A / (B h w))) O((1 - mu) g + mu m)

    where O(G) is near U V^T for G = U S V^T: every direction is followed equally far. `momentum`
    is mu; `dtype` that of O's iterations. Nothing is decayed.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, those of equal shape at once."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.flatten(1).shape, []).append(weight)
            for (rows, columns), weights in alike.items():
                updates = torch.stack([self._follow(w, group["momentum"]) for w in weights])
                updates = orthogonal(updates.to(self.dtype))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.sub_(update.reshape(weight.shape).to(weight.dtype), alpha=rate)

    def _follow(self, weight: Tensor, momentum: float) -> Tensor:
        """The gradient (A,B h w) as the momentum, which takes it in, sees it."""
        state, gradient = self.state[weight], cast(Tensor, weight.grad)
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum).flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """U W V^T for each matrix U S V^T of (N,A,B), with the entries of W between about 0.7 and 1.2:
    five iterations of Newton and Schulz's kind in its precision."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
