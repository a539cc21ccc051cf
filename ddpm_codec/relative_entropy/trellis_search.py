"""The sender's side of the trellis: the metric of every row at every stage, and Viterbi.

Nothing here touches the wire: the receiver reads only the rows of the path that was found.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from ddpm_codec.shared_randomness import (
    CODEBOOK,
    NORMAL_UNIT,
    Floats,
    Indices,
    SharedRandomness,
    Singles,
)

COLUMNS = 64
"""Entries of a row of the codebook; wider stages go on with rows at hashed addresses."""
_HASH = 0x9E3779B1
_PIECES = 32
"""Columns of one matrix product: few enough for its result to stay in the cache."""
_FILL = 1 << 14


@lru_cache(maxsize=2)
def planes(key: tuple[int, int], kappa: int) -> Singles:
    """(2 COLUMNS, 2^kappa) the codebook by column: row 2 i has every row's entry i, row 2 i + 1
    their squares."""
    shared = SharedRandomness(*key)
    table = np.empty((2 * COLUMNS, 1 << kappa), dtype=np.float32)
    for start in range(0, 1 << kappa, _FILL):
        rows = np.arange(start, min(start + _FILL, 1 << kappa))
        part = shared.codewords(0, rows, COLUMNS, stream=CODEBOOK).T * np.float32(NORMAL_UNIT)
        table[0::2, rows[0] : rows[-1] + 1] = part
        table[1::2, rows[0] : rows[-1] + 1] = part * part
    return table


def hashed(rows: Indices, copy: Indices | int, kappa: int) -> Indices:
    """The rows that `copy` of the codebook has in place of `rows`: a bijection; 0 changes none."""
    mask = (1 << kappa) - 1
    return rows * ((2 * copy * _HASH + 1) & mask) & mask


def stage_edges(dims: int, first_bits: int, stages: int, new_bits: int) -> Indices:
    """(stages + 2,) where each stage's dimensions begin: shares in proportion to their bits."""
    bits = np.append(0, first_bits + new_bits * np.arange(stages + 1, dtype=np.int64))
    return dims * bits // bits[-1]


def stage_metrics(
    linear: Floats, quadratic: Floats, edges: Indices, table: Singles, kappa: int
) -> Iterator[Singles]:
    """(2^kappa,) for each stage: the rows' parts of <linear, c> + <quadratic, c^2>.

    `linear`, `quadratic` (D,) in stage order, `edges` from `stage_edges`, `table` from `planes`.
    A metric is only good until the next one is asked for.
    """
    pieces = [
        (stage, copy, start, min(start + COLUMNS, int(edges[stage + 1])))
        for stage in range(len(edges) - 1)
        for copy, start in enumerate(
            range(int(edges[stage]), max(int(edges[stage + 1]), int(edges[stage]) + 1), COLUMNS)
        )
    ]
    every, metric, current = np.arange(1 << kappa), np.empty(0, dtype=np.float32), -1
    products = np.empty((min(_PIECES, len(pieces)), 1 << kappa), dtype=np.float32)
    for first in range(0, len(pieces), _PIECES):
        chunk = pieces[first : first + _PIECES]
        width = max(1, *(end - start for _, _, start, end in chunk))
        weights = np.zeros((len(chunk), 2 * width), dtype=np.float32)
        for row, (_, _, start, end) in zip(weights, chunk, strict=True):
            row[0 : 2 * (end - start) : 2] = linear[start:end]
            row[1 : 2 * (end - start) : 2] = quadratic[start:end]
        if first:
            metric = metric.copy()
        product = np.matmul(weights, table[: 2 * width], out=products[: len(chunk)])
        for values, (stage, copy, _, _) in zip(product, chunk, strict=True):
            if stage == current:
                metric += values[hashed(every, copy, kappa)]
                continue
            if current >= 0:
                yield metric
            metric, current = values, stage
    yield metric


def viterbi(metrics: Iterable[Singles], kappa: int, first_bits: int, new_bits: int) -> list[int]:
    """(stages,) rows of the path with the largest sum of `metrics`, each (2^kappa,).

    Of the first stage only rows below 2^first_bits are allowed. A stage's row is the window of
    the last kappa bits: its 2^new_bits predecessors differ in the bits that left.
    """
    ways, states = 1 << new_bits, 1 << (kappa - new_bits)
    score, choices = np.empty(0, dtype=np.float32), []
    for stage, metric in enumerate(metrics):
        if stage == 0:
            score = np.full(1 << kappa, -np.inf, dtype=np.float32)
            score[: 1 << first_bits] = metric[: 1 << first_bits]
            continue
        best, rounds = score.reshape(ways, states), []
        while len(best) > 1:
            rounds.append(best[1::2] > best[0::2])
            best = np.maximum(best[0::2], best[1::2])
        choices.append(rounds)
        score = (metric.reshape(states, ways) + best[0][:, None]).reshape(-1)
    path = [int(np.argmax(score))]
    for rounds in reversed(choices):
        state, came_by = path[-1] >> new_bits, 0
        for won in reversed(rounds):
            came_by = 2 * came_by + int(won[came_by, state])
        path.append(came_by << (kappa - new_bits) | state)
    return path[::-1]
