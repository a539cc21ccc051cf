"""Shared by benchmarks: walks by any relative entropy coder, without a stream, and overheads."""

import numpy as np
import torch

from ddpm_codec.bands import from_bands, to_bands
from ddpm_codec.codec import gaussian_row
from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy import Coded, kl_bits, projection
from ddpm_codec.relative_entropy.protocol import LogRatio, deal
from ddpm_codec.relative_entropy.trellis import FIRST_RANK
from ddpm_codec.reverse import reverse_chain
from ddpm_codec.shared_randomness import SharedRandomness

DIFFC_BLOCK_BITS, DIFFC_CANDIDATES, DIFFC_SIDE_BITS = 14, 1 << 16, 8
DIFFC_PIECE = 1 << 12


def coder_walk(model, x_0, timesteps, coder, seeds):
    """Yield (t, s, [Coded], x_0_hat (N,C,H,W) from x_s) for pictures x_0 (N,C,H,W), each with its
    seed; a coder with `encode_all` takes them together."""
    shared = [SharedRandomness(seed, 1) for seed in seeds]
    private = [np.random.default_rng(seed) for seed in seeds]
    x_T = torch.cat([
        torch.randn(x_0[:1].shape, generator=torch.Generator().manual_seed(seed), dtype=x_0.dtype)
        for seed in seeds
    ])  # fmt: skip
    walk = reverse_chain(model, x_T, torch.full((len(x_0),), int(timesteps[0])))
    step, ranks = next(walk), [FIRST_RANK] * len(x_0)
    for index, s in enumerate(timesteps[1:]):
        t, to = int(step.t[0]), torch.full((len(x_0),), int(s))
        q, p = model.posterior(x_0, step.x_t, step.t, to), step.p(to)
        q = DiagonalGaussian(to_bands(q.mean), q.variance)
        pairs = [(gaussian_row(q, row), gaussian_row(p, row)) for row in range(len(x_0))]
        if hasattr(coder, "encode_all"):
            coded = coder.encode_all(pairs, shared, index, private[0])
        else:
            coded = [
                encode_one(coder, pair, shared[row], index, private[row], ranks, row)
                for row, pair in enumerate(pairs)
            ]
        samples = torch.from_numpy(np.stack([c.sample for c in coded]))
        step = walk.send((to, from_bands(samples.to(x_0.dtype).view_as(x_0))))
        yield t, int(s), coded, step.x_0_hat


def encode_one(coder, pair, shared, index, private, ranks, row):
    """One step of one picture; sizes are coded around that of the packet before."""
    writer = BitWriter()
    if hasattr(coder, "rank"):
        coder.rank = Nearby(ranks[row])
    coded = coder.encode(*pair, shared, index, writer, private)
    if hasattr(coder, "rank"):
        reader = BitReader(writer.getvalue(), writer.bits)
        ranks[row] = coder.read(pair[0].dims, reader)[0]
    return coded


class DiffCLike:
    """Truncated Poisson functional representation, as published diffusion codecs use it: chunks of
    14 bits, 2^16 candidates, the index charged as -log2 of Zipf's law for the chunk's KL, which
    the receiver needs: 8 bits a step. A reference: bits are charged, not written.

    Pictures share their candidates, as streams of one seed do, so that all are scored by a product
    of matrices; their arrival times are their own."""

    def encode_all(self, pairs, shared, step, private):
        """[Coded] of (q, p) of every picture."""
        jobs = [_Chunked(q, p, own, step) for (q, p), own in zip(pairs, shared, strict=True)]
        for block in range(max(len(job.dealt) for job in jobs)):
            self._search([job for job in jobs if block < len(job.dealt)], block, private)
        return [job.coded() for job in jobs]

    def _search(self, jobs, block, private):
        """Find every job's candidate for one chunk."""
        dims = [job.dealt[block] for job in jobs]
        width = max(map(len, dims))
        linear, quadratic = np.zeros((2, width, len(jobs)), np.float32)
        constant = np.empty(len(jobs))
        for at, (job, d) in enumerate(zip(jobs, dims, strict=True)):
            ratio = LogRatio.of(job.q.at(d), job.p.at(d))
            linear[: len(d), at] = ratio.rho * ratio.delta
            quadratic[: len(d), at] = 0.5 * (1 - ratio.rho**2)
            constant[at] = np.sum(np.log(ratio.rho) - 0.5 * ratio.delta**2)
        times, best = np.zeros(len(jobs)), np.zeros(len(jobs), int)
        score = np.full(len(jobs), np.inf)
        for first in range(0, DIFFC_CANDIDATES, DIFFC_PIECE):
            c = private.standard_normal((DIFFC_PIECE, width), dtype=np.float32)
            log_w = c @ linear + (c * c) @ quadratic + constant
            arrivals = private.standard_exponential((DIFFC_PIECE, len(jobs))).cumsum(axis=0) + times
            times, scores = arrivals[-1], np.log(arrivals) - log_w
            here = scores.argmin(axis=0)
            for at in np.flatnonzero(scores.min(axis=0) < score):
                best[at], score[at] = first + here[at], scores[here[at], at]
                jobs[at].z[dims[at]] = c[here[at], : len(dims[at])]
        for at, job in enumerate(jobs):
            job.spent += zipf_bits(best[at] + 1, float(job.kl[dims[at]].sum()))


class _Chunked:
    """One picture's step, its dimensions dealt to chunks."""

    def __init__(self, q, p, shared, step):
        self.q, self.p, self.kl = q, p, kl_bits(q, p)
        blocks = max(1, round(self.kl.sum() / DIFFC_BLOCK_BITS))
        self.dealt = deal(shared, step, q.dims, blocks)
        self.z, self.spent = np.empty(q.dims), 0.0

    def coded(self):
        x = self.p.mean + self.p.std * self.z
        along = projection(self.q, self.p, x)
        kl = float(self.kl.sum())
        return Coded(x, kl, self.spent, DIFFC_SIDE_BITS, along, len(self.dealt))


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
