"""Which precision is fast on this machine."""

import time

import torch
from torch import nn


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a convolution of the usual shape runs faster in bfloat16 on this machine."""
    half, single = (_convolution_seconds(d, device) for d in (torch.bfloat16, torch.float32))
    return half < single


def _convolution_seconds(dtype: torch.dtype, device: torch.device) -> float:
    x = torch.zeros(64, 64, 16, 16, dtype=dtype, device=device)
    layer = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype, device=device)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, seconds = x.to(memory_format=torch.channels_last), []
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            float(layer(x)[0, 0, 0, 0])  # a GPU is done when its number is here
            seconds.append(time.perf_counter() - began)
    return min(seconds)
