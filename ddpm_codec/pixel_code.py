"""x_0 under the discretized decoder, range-coded: a thin, typed use of `constriction`.

The quantised Gaussian of `constriction` is Eq. 13 with probabilities in multiples of 2^-24, none
of them 0. Sender and receiver must hold means and standard deviations that round alike.
"""

import constriction
import numpy as np
import numpy.typing as npt

from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.exact import Floats, rounded
from ddpm_codec.units import HALF_RANGE_255

Integers = npt.NDArray[np.int32]

_WORD = np.dtype("<u4")

_PIXEL_QUANTUM = 2.0**-8  # of a pixel's value, 0..255

Model = tuple["constriction.stream.model.QuantizedGaussian", Floats, Floats]


def pixel_model(mean: Floats, std: Floats) -> Model:
    """Eq. 13 for `constriction`: the family over 0..255 and its parameters (D,), in pixels and
    `rounded`; `mean` and `std` are in [-1, 1] units. ConfigError for what is no number."""
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ConfigError("the network's x_0_hat is not finite: x_0 can't be coded under it")
    pixels = rounded((mean + 1.0) * HALF_RANGE_255, std * HALF_RANGE_255, _PIXEL_QUANTUM)
    return constriction.stream.model.QuantizedGaussian(0, 255), *pixels


def encode_pixels(pixels: Integers, mean: Floats, std: Floats) -> bytes:
    """Code `pixels` (D,) 0..255 under N(mean, std^2), both (D,) in [-1, 1] units."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(pixels.astype(np.int32), *pixel_model(mean, std))
    return bytes(encoder.get_compressed().astype(_WORD).tobytes())


def decode_pixels(data: bytes, mean: Floats, std: Floats) -> Integers:
    """(D,) the pixels that `encode_pixels` was given. Corrupt where `data` can't be that."""
    if len(data) % _WORD.itemsize:
        raise Corrupt(f"{len(data)} bytes of coded pixels: not a whole number of words")
    words = np.frombuffer(data, dtype=_WORD).astype(np.uint32)
    try:
        decoder = constriction.stream.queue.RangeDecoder(words)
        return np.asarray(decoder.decode(*pixel_model(mean, std)), dtype=np.int32)
    except (AssertionError, ValueError) as error:
        raise Corrupt("the coded pixels can't be decoded: the stream is damaged") from error
