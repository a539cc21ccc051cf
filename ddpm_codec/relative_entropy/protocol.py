"""The protocol of relative entropy coders, and what those that send an index share.

A coder sends a sample of (about) q to a receiver who knows p, for about KL(q || p) bits. q and
p are diagonal Gaussians of D dimensions. Whitened: z = (x - mu_p) / sigma_q,
delta = (mu_q - mu_p) / sigma_q, rho = sigma_p / sigma_q.

The backends that write bits name one candidate a block: a shared permutation deals the
dimensions to blocks, candidate i of a block is a codeword c ~ N(0, I) of shared randomness,
and the sample is x = mu_p + sigma_p c. Which bits belong to what follows from integers alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddpm_codec.entropy import BitReader, BitWriter, IntegerCode
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.shared_randomness import (
    BLOCKS_A_STEP,
    DEAL,
    NORMAL_UNIT,
    Floats,
    Indices,
    SharedRandomness,
    Singles,
    block_address,
)
from ddpm_codec.units import NATS_PER_BIT

Private = np.random.Generator

CHUNK_NORMALS = 1 << 18
"""Codeword entries held in memory at a time."""


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(std^2)); `mean` and `std` are (D,) float64, std > 0."""

    mean: Floats
    std: Floats

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not self.mean.size:
            raise ConfigError(
                f"a Gaussian with means {self.mean.shape} and stds {self.std.shape}: "
                "both must be (D,) with D >= 1"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise ConfigError("a Gaussian with a mean or std that isn't finite: check the model")
        if self.std.min() <= 0:
            raise ConfigError(f"a Gaussian with std {self.std.min()}: every std must be > 0")

    @property
    def dims(self) -> int:
        """D."""
        return len(self.mean)

    def at(self, dims: Indices) -> "Gaussian":
        """The marginal of some dimensions."""
        return Gaussian(self.mean[dims], self.std[dims])


def kl_bits(q: Gaussian, p: Gaussian) -> Floats:
    """(D,) KL(q || p) of each dimension in bits.

    1/2 (r - 1 - log r + ((mu_q - mu_p) / sigma_p)^2) / ln 2 with r = (sigma_q / sigma_p)^2.
    """
    if q.dims != p.dims:
        raise ConfigError(f"q over {q.dims} dimensions and p over {p.dims}: they must agree")
    log_r = 2 * np.log(q.std / p.std)
    shift2 = ((q.mean - p.mean) / p.std) ** 2
    return 0.5 * (np.expm1(log_r) - log_r + shift2) / NATS_PER_BIT


def projection(q: Gaussian, p: Gaussian, x: Floats) -> float:
    """<z, delta> / |delta|^2 of a sample x (D,); 1 for q's mean, and 1 where delta is 0."""
    delta = (q.mean - p.mean) / q.std
    length2 = float(delta @ delta)
    return float((x - p.mean) / q.std @ delta) / length2 if length2 else 1.0


@dataclass(frozen=True)
class Coded:
    """One step, sent: `sample` (D,) is what the receiver decodes, float64.

    `kl_bits`: KL(q || p); `spent_bits`: the indices; `side_bits`: number of blocks, classes;
    `projection`: how far along delta the sample lies (q's mean gives 1); `blocks`: how many;
    `cut_blocks`: those whose search met a limit, so that they promise less than the others.
    """

    sample: Floats
    kl_bits: float
    spent_bits: float
    side_bits: int
    projection: float
    blocks: int = 0
    cut_blocks: int = 0


class RelativeEntropyCoder(Protocol):
    """`step`, 0..65535, addresses the shared randomness: never the same twice in a stream."""

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """Append one step to `writer`; the sample comes from `decode` on the same bits."""
        ...

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample; Truncated or Corrupt where the bits don't hold one."""
        ...


class StreamCoder(RelativeEntropyCoder, Protocol):
    """A coder whose bits hold integers, a packet, that are parsed without p.

    `decode` is `read`, then `sample`.
    """

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The packet of one step of `dims` dimensions.

        Truncated or Corrupt where the bits don't hold one.
        """
        ...

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that a packet names."""
        ...


@dataclass(frozen=True)
class LogRatio:
    """log w(c) = log q(x) / p(x) at x = mu_p + sigma_p c, in nats, for codewords c:

    constant + <linear, c> + <quadratic, c^2>,
    sum(log rho - delta^2 / 2),  rho delta,  (1 - rho^2) / 2.
    """

    delta: Floats
    rho: Floats

    @classmethod
    def of(cls, q: Gaussian, p: Gaussian) -> "LogRatio":
        """The ratio of q to p."""
        return cls((q.mean - p.mean) / q.std, p.std / q.std)

    @property
    def equal_variances(self) -> bool:
        """Whether the quadratic part vanishes (to 1e-12)."""
        return bool(np.all(np.abs(self.rho - 1) < 1e-12))

    def nats(self, codewords: Singles) -> Floats:
        """(C,) for codewords (C, D) in units of NORMAL_UNIT; float32 inside, to about 1e-5.

        By einsum, since a BLAS sums in an order that depends on its number of threads.
        """
        linear = (self.rho * self.delta * NORMAL_UNIT).astype(np.float32)
        total = np.einsum("cd,d->c", codewords, linear).astype(np.float64)
        if not self.equal_variances:
            quadratic = 0.5 * (1 - self.rho**2) * NORMAL_UNIT**2
            weights = quadratic.astype(np.float32)
            total += np.einsum("cd,d->c", codewords * codewords, weights)
        return total + float(np.sum(np.log(self.rho) - 0.5 * self.delta**2))


def log_weights(ratio: LogRatio, shared: SharedRandomness, block: int, count: int) -> Floats:
    """(count,) log w of a block's first `count` candidates, in bounded memory."""
    dims = len(ratio.delta)
    chunk = max(1, CHUNK_NORMALS // dims)
    weights = np.empty(count)
    for first in range(0, count, chunk):
        size = min(chunk, count - first)
        weights[first : first + size] = ratio.nats(shared.candidates(block, first, size, dims))
    return weights


def blocks_needed(total_bits: float, block_bits: float, dims: int) -> int:
    """ceil(total / block), at least 1 and at most one block a dimension."""
    return int(min(max(1.0, np.ceil(total_bits / block_bits)), dims, BLOCKS_A_STEP))


def deal(shared: SharedRandomness, step: int, dims: int, blocks: int) -> list[Indices]:
    """The dimensions of each block: an even cut of a shared permutation of 0..dims-1."""
    order = shared.permutation(DEAL, block_address(step, 0), dims)
    return [order[dims * b // blocks : dims * (b + 1) // blocks] for b in range(blocks)]


def check_count(code: IntegerCode, blocks: int) -> None:
    """ConfigError, before the search, for a number of blocks that its code can't say, which is
    centred on that of the step before."""
    try:
        code.length_bits(blocks)
    except ConfigError as error:
        raise ConfigError(
            f"a step of {blocks} blocks: too far from the number before for the stream to say; use "
            "--backend trellis, or larger --block-bits"
        ) from error


def read_blocks(reader: BitReader, code: IntegerCode, dims: int) -> int:
    """The number of blocks of a step, Corrupt unless every block has a dimension."""
    blocks = code.read(reader)
    if not 1 <= blocks <= min(dims, BLOCKS_A_STEP):
        raise Corrupt(f"{blocks} blocks for {dims} dimensions: the stream is damaged")
    return blocks


def assemble(p: Gaussian, shared: SharedRandomness, step: int, indices: Sequence[int]) -> Floats:
    """(D,) the sample that the indices name, one a block: mu_p + sigma_p c. No search."""
    sample = np.empty(p.dims)
    for block, dims in enumerate(deal(shared, step, p.dims, len(indices))):
        c = shared.normals(block_address(step, block), indices[block], len(dims))
        sample[dims] = p.mean[dims] + p.std[dims] * c
    return sample


def send(
    coder: RelativeEntropyCoder,
    p: Gaussian,
    shared: SharedRandomness,
    step: int,
    message: BitWriter,
    writer: BitWriter,
) -> Floats:
    """Append `message` to `writer` and decode it as the receiver will, from its bits."""
    writer.append(message)
    reader = BitReader(message.getvalue(), message.bits)
    return coder.decode(p, shared, step, reader)
