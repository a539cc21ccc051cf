"""A white Gaussian source with its exact denoiser: every quantity has a closed form."""

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.diffusion import Calibration
from ddpm_codec.schedule import Schedule
from ddpm_codec.unet import Prediction


class ExactDenoiser:
    """E[x_0 | x_t] for x_0 ~ N(0, variance I): x_0_hat = sqrt(alpha_bar) v / (...) x_t."""

    def __init__(self, schedule: Schedule, variance: float = 1.0) -> None:
        self.schedule, self.variance = schedule, variance

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        a = self.schedule.alpha_bar[t.numpy()]
        gain = np.sqrt(a) * self.variance / (a * self.variance + 1 - a)
        return Prediction(torch.from_numpy(gain).view(-1, 1, 1, 1) * x_t, None)

    def mse(self) -> np.ndarray:
        """(T+1,) the least mean squared error of x_0 given x_t, per dimension."""
        a = self.schedule.alpha_bar
        return self.variance * (1 - a) / (a * self.variance + 1 - a)


def white_calibration(x_0_mse: np.ndarray, channels: int = 1) -> Calibration:
    """The calibration of errors that are white, (T+1,) each."""
    flat = np.ones((len(x_0_mse), 64 * channels), dtype=np.float16)
    return Calibration(x_0_mse, np.ones(len(x_0_mse)), flat, flat, 0 * flat)


def betas_even_in_log_snr(steps: int, log_snr_1: float, log_snr_T: float) -> np.ndarray:
    """The (steps,) betas whose chain is even in log SNR between the two ends."""
    alpha_bar = 1 / (1 + np.exp(-np.linspace(log_snr_1, log_snr_T, steps)))
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
