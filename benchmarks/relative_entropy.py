"""Every relative entropy coder on a Gaussian shift: bits, effective bits, law and time.

    python benchmarks/relative_entropy.py [--dims D] [--draws N] [--out DIR]

q = N(delta, I), p = N(0, I), delta uneven over the dimensions. Effective bits are what the mean
projection is worth, KL * projection^2: spent over effective is the overhead that counts.
Kolmogorov-Smirnov distances are against q, along the shift and across it.
"""

import time
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import kstest

from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.relative_entropy import (
    Dithered,
    Gaussian,
    MaxProjection,
    MinimalRandomCoding,
    OrderedRandomCoding,
    PoissonFunctional,
    Trellis,
)
from ddpm_codec.shared_randomness import SharedRandomness

CODERS = {
    "mrc 12": MinimalRandomCoding(12),
    "orc 12": OrderedRandomCoding(12),
    "pfr, at most 8": PoissonFunctional(6.0, epsilon=1e-2, spread_bits=2.0),
    "max projection 12": MaxProjection(12),
    "dithered": None,
    "trellis 12": Trellis(12),
    "trellis 16": Trellis(16),
    "trellis 16, b = 1": Trellis(16, 1),
    "trellis 18": Trellis(18),
}
KL_BITS = (1, 4, 8, 16, 64, 256, 512)


def problem(kl_bits, dims, rng):
    delta = rng.normal(size=dims) * np.exp(0.5 * rng.normal(size=dims))
    delta *= np.sqrt(2 * np.log(2) * kl_bits / (delta @ delta))
    return Gaussian(delta, np.ones(dims)), Gaussian(np.zeros(dims), np.ones(dims))


def measure(coder, kl_bits, dims, draws):
    rng, rows, along, across = np.random.default_rng(0), [], [], []
    for step in range(draws):
        q, p = problem(kl_bits, dims, rng)
        shared, writer = SharedRandomness(step, 1), BitWriter()
        began = time.perf_counter()
        coded = coder.encode(q, p, shared, 1, writer, rng)
        middle = time.perf_counter()
        coder.decode(p, shared, 1, BitReader(writer.getvalue(), writer.bits))
        seconds = (middle - began, time.perf_counter() - middle)
        rows.append((coded.spent_bits, coded.side_bits, coded.projection, *seconds))
        unit = q.mean / np.linalg.norm(q.mean)
        other = rng.normal(size=dims)
        other -= unit * (other @ unit)
        along.append((coded.sample - q.mean) @ unit)
        across.append(coded.sample @ other / np.linalg.norm(other))
    spent, side, projections, encode, decode = np.array(rows).T
    projection = projections.mean()
    return {
        "KL": kl_bits,
        "spent": spent.mean(),
        "side": side.mean(),
        "projection": projection,
        "projection_sem": projections.std(ddof=1) / np.sqrt(draws),
        "effective": kl_bits * projection**2,
        "overhead": spent.mean() / (kl_bits * projection**2) - 1,
        "ks_along": kstest(along, "norm").statistic,
        "ks_across": kstest(across, "norm").statistic,
        "encode_s": encode.mean(),
        "decode_s": decode.mean(),
    }


@click.command()
@click.option("--dims", default=3072, show_default=True)
@click.option("--draws", default=20, show_default=True)
@click.option("--kl", default=",".join(map(str, KL_BITS)), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("relative_entropy"))
def main(dims, draws, kl, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, coder in CODERS.items():
        coder = coder or Dithered(1, np.zeros(dims, dtype=int))
        for bits in map(int, kl.split(",")):
            rows.append({"coder": name} | measure(coder, bits, dims, draws))
            print(" ".join(f"{k} {v:.3g}" if k != "coder" else v for k, v in rows[-1].items()),
                  flush=True)  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(out / "relative_entropy.csv", index=False)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, part in table.groupby("coder", sort=False):
        axes.plot(part["KL"], 100 * part["overhead"], marker="o", ms=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="KL (bits)", ylabel="spent over effective bits (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(out / "relative_entropy.png", dpi=130)


if __name__ == "__main__":
    main()
