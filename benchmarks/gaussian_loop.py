"""The closed loop on a Gaussian source: bits really spent over I(x_0; x_t).

    python benchmarks/gaussian_loop.py [--pictures N] [--coders a;b] [--out DIR]

Pictures are Gaussian with an image-like spectrum, independent in the bands, so that the denoiser is
known exactly, and so is the information: I(x_0; x_t) = 1/2 sum log2(1 + SNR_t lambda). Steps are
chosen so that each has about a block's worth of information. Prints bits over I at several t, and
the error of x_0_hat over its least value.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from walks import DiffCLike, coder_walk

from ddpm_codec.bands import band_count, band_index, from_bands, to_bands
from ddpm_codec.diffusion import Calibration, DiffusionModel
from ddpm_codec.relative_entropy import MaxProjection, PoissonFunctional, Trellis
from ddpm_codec.schedule import Schedule, ScheduleConfig
from ddpm_codec.unet import Prediction

SIDE = 32
LEVELS = (9.0, 6.0, 4.0, 2.0)
"""log SNR at which to compare."""
CODERS = {  # name: coder, variance, information of a step in bits
    "trellis 16, equal variances, 64": (Trellis(16), "beta_tilde", 57),
    "trellis 16, 64": (Trellis(16), "calibrated", 57),
    "trellis 16, 128": (Trellis(16), "calibrated", 117),
    "trellis 16, 256": (Trellis(16), "calibrated", 237),
    "trellis 18, 256": (Trellis(18), "calibrated", 240),
    "trellis 12, 128": (Trellis(12), "calibrated", 112),
    "max projection 12": (MaxProjection(12), "calibrated", 57),
    "DiffC-like": (DiffCLike(), "calibrated", 57),
    "pfr, at most 8": (PoissonFunctional(6.0, 1e-2, spread_bits=2.0), "calibrated", 57),
}
SLOW = ("DiffC-like", "pfr, at most 8")


def spectrum():
    """(3,H,W) the variance of each coefficient: falling with frequency, chroma weaker."""
    index = band_index(3, SIDE, SIDE)
    frequency = torch.hypot((index % 64 // 8).double(), (index % 8).double())
    chroma = (index >= 64).double()
    return 4.0 * (1 + frequency) ** -3.0 * (1 - 0.9 * chroma)


class ExactDenoiser:
    """E[x_0 | x_t] coefficient by coefficient, for N(0, lambda)."""

    def __init__(self, schedule, lambda_):
        self.schedule, self.lambda_ = schedule, lambda_

    def __call__(self, x_t, t):
        a = float(self.schedule.alpha_bar[int(t[0])])
        gain = a**0.5 * self.lambda_ / (a * self.lambda_ + 1 - a)
        return Prediction(from_bands(gain * to_bands(x_t)), None)


def model_of(schedule, lambda_, variance):
    snr = torch.from_numpy(np.maximum(schedule.snr[1:], 1e-12))
    index, by_band = band_index(3, SIDE, SIDE).flatten(), []
    for value in snr:
        error = (lambda_ / (1 + value * lambda_)).flatten()
        sums = torch.zeros(band_count(3), dtype=torch.float64).index_add_(0, index, error)
        by_band.append((sums / torch.bincount(index)).numpy())
    by_band = np.array([by_band[0], *by_band])
    mse = by_band.mean(axis=1)
    share = (by_band / mse[:, None]).astype(np.float16)
    table = Calibration(mse, np.ones(len(mse)), share, share, 0 * share)
    return DiffusionModel(ExactDenoiser(schedule, lambda_), schedule, "x_0", variance, table)


def grid_of(information, step_bits):
    """Timesteps falling from T to 1, about `step_bits` of information apart."""
    grid, T = [len(information) - 1], len(information) - 1
    while grid[-1] > 1:
        wanted = information[grid[-1]] + step_bits
        later = np.arange(1, grid[-1])
        grid.append(int(later[np.argmin(np.abs(information[later] - wanted))]))
    return np.array(grid) if grid[0] == T else None


@click.command()
@click.option("--pictures", default=8, show_default=True)
@click.option("--slow-pictures", default=2, show_default=True)
@click.option("--coders", default=";".join(CODERS), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("gaussian_loop"))
def main(pictures, slow_pictures, coders, out):
    out.mkdir(parents=True, exist_ok=True)
    schedule, lambda_ = Schedule(ScheduleConfig()), spectrum()
    snr = torch.from_numpy(np.append(0.0, schedule.snr[1:]))
    information = (0.5 * torch.log2(1 + snr[:, None] * lambda_.flatten())).sum(dim=1).numpy()
    rows = []
    for name in coders.split(";"):
        coder, variance, step_bits = CODERS[name]
        model, grid = model_of(schedule, lambda_, variance), grid_of(information, step_bits)
        spent, error = [], []
        for number in range(slow_pictures if name in SLOW else pictures):
            noise = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64,
                                generator=torch.Generator().manual_seed(1000 + number))  # fmt: skip
            x_0, total = from_bands(lambda_.sqrt() * noise), 0.0
            spent.append([])
            error.append([])
            for _, s, [coded], x_0_hat in coder_walk(model, x_0, grid, coder, [number]):
                total += coded.spent_bits + coded.side_bits
                spent[-1].append(total)
                least = (lambda_ / (1 + snr[s] * lambda_)).sum()
                error[-1].append(float(((x_0 - x_0_hat) ** 2).sum() / least))
        row = {"coder": name, "steps": len(grid) - 1}
        for level in LEVELS:
            at = int(np.argmin(np.abs(schedule.log_snr[grid[1:]] - level)))
            ratio = np.array(spent)[:, at] / information[grid[1 + at]]
            sem = ratio.std(ddof=1) / len(ratio) ** 0.5 if len(ratio) > 1 else float("nan")
            row[f"{information[grid[1 + at]]:.0f} bits"] = f"{ratio.mean():.3f} +- {sem:.3f}"
            row[f"error, {level:g}"] = f"{np.array(error)[:, at].mean():.3f}"
        rows.append(row)
        print("; ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    pd.DataFrame(rows).to_csv(out / "gaussian_loop.csv", index=False)


if __name__ == "__main__":
    main()
