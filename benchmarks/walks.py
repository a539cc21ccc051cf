"""Shared by benchmarks: a walk by any relative entropy coder, without a stream, and overheads."""

import numpy as np
import torch

from ddpm_codec.bands import from_bands, to_bands
from ddpm_codec.codec import gaussian_row
from ddpm_codec.diffusion import reverse_chain
from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy import Coded, kl_bits, projection
from ddpm_codec.relative_entropy.protocol import LogRatio, deal
from ddpm_codec.relative_entropy.trellis import FIRST_RANK
from ddpm_codec.shared_randomness import NORMAL_UNIT, SharedRandomness

DIFFC_BLOCK_BITS, DIFFC_CANDIDATES, DIFFC_SIDE_BITS = 14, 1 << 16, 8


def coder_walk(model, x_0, timesteps, coder, seed):
    """Yield (t, s, Coded, x_0_hat (1,C,H,W) from x_s) for one picture x_0 (1,C,H,W)."""
    shared, private = SharedRandomness(seed, 1), np.random.default_rng(seed)
    x_T = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed), dtype=x_0.dtype)
    walk = reverse_chain(model, x_T, torch.tensor([int(timesteps[0])]))
    step, rank = next(walk), FIRST_RANK
    for index, s in enumerate(timesteps[1:]):
        t, to = int(step.t[0]), torch.tensor([int(s)])
        q = model.posterior(x_0, step.x_t, step.t, to)
        q = gaussian_row(DiagonalGaussian(to_bands(q.mean), q.variance), 0)
        if hasattr(coder, "rank"):  # sizes are coded around that of the packet before
            coder.rank = Nearby(rank)
        writer = BitWriter()
        coded = coder.encode(q, gaussian_row(step.p(to), 0), shared, index, writer, private)
        if hasattr(coder, "rank"):
            rank = coder.read(q.dims, BitReader(writer.getvalue(), writer.bits))[0]
        x_s = from_bands(torch.from_numpy(coded.sample).to(x_0.dtype).view_as(x_0))
        step = walk.send((to, x_s))
        yield t, int(s), coded, step.x_0_hat


class DiffCLike:
    """Truncated Poisson functional representation, as published diffusion codecs use it: chunks of
    14 bits, 2^16 candidates, the index charged as -log2 of Zipf's law for the chunk's KL, which
    the receiver needs: 8 bits a step. A reference: bits are charged, not written."""

    def encode(self, q, p, shared, step, writer, private):
        kl = kl_bits(q, p)
        blocks, z, spent = max(1, round(kl.sum() / DIFFC_BLOCK_BITS)), np.empty(q.dims), 0.0
        for dims in deal(shared, step, q.dims, blocks):
            ratio = LogRatio.of(q.at(dims), p.at(dims))
            times, best, score = 0.0, 0, np.inf
            for first in range(0, DIFFC_CANDIDATES, 1 << 12):
                c = private.standard_normal((1 << 12, len(dims)), dtype=np.float32)
                arrivals = times + np.cumsum(private.standard_exponential(1 << 12))
                times = arrivals[-1]
                scores = np.log(arrivals) - ratio.nats(c / np.float32(NORMAL_UNIT))
                here = int(np.argmin(scores))
                if scores[here] < score:
                    best, score, z[dims] = first + here, scores[here], c[here]
            spent += zipf_bits(best + 1, float(kl[dims].sum()))
        x = p.mean + p.std * z
        return Coded(x, float(kl.sum()), spent, DIFFC_SIDE_BITS, projection(q, p, x), blocks)


def zipf_bits(n, kl):
    """-log2 of n^-s / sum_k k^-s over the candidates, s = 1 + 1 / (KL + log2(e) / e + 1)."""
    s = 1 + 1 / (kl + np.log2(np.e) / np.e + 1)
    total = np.sum(np.arange(1, DIFFC_CANDIDATES + 1) ** -s)
    return float(s * np.log2(n) + np.log2(total))


def overhead(real, ideal):
    """Sum over sum of bits (N,), less 1, and its standard error over pictures (jackknife)."""
    ratio = real.sum() / ideal.sum() - 1
    if len(real) < 2:
        return ratio, float("nan")
    left_out = (real.sum() - real) / (ideal.sum() - ideal) - 1
    return ratio, float(np.sqrt((len(real) - 1) * np.mean((left_out - left_out.mean()) ** 2)))
