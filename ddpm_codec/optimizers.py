"""The optimizer of a run: Adam, or Muon for the convolutions inside and Adam for the rest."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ddpm_codec.muon import Muon

OptimizerName = Literal["adam", "muon"]

_STATE = {torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"), Muon: ("momentum",)}


class Optimizer:
    """One object to step, to save and to restore, whatever it is made of.

    With `muon`, every convolution but the stem and the head is Muon's, at `muon_rate`, its
    iterations in bfloat16 if so.
    """

    def __init__(
        self,
        network: nn.Module,
        name: OptimizerName,
        learning_rate: float,
        muon_rate: float,
        beta2: float,
        muon_bfloat16: bool = False,
    ) -> None:
        self._parameters = dict(network.named_parameters())
        inside = [k for k, p in self._parameters.items() if name == "muon" and _is_inside(k, p)]
        rest = [p for k, p in self._parameters.items() if k not in inside]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Adam(rest, learning_rate, betas=(0.9, beta2), fused=True)
        ]
        if inside:
            dtype = torch.bfloat16 if muon_bfloat16 else torch.float32
            weights = [self._parameters[k] for k in inside]
            self._parts.append(Muon(weights, muon_rate, dtype=dtype))

    def step(self, factor: float) -> None:
        """One update at `factor` times the rates, from the parameters' gradients, then none."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = factor * part.defaults["lr"]
            part.step()
            part.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Copies of all moments on the CPU, as `KIND.PARAMETER`; zeros before the first step."""
        copies = {}
        for part, kind, name, parameter in self._moments():
            blank = torch.zeros(()) if kind == "step" else torch.zeros_like(parameter)
            moment = part.state[parameter].get(kind, blank).detach()
            copies[f"{kind}.{name}"] = moment.to("cpu", copy=True)
        return copies

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take moments from what `state` gave. KeyError or RuntimeError if they don't fit."""
        for part, kind, name, parameter in self._moments():
            like = parameter.data.new_zeros(()) if kind == "step" else parameter.data
            # Fused Adam walks the memory of parameter and moments in step: same layout needed.
            moment = torch.empty_like(like).copy_(state[f"{kind}.{name}"].view(like.shape))
            part.state[parameter][kind] = moment

    def _moments(self) -> Iterator[tuple[torch.optim.Optimizer, str, str, nn.Parameter]]:
        names = {p: k for k, p in self._parameters.items()}
        for part in self._parts:
            for parameter in part.param_groups[0]["params"]:
                for kind in _STATE[type(part)]:
                    yield part, kind, names[parameter], parameter


def _is_inside(name: str, parameter: Tensor) -> bool:
    at_the_end = name.split(".")[-2] in ("stem", "head")
    return parameter.ndim == 4 and parameter.shape[1] > 1 and not at_the_end
