"""Universal quantisation: one dimension at a time, with a shared dither (Ziv 1985; Agustsson &
Theis 2020; as in UQDM, Yang et al. 2025).

q's noise is uniform here instead of Gaussian, with the same mean and variance: with
width = sqrt(12) sigma_q and a shared dither u, uniform in a cell of that width, the receiver gets

    x = width * round((mu_q - u) / width) + u ~ uniform(mu_q - width/2, mu_q + width/2).

Sent is d = round((mu_q - u) / width) - round((mu_p - u) / width), which is small, under the law
that it has for mu_q - mu_p ~ N(0, (g width)^2): P(d) = E max(0, 1 - |m - d|), m ~ N(0, g^2). Each
group of dimensions has the g that suits it best, of a table. A baseline: its bits a dimension do
not become small.
"""

from functools import cache

import constriction
import numpy as np
from scipy.special import ndtr

from ddpm_codec.entropy import BitReader, BitWriter, EliasGamma, Raw
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.relative_entropy.protocol import Coded, Gaussian, Private, kl_bits, projection, send
from ddpm_codec.shared_randomness import DITHER, Floats, Indices, SharedRandomness, block_address

MOST_DIFFERENCE = 255
CLASSES = 32
_CLASS = Raw(5)
_SPREADS = 2.0 ** (np.arange(CLASSES) / 2 - 9)
_LENGTH = EliasGamma()
_WORD = np.dtype("<u4")


def _second_integral(x: Floats) -> Floats:
    """x Phi(x) + phi(x), the integral of Phi."""
    return x * ndtr(x) + np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


@cache
def difference_law(class_: int) -> Floats:
    """(2 MOST_DIFFERENCE + 1,) P(d) for d = -MOST_DIFFERENCE .. MOST_DIFFERENCE under a class.

    g times the second difference of `_second_integral` at steps of 1/g.
    """
    g = _SPREADS[class_]
    d = np.arange(MOST_DIFFERENCE + 1)
    f = [_second_integral(-(d + step) / g) for step in (-1, 0, 1)]
    half = np.maximum(g * (f[0] - 2 * f[1] + f[2]), 2.0**-40)
    law = np.concatenate([half[:0:-1], half])
    return np.asarray(law / law.sum())


@cache
def _model(class_: int) -> "constriction.stream.model.Categorical":
    return constriction.stream.model.Categorical(difference_law(class_), perfect=False)


class Dithered:
    """`count`: G groups of dimensions that share a table. `groups` (D,) 0..G-1 says which;
    `sigma_q` is q's one standard deviation. Both sides know them; to parse, `count` is enough."""

    def __init__(self, count: int, groups: Indices | None = None, sigma_q: float = 1.0) -> None:
        self.count = count
        self.groups = np.zeros(0, dtype=np.int64) if groups is None else groups
        self.width = sigma_q * 12**0.5

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """One step; nothing in it is private. ConfigError where q is too far from p."""
        u = self._dither(shared, step, q.dims)
        cells = [np.rint((mean - u) / self.width).astype(np.int64) for mean in (q.mean, p.mean)]
        difference = cells[0] - cells[1]
        if np.abs(difference).max() > MOST_DIFFERENCE:
            raise ConfigError("universal quantisation: q is too far from p; take shorter steps")
        message, encoder = BitWriter(), constriction.stream.queue.RangeEncoder()
        for group in range(self.count):
            symbols = difference[self.groups == group] + MOST_DIFFERENCE
            class_ = _best_class(symbols)
            _CLASS.write(message, class_)
            encoder.encode(symbols.astype(np.int32), _model(class_))
        payload = encoder.get_compressed().astype(_WORD).tobytes()
        _LENGTH.write(message, len(payload) // _WORD.itemsize + 1)
        side = message.bits
        message.write(int.from_bytes(payload, "big"), 8 * len(payload))
        x = send(self, p, shared, step, message, writer)
        total = float(kl_bits(q, p).sum())
        return Coded(x, total, message.bits - side, side, projection(q, p, x), 1)

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """A class for each group, the number of coded words, and they as one integer."""
        classes = [_CLASS.read(reader) for _ in range(self.count)]
        words = _LENGTH.read(reader) - 1
        if words > 2 * dims:
            raise Corrupt(f"{words} words for {dims} dimensions: the stream is damaged")
        return [*classes, words, reader.read(8 * _WORD.itemsize * words)]

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that the differences name. Corrupt where they can't be decoded."""
        *classes, words, payload = packet
        data = np.frombuffer(payload.to_bytes(_WORD.itemsize * words, "big"), dtype=_WORD)
        decoder = constriction.stream.queue.RangeDecoder(data.astype(np.uint32))
        difference = np.empty(p.dims)
        try:
            for group, class_ in enumerate(classes):
                at = np.flatnonzero(self.groups == group)
                difference[at] = decoder.decode(_model(class_), len(at)) - MOST_DIFFERENCE
        except (AssertionError, ValueError) as error:
            raise Corrupt("coded differences can't be decoded: the stream is damaged") from error
        u = self._dither(shared, step, p.dims)
        return u + self.width * (np.rint((p.mean - u) / self.width) + difference)

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def _dither(self, shared: SharedRandomness, step: int, dims: int) -> Floats:
        """(D,) uniform in a cell."""
        return self.width * shared.uniforms(DITHER, block_address(step, 0), 0, dims)


def _best_class(symbols: Indices) -> int:
    counts = np.bincount(symbols, minlength=2 * MOST_DIFFERENCE + 1)
    return int(np.argmin([-counts @ np.log(difference_law(c)) for c in range(CLASSES)]))
