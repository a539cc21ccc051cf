"""Numbers on which machines agree, for streams whose decoding needs the sender's.

Sums in float32 depend on a machine's instructions, its threads and the batch. In float64 they do
too, but by so little that what is `rounded` afterwards comes out alike everywhere, save with a
probability that docs/format.md states.
"""

import itertools

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

Floats = npt.NDArray[np.float64]


def rounded(mean: Floats, std: Floats, quantum: float) -> tuple[Floats, Floats]:
    """`mean` to multiples of `quantum`, `std` to 8 binary digits: what two machines agree on.

    The mean is off by half a quantum at most, the std by one part in 256, which costs 1.5e-5 nats.
    """
    digits, exponent = np.frexp(std)
    mean = np.rint(mean / quantum) * quantum
    return mean, np.ldexp(np.rint(digits * 256) / 256, exponent).astype(np.float64)


def shifted_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """F.conv2d of x (N,C,H,W) with weight (O,C,k,k), or depthwise with (C,1,k,k), as a sum of k * k
    products of shifted copies: torch's own is several times slower in float64 on a CPU."""
    out_channels, taken, kernel, _ = weight.shape
    x = x.permute(0, 2, 3, 1)
    if kernel == stride == 1 and padding == 0 and taken == x.shape[3]:
        return F.linear(x, weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    x = F.pad(x, (0, 0, *[padding] * 4))
    height, width = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    start = x.new_zeros(out_channels) if bias is None else bias
    out = start.expand(len(x), height, width, out_channels).clone()
    taps = weight.permute(2, 3, 1, 0).contiguous()
    for i, j in itertools.product(range(kernel), repeat=2):
        bottom, right = i + stride * (height - 1) + 1, j + stride * (width - 1) + 1
        part = x[:, i:bottom:stride, j:right:stride]
        if taken == 1 and out_channels > 1:
            out.addcmul_(part, taps[i, j, 0])
        else:
            out.view(-1, out_channels).addmm_(part.reshape(-1, taken), taps[i, j])
    return out.permute(0, 3, 1, 2)
