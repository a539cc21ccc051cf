"""The ledger of a sent picture: every bit of the file, step by step, and what it should cost."""

import math
from dataclasses import dataclass, field
from typing import Any

from ddpm_codec.relative_entropy import Coded


@dataclass
class Step:
    """One packet: from x_t to x_s. `psnr_db` is that of x_0_hat(x_s), rounded to 8 bits."""

    t: int
    s: int
    kl_bits: float
    spent_bits: float
    side_bits: int
    projection: float
    psnr_db: float | None = None

    @staticmethod
    def of(t: int, s: int, coded: Coded) -> "Step":
        """The row of one coded step."""
        return Step(t, s, coded.kl_bits, coded.spent_bits, coded.side_bits, coded.projection)


@dataclass
class Ledger:
    """header + spent + side + decoder + checksum + padding bits = 8 * file bytes.

    `pixel_nats`: -log p(x_0 | x_t) where x_0 was sent, in nats, else 0.
    """

    dims: int
    header_bits: int
    steps: list[Step] = field(default_factory=list)
    decoder_bits: int = 0
    checksum_bits: int = 0
    padding_bits: int = 0
    pixel_nats: float = 0.0

    @property
    def packet_bits(self) -> int:
        """Bits of all packets."""
        return round(sum(step.spent_bits + step.side_bits for step in self.steps))

    @property
    def total_bits(self) -> int:
        """Bits of the file."""
        fixed = self.header_bits + self.decoder_bits + self.checksum_bits + self.padding_bits
        return fixed + self.packet_bits

    @property
    def ideal_bits(self) -> float:
        """The KL of the walk really taken, and -log2 p(x_0 | x_t) where x_0 was sent."""
        return sum(step.kl_bits for step in self.steps) + self.pixel_nats / math.log(2)

    def as_json(self) -> dict[str, Any]:
        """The contract of `send --ledger`."""
        ideal = self.ideal_bits
        return {
            "file_bytes": self.total_bits // 8,
            "header_bits": self.header_bits,
            "steps": [vars(step) for step in self.steps],
            "decoder_bits": self.decoder_bits,
            "checksum_bits": self.checksum_bits,
            "padding_bits": self.padding_bits,
            "total_bits": self.total_bits,
            "bpd": self.total_bits / self.dims,
            "ideal_bits": ideal,
            "overhead": self.total_bits / ideal - 1 if ideal else None,
        }
