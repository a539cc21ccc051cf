"""Calibration: what a trained model's errors are, measured at every t.

The mean of p_theta(x_s | x_t) is off by x_0_weight (x_0 - x_0_hat); its best variance is
therefore beta_tilde + x_0_weight^2 times the expected squared error (Bao et al. 2022), and the
finer the expectation, the less KL: by frequency band, times what the variance head says of the
block. Measured on crops that the model was not trained on, and kept in the checkpoint.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import band_count, band_index, block_means, to_bands
from ddpm_codec.bound import BATCH_PIXELS, Bound, Progress, evaluate_bound
from ddpm_codec.diffusion import Calibration, DiffusionModel
from ddpm_codec.schedule import Array, Indices
from ddpm_codec.units import from_uint8

_LEAST_ERROR = 1e-12
_VALIDATION_GRID = 32
_VALIDATION_CALLS = 32


def calibrate(
    model: DiffusionModel,
    pixels: Tensor,
    generator: torch.Generator,
    timesteps: Indices | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the errors on crops `pixels` (N,C,H,W) uint8, every crop at every t.

    With `timesteps` only these are measured, and the logarithms of the tables interpolated in
    log SNR between them. `progress` is told of every batch of network calls.
    """
    schedule = model.schedule
    grid = np.arange(schedule.T, 0, -1) if timesteps is None else np.sort(timesteps)[::-1]
    rows = [_errors(model, pixels, int(t), generator, progress) for t in grid]
    mse, head, share, ratio = (np.array(column) for column in zip(*rows, strict=True))
    log_snr = schedule.log_snr

    def table(values: Array) -> Array:
        """(n, ...) at the grid to (T+1, ...) at every t, index 0 a repeat of t = 1."""
        at = np.clip(np.searchsorted(log_snr[grid], log_snr[1:]) - 1, 0, max(len(grid) - 2, 0))
        after = np.minimum(at + 1, len(grid) - 1)
        width = np.maximum(log_snr[grid][after] - log_snr[grid][at], 1e-300)
        share = np.clip((log_snr[1:] - log_snr[grid][at]) / width, 0, 1)
        share = share.reshape(-1, *[1] * (values.ndim - 1))
        logs = np.log(np.maximum(values, _LEAST_ERROR))
        every = np.exp(logs[at] * (1 - share) + logs[after] * share)
        return np.concatenate([every[:1], every])

    return Calibration(
        x_0_mse=table(mse),
        head_scale=table(head),
        band_share=table(share).astype(np.float16),
        band_ratio=table(ratio).astype(np.float16),
    )


def _errors(
    model: DiffusionModel,
    pixels: Tensor,
    t: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[float, float, Array, Array]:
    """At t, a row of every table: two passes' worth of sums from one set of calls."""
    images, channels = pixels.shape[:2]
    bands = band_index(*pixels.shape[1:])
    sums = torch.zeros(2, band_count(channels), dtype=torch.float64)
    squared, scaled = 0.0, 0.0
    for batch in pixels.split(max(1, BATCH_PIXELS // pixels[0, 0].numel())):
        x_0, t_ = from_uint8(batch), torch.full((len(batch),), t)
        eps = torch.randn(x_0.shape, generator=generator)
        estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
        error2 = (x_0 - estimate.x_0_hat) ** 2
        squared += float(error2.sum(dtype=torch.float64))
        coefficients2 = to_bands(x_0 - estimate.x_0_hat) ** 2
        rows = [coefficients2, coefficients2]
        if estimate.x_0_variance is not None:
            scaled += float((error2 / estimate.x_0_variance).sum(dtype=torch.float64))
            rows[1] = coefficients2 / block_means(estimate.x_0_variance)
        for total, row in zip(sums, rows, strict=True):
            total.index_add_(0, bands.flatten(), row.sum(dim=0, dtype=torch.float64).flatten())
        if progress is not None:
            progress(len(batch))
    mse, head = squared / pixels.numel(), scaled / pixels.numel() if scaled else 1.0
    share, ratio = (sums / (images * torch.bincount(bands.flatten()))).numpy()
    return mse, head, share / mse, ratio / (head if scaled else mse)


def validate(model: DiffusionModel, pixels: Tensor, seed: int = 0) -> Bound:
    """A quick bound while training goes on: half of `pixels` calibrates, the other half is coded.

    The same crops, timesteps and noise for the same `seed`, so that successive values compare.
    """
    generator = torch.Generator().manual_seed(seed)
    half = len(pixels) // 2
    grid = model.schedule.log_snr_grid(min(_VALIDATION_GRID, model.schedule.T))
    calibration = calibrate(model, pixels[:half], generator, grid)
    calibrated = replace(model, variance="calibrated", calibration=calibration)
    return evaluate_bound(calibrated, pixels[half:], generator, _VALIDATION_CALLS)
