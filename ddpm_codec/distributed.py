"""Several processes on one job, as `torchrun` starts them: who does what, and sums over all.

Every process draws the random numbers of the whole batch and works on its own share, so that a
job gives the same result, to rounding, however many do it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from ddpm_codec.errors import ConfigError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """`count` processes of which this is number `rank`, computing on `device`."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def share(self, total: int, parts: int = 1) -> list[slice]:
        """This process's part of range(total), cut into at most `parts` even slices."""
        pieces = self.count * parts
        edges = [total * i // pieces for i in range(self.rank * parts, (self.rank + 1) * parts + 1)]
        return [slice(a, b) for a, b in pairwise(edges) if a < b]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum over all processes of each of some numbers."""
        return [float(v) for v in self.sum_arrays(np.array(values, dtype=np.float64))]

    def sum_arrays(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all processes of an array of one shape."""
        if self.count == 1:
            return values
        together = torch.from_numpy(values).to(self.device)
        dist.all_reduce(together)
        return together.cpu().numpy()

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace each parameter's gradient by its sum over all processes, in one message."""
        if self.count == 1:
            return
        parameters = list(network.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(total.view_as(gradient))


ALONE = Workers()


def join(device: str = "cpu") -> Workers:
    """Join the processes that `torchrun` started; alone without it.

    `device`: "cpu", or "cuda" for the GPU of this process's local rank. ConfigError if torch has
    no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no CUDA device; use --device cpu")
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Workers(device=torch.device(local))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Workers(dist.get_rank(), dist.get_world_size(), torch.device(local))
