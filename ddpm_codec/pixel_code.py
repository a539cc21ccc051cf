"""x_0 under the discretized decoder, range-coded: a thin, typed use of `constriction`.

The quantised Gaussian of `constriction` is Eq. 13 with probabilities in multiples of 2^-24, none
of them 0. Sender and receiver must hold means and standard deviations that round alike.
"""

import constriction
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm_codec.discretized import DiscretizedGaussian, Index, PixelDecoder
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.exact import Floats, rounded
from ddpm_codec.units import HALF_RANGE_255

Integers = npt.NDArray[np.int32]

_WORD = np.dtype("<u4")

_PIXEL_QUANTUM = 2.0**-8  # of a pixel's value, 0..255

FAMILY = constriction.stream.model.QuantizedGaussian(0, 255)
"""Of the Gaussians whose parameters are those of `pixel_parameters`."""


def pixel_parameters(gaussian: DiscretizedGaussian) -> tuple[Floats, Floats]:
    """(mean, std), each (D,), in pixels and `rounded`. ConfigError for what is no number."""
    means = gaussian.mean.double()
    mean, std = means.flatten().numpy(), gaussian.std.double().expand_as(means).flatten().numpy()
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ConfigError("the network's x_0_hat is not finite: x_0 can't be coded under it")
    return rounded((mean + 1.0) * HALF_RANGE_255, std * HALF_RANGE_255, _PIXEL_QUANTUM)


def in_order(pixels: Tensor, decoder: PixelDecoder) -> tuple[Integers, Floats, Floats]:
    """(D,) the pixels (1,C,H,W) in the order in which `decoder` visits them, and the
    `pixel_parameters` that each is coded under."""
    columns: list[tuple[Integers, Floats, Floats]] = []

    def code(at: Index, gaussian: DiscretizedGaussian) -> Tensor:
        columns.append((pixels[at].flatten().numpy().astype(np.int32), *pixel_parameters(gaussian)))
        return pixels[at]

    decoder.visit(code)
    values, means, stds = (np.concatenate(column) for column in zip(*columns, strict=True))
    return values, means, stds


def encode_pixels(pixels: Tensor, decoder: PixelDecoder) -> bytes:
    """Code `pixels` (1,C,H,W), 0..255."""
    encoder = constriction.stream.queue.RangeEncoder()
    values, means, stds = in_order(pixels, decoder)
    encoder.encode(values, FAMILY, means, stds)
    return bytes(encoder.get_compressed().astype(_WORD).tobytes())


def decode_pixels(data: bytes, decoder: PixelDecoder, shape: tuple[int, ...]) -> Tensor:
    """The pixels of this shape (1,C,H,W), uint8, that `encode_pixels` was given. Corrupt where
    `data` can't be that."""
    if len(data) % _WORD.itemsize:
        raise Corrupt(f"{len(data)} bytes of coded pixels: not a whole number of words")
    words = constriction.stream.queue.RangeDecoder(
        np.frombuffer(data, dtype=_WORD).astype(np.uint32)
    )
    try:
        return decoded(words, decoder, shape)
    except (AssertionError, ValueError) as error:
        raise Corrupt("the coded pixels can't be decoded: the stream is damaged") from error


def decoded(
    source: "constriction.stream.queue.RangeDecoder | constriction.stream.stack.AnsCoder",
    decoder: PixelDecoder,
    shape: tuple[int, ...],
) -> Tensor:
    """The pixels (1,C,H,W), uint8, taken off `source` one part after the other."""
    pixels = torch.zeros(shape, dtype=torch.uint8)

    def code(at: Index, gaussian: DiscretizedGaussian) -> Tensor:
        values = source.decode(FAMILY, *pixel_parameters(gaussian))
        part = torch.from_numpy(np.asarray(values, np.uint8)).view(gaussian.mean.shape)
        pixels[at] = part
        return part

    decoder.visit(code)
    return pixels
