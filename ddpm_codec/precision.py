"""Which precision is fast on this machine."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def bfloat16_is_faster(device: torch.device) -> tuple[bool, bool]:
    """Whether the network and whether Muon's iterations run faster in bfloat16 on this machine."""
    seconds = [
        [_seconds(work(dtype, device)) for work in (_convolution, _product)]
        for dtype in (torch.bfloat16, torch.float32)
    ]
    network, muon = (half < single for half, single in zip(*seconds, strict=True))
    return network, muon


def _convolution(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """A convolution of the network's usual shape."""
    x = torch.zeros(64, 64, 16, 16, dtype=dtype, device=device)
    layer = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype, device=device)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)
    return lambda: layer(x)[0, 0, 0, 0]


def _product(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """One of Muon's. A processor without bfloat16 may take a hundred times as long in it."""
    x = torch.zeros(8, 128, 128, dtype=dtype, device=device)
    return lambda: (x @ x)[0, 0, 0]


def _seconds(work: Callable[[], Tensor]) -> float:
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            float(work())  # a GPU is done when its number is here
            seconds.append(time.perf_counter() - began)
    return min(seconds)
