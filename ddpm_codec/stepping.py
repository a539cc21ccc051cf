"""Which steps a walk takes: planned so that its file is short.

The T-step chain has hundreds of steps of less than a bit, and a relative entropy coder spends
bits on every call, the more per bit the shorter they are. Long steps cost KL instead, because
x_0_hat goes stale on the way. The planner measures, on calibration pictures, the KL of every
step between two nodes, turns it into the bits of a packet, and finds the walk with the fewest by
dynamic programming.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import to_bands
from ddpm_codec.bound import BATCH_PIXELS, Progress
from ddpm_codec.diffusion import MEASURED, DiffusionModel
from ddpm_codec.errors import ConfigError
from ddpm_codec.gaussian import excess_kl_nats, sum_dims
from ddpm_codec.prefix import NEARBY_BELOW, NEARBY_BITS, NEARBY_ESCAPE
from ddpm_codec.relative_entropy.trellis import FIRST_RANK, size_ranks, spent_bits
from ddpm_codec.schedule import Array, Indices, Plan
from ddpm_codec.units import NATS_PER_BIT, from_uint8

NODES = 128
"""Timesteps that a plan chooses from, even in log SNR."""
MOST_CALLS = 60
"""Network calls of a plan, unless it is told otherwise."""


@dataclass(frozen=True)
class StepTable:
    """Steps between `nodes` (n,), timesteps falling from T to 1, on N pictures of D dimensions.

    `kl_bits` (n, n, N): KL in bits of the step from one node to a later one, else NaN;
    `x_0_bits` (n, N): -log2 p(x_0 | x_t), what x_0 costs from each node.
    """

    nodes: Indices
    dims: int
    kl_bits: Array
    x_0_bits: Array


def measure_steps(
    model: DiffusionModel,
    pixels: Tensor,
    generator: torch.Generator,
    nodes: int = NODES,
    progress: Progress | None = None,
) -> StepTable:
    """The KL of every step between nodes for pictures (N,C,H,W) uint8, one exact draw of x_t each.

    Raises ConfigError unless the model's variance is a measured one.
    """
    if model.variance not in MEASURED:
        raise ConfigError("this checkpoint has no calibration: run `ddpm-codec calibrate`")
    grid = model.schedule.log_snr_grid(min(nodes, model.schedule.T))
    kl = np.full((len(grid), len(grid), len(pixels)), np.nan)
    x_0_bits = np.empty((len(grid), len(pixels)))
    size = max(1, BATCH_PIXELS // pixels[0, 0].numel())
    for first in range(0, len(pixels), size):
        part = slice(first, first + size)
        for at in range(len(grid)):
            _measure_node(
                model, pixels[part], grid, at, generator, kl[at, :, part], x_0_bits[at, part]
            )
            if progress is not None:
                progress(len(pixels[part]))
    return StepTable(grid, pixels[0].numel(), kl, x_0_bits)


def _measure_node(
    model: DiffusionModel,
    pixels: Tensor,
    grid: Indices,
    at: int,
    generator: torch.Generator,
    kl: Array,
    x_0_bits: Array,
) -> None:
    """Fill kl (n, N) and x_0_bits (N,) for the steps from node number `at`."""
    x_0, t = from_uint8(pixels), torch.full((len(pixels),), int(grid[at]))
    eps = torch.randn(x_0.shape, generator=generator)
    estimate = model.estimate(model.q_sample(x_0, t, eps), t)
    x_0_bits[:] = model.decoder(estimate, t).log_prob_nats(pixels).numpy() / -NATS_PER_BIT
    error2 = to_bands(x_0 - estimate.x_0_hat) ** 2
    expected = model.error_variance(estimate, t)
    snr = model.schedule.snr
    for to in range(at + 1, len(grid)):
        gain = float(snr[grid[to]] - snr[grid[at]])
        nats = sum_dims(excess_kl_nats(gain * expected, gain * error2))
        kl[to] = nats.numpy() / NATS_PER_BIT


def plan(
    table: StepTable,
    kappa: int = 16,
    end: int = 1,
    calls: int | None = None,
    lossless: bool = False,
) -> Plan:
    """The walk from T to the node nearest to t = `end` with the least expected bits of a file,
    under the trellis coder with `kappa`: words, and the code of a packet's size around that of
    the packet before.

    With `lossless` the walk may end at any node, and x_0 follows from there. `calls`: at most so
    many network calls, one a step and one at the end (MOST_CALLS). Raises ConfigError if no walk
    has so few, or ends at no timestep below T.
    """
    if not 1 <= end < table.nodes[0]:
        raise ConfigError(f"--end {end}: choose a timestep from 1 to {table.nodes[0] - 1}")
    with np.errstate(invalid="ignore"):
        words = spent_bits(table.kl_bits, kappa)
    edge = np.where(np.isnan(words), np.inf, words).mean(axis=2)
    tail = np.full(len(edge), np.inf)
    if lossless:
        tail = table.x_0_bits.mean(axis=1)
    else:
        tail[int(np.argmin(np.abs(table.nodes - end)))] = 0.0
    ranks = size_ranks(np.nan_to_num(words, nan=1.0))
    walk = _cheapest(edge, tail, ranks, calls or MOST_CALLS)
    if walk is None:
        raise ConfigError(f"no walk with {calls} network calls: allow more")
    bits = np.array([edge[a, b] for a, b in pairwise(walk)])
    return Plan(table.nodes[walk], bits / table.dims)


def _side_bits(before: Indices, here: Indices) -> Array:
    """Mean over the last axis of the bits that code size `here` after size `before`."""
    symbol = np.clip(here - before + NEARBY_BELOW, -1, NEARBY_ESCAPE)  # -1: the escape, too
    return np.asarray(np.array(NEARBY_BITS)[symbol].mean(axis=-1))


def _cheapest(edge: Array, tail: Array, ranks: Indices, calls: int) -> list[int] | None:
    """The path from node 0 with the least sum of `edge` (n, n), of its sizes' code, and of `tail`
    (n,) at its end, with at most `calls` nodes; None if there is none.

    Dynamic programming over the last two nodes, since a size is coded around the one before.
    """
    nodes = len(edge)
    possible = np.isfinite(edge)
    side = np.full((nodes, nodes, nodes), np.inf)
    for b in range(1, nodes):
        from_, to = np.flatnonzero(possible[:, b]), np.flatnonzero(possible[b])
        if len(from_) and len(to):
            code = _side_bits(ranks[from_, b][:, None], ranks[b, to][None])
            side[from_[:, None], b, to] = code
    first = edge[0] + _side_bits(np.full_like(ranks[0], FIRST_RANK), ranks[0])
    onward, arrows = np.broadcast_to(tail, (nodes, nodes)), []
    best, best_steps, second = np.inf, 0, 0
    for steps in range(1, min(calls, nodes)):
        total = first + onward[0]
        if total.min() < best:
            best, best_steps, second = float(total.min()), steps, int(total.argmin())
        through = side + (edge + onward)[None]
        arrows.append(np.argmin(through, axis=2))
        onward = np.min(through, axis=2)
    if not best_steps:
        return None
    walk = [0, second]
    for arrow in reversed(arrows[: best_steps - 1]):
        walk.append(int(arrow[walk[-2], walk[-1]]))
    return walk
