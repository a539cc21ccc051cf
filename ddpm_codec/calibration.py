"""Calibration: what a trained model's errors are, measured at every t.

The mean of p_theta(x_s | x_t) is off by x_0_weight (x_0 - x_0_hat); its best isotropic
variance is therefore beta_tilde + x_0_weight^2 E|x_0 - x_0_hat|^2 / D (Bao et al. 2022). The
expectation is measured on crops that the model was not trained on, and kept in the checkpoint.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bound import BATCH_PIXELS, Bound, Progress, evaluate_bound
from ddpm_codec.diffusion import Calibration, DiffusionModel
from ddpm_codec.schedule import Array, Indices
from ddpm_codec.units import from_uint8

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
    log_mse, log_scale = np.log(np.array(rows)).T
    log_snr = schedule.log_snr

    def table(values: Array) -> Array:
        every = np.interp(log_snr[1:], log_snr[grid], values)
        return np.concatenate([[1.0], np.exp(every)])

    return Calibration(x_0_mse=table(log_mse), head_scale=table(log_scale))


def _errors(
    model: DiffusionModel,
    pixels: Tensor,
    t: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[float, float]:
    """(E|x_0 - x_0_hat|^2 / D, the mean of squared error over the head's variance) at t."""
    squared, scaled = 0.0, 0.0
    for batch in pixels.split(max(1, BATCH_PIXELS // pixels[0, 0].numel())):
        x_0, t_ = from_uint8(batch), torch.full((len(batch),), t)
        eps = torch.randn(x_0.shape, generator=generator)
        estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
        error2 = (x_0 - estimate.x_0_hat) ** 2
        squared += float(error2.sum(dtype=torch.float64))
        if estimate.x_0_variance is not None:
            scaled += float((error2 / estimate.x_0_variance).sum(dtype=torch.float64))
        if progress is not None:
            progress(len(batch))
    dims = pixels.numel()
    return squared / dims, scaled / dims if scaled else 1.0


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
