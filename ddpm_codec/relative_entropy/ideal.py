"""The ideal coder: draws q and charges KL(q || p). A reference; it writes no bits."""

from typing import NoReturn

from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError
from ddpm_codec.relative_entropy.protocol import Coded, Gaussian, Private, kl_bits, projection
from ddpm_codec.shared_randomness import SharedRandomness


class Ideal:
    """Coding at the lower limit: x ~ q exactly, at KL(q || p) bits, which no code attains."""

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """A private draw of q; `writer` stays as it is, spent_bits = kl_bits."""
        x = q.mean + q.std * private.standard_normal(q.dims)
        total = float(kl_bits(q, p).sum())
        return Coded(x, total, total, 0, projection(q, p, x))

    def decode(
        self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader
    ) -> NoReturn:
        """ConfigError: there is nothing to decode."""
        raise ConfigError("the ideal coder writes no bits: choose mrc, orc or pfr for a stream")
