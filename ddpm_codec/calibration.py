"""Calibration: what a trained model's errors are, measured at every t.

The mean of p_theta(x_s | x_t) is off by x_0_weight (x_0 - x_0_hat); its best variance is
therefore beta_tilde + x_0_weight^2 times the expected squared error (Bao et al. 2022), and the
finer the expectation, the less KL: by frequency band, times a power of what the variance head says
of the block, a power for every band: the lowest frequencies follow it least. Measured on crops that
the model was not trained on, and kept in the checkpoint.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import BLOCK, band_count, band_index, block_means, to_bands
from ddpm_codec.bound import BATCH_PIXELS, Bound, Progress, evaluate_bound
from ddpm_codec.conditional import Floats32, PixelFit
from ddpm_codec.diffusion import Calibration, DiffusionModel, broadcast
from ddpm_codec.errors import ConfigError
from ddpm_codec.schedule import Array, Indices
from ddpm_codec.units import from_uint8

_LEAST_ERROR = 1e-12
_POWER_STEP = 0.125
_POWERS: Array = np.linspace(0, 12 * _POWER_STEP, 13)
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
    log SNR between them. `progress` is told of every batch of network calls. ConfigError for crops
    that lack some of the bands.
    """
    check_side(min(pixels.shape[2:]))
    schedule = model.schedule
    grid = np.arange(schedule.T, 0, -1) if timesteps is None else np.sort(timesteps)[::-1]
    rows = [_errors(model, pixels, int(t), generator, progress) for t in grid]
    mse, head, share, ratio, power = (np.array(column) for column in zip(*rows, strict=True))
    log_snr = schedule.log_snr

    def every(values: Array) -> Array:
        """(n, ...) at the grid to (T+1, ...) at every t, index 0 a repeat of t = 1."""
        at = np.clip(np.searchsorted(log_snr[grid], log_snr[1:]) - 1, 0, max(len(grid) - 2, 0))
        after = np.minimum(at + 1, len(grid) - 1)
        width = np.maximum(log_snr[grid][after] - log_snr[grid][at], 1e-300)
        share = np.clip((log_snr[1:] - log_snr[grid][at]) / width, 0, 1)
        share = share.reshape(-1, *[1] * (values.ndim - 1))
        between = values[at] * (1 - share) + values[after] * share
        return np.concatenate([between[:1], between])

    def by_logarithm(values: Array) -> Array:
        return np.exp(every(np.log(np.maximum(values, _LEAST_ERROR))))

    tables = Calibration(
        x_0_mse=by_logarithm(mse),
        head_scale=by_logarithm(head),
        band_share=by_logarithm(share).astype(np.float16),
        band_ratio=by_logarithm(ratio).astype(np.float16),
        band_power=every(power).astype(np.float16),
    )
    weights, spread = pixel_tables(replace(model, calibration=tables), pixels, generator)
    return replace(tables, pixel_weights=weights, pixel_spread=spread)


def check_side(side: int) -> None:
    """Raise ConfigError for crops of a side without a whole block of the bands."""
    if side < BLOCK:
        raise ConfigError(
            f"crops of {side} pixels: calibration and validation need {BLOCK} or more"
        )


def pixel_tables(
    model: DiffusionModel, pixels: Tensor, generator: torch.Generator, t: int = 1
) -> tuple[Floats32, Floats32]:
    """How pixels depend on each other at t: the `weights` and `spread` of a `ConditionalGaussian`,
    from crops `pixels` (N,C,H,W) uint8."""
    fit = PixelFit(pixels.shape[1])
    for batch in pixels.split(max(1, BATCH_PIXELS // pixels[0, 0].numel())):
        x_0, t_ = from_uint8(batch), torch.full((len(batch),), t)
        eps = torch.randn(x_0.shape, generator=generator)
        estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
        variance = model.pixel_variance(estimate, t_).expand_as(x_0)
        fit.add(batch, estimate.x_0_hat, variance, broadcast(model.schedule.variance, t_, x_0))
    return fit.tables()


def _errors(
    model: DiffusionModel,
    pixels: Tensor,
    t: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[float, float, Array, Array, Array]:
    """At t, a row of every table, from one set of calls."""
    images, channels = pixels.shape[:2]
    bands = band_index(*pixels.shape[1:]).flatten()
    sums = torch.zeros(len(_POWERS), band_count(channels), dtype=torch.float64)
    logs, squared, scaled = torch.zeros_like(sums[0]), 0.0, 0.0
    for batch in pixels.split(max(1, BATCH_PIXELS // pixels[0, 0].numel())):
        x_0, t_ = from_uint8(batch), torch.full((len(batch),), t)
        eps = torch.randn(x_0.shape, generator=generator)
        estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
        error2 = (x_0 - estimate.x_0_hat) ** 2
        squared += float(error2.sum(dtype=torch.float64))
        coefficients2 = to_bands(x_0 - estimate.x_0_hat).double() ** 2
        log_v = torch.zeros_like(coefficients2)
        if estimate.x_0_variance is not None:
            scaled += float((error2 / estimate.x_0_variance).sum(dtype=torch.float64))
            log_v = block_means(estimate.x_0_variance).double().log().expand_as(x_0)
        relative, step = coefficients2, torch.exp(-_POWER_STEP * log_v)
        for row in sums:
            row.index_add_(0, bands, relative.sum(dim=0).flatten())
            relative = relative * step
        logs.index_add_(0, bands, log_v.sum(dim=0).flatten())
        if progress is not None:
            progress(len(batch))
    mse, head = squared / pixels.numel(), scaled / pixels.numel() if scaled else 1.0
    count = images * torch.bincount(bands)
    means, mean_log = (sums / count).numpy(), (logs / count).numpy()
    if not scaled:
        return mse, head, means[0] / mse, means[0] / mse, np.zeros_like(mean_log)
    best = _likeliest(means, mean_log)
    power = _POWERS[best]
    ratio = means[best, np.arange(len(best))] * (mse / head) ** power / mse
    return mse, head, means[0] / mse, ratio, power


def _likeliest(means: Array, log_v: Array) -> Indices:
    """(bands,) the place in _POWERS of the most likely power g, for variances c v^g of Gaussians:
    least log c + g E[log v], with c = E[r^2 / v^g] (P, bands) from `means`."""
    return np.argmin(np.log(np.maximum(means, _LEAST_ERROR)) + _POWERS[:, None] * log_v, axis=0)


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
