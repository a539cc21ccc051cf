"""The bound as improved-diffusion and guided-diffusion compute it, re-derived in numpy.

One image at a time, from betas and the network's eps, in float64 but for the decoder's float32:
indices i = t - 1 run from 0, the model's mean comes from a clipped x_0_hat, and index 0 takes the
posterior variance of index 1.
"""

import numpy as np


def tanh_cdf(x):
    return 0.5 * (1 + np.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3)))


class OpenAIBound:
    def __init__(self, betas, variance):
        self.betas = betas
        self.alphas_cumprod = np.cumprod(1 - betas)
        before = np.append(1.0, self.alphas_cumprod[:-1])
        self.posterior_variance = betas * (1 - before) / (1 - self.alphas_cumprod)
        self.x_0_weight = betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.x_t_weight = (1 - before) * np.sqrt(1 - betas) / (1 - self.alphas_cumprod)
        clipped = np.append(self.posterior_variance[1], self.posterior_variance[1:])
        large = np.append(self.posterior_variance[1], betas[1:])
        self.clipped_variance = clipped
        self.model_variance = clipped if variance == "beta_tilde" else large

    def learned_variance(self, v, i):
        """Between the clipped posterior variance and beta, in the logarithm, by v in -1..1."""
        least, most = np.log(self.clipped_variance[i]), np.log(self.betas[i])
        return np.exp((v + 1) / 2 * most + (1 - v) / 2 * least)

    def term_bpd(self, x_0, x_t, eps, i, v=None):
        """Bits/dim of index i: KL, or at i = 0 the decoder's negative log likelihood."""
        a = self.alphas_cumprod[i]
        x_0_hat = np.clip((x_t - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
        mean = self.x_0_weight[i] * x_0_hat + self.x_t_weight[i] * x_t
        variance = self.model_variance[i] if v is None else self.learned_variance(v, i)
        if i == 0:
            return -np.mean(self.log_likelihood(x_0, mean, np.sqrt(variance))) / np.log(2)
        true_mean = self.x_0_weight[i] * x_0 + self.x_t_weight[i] * x_t
        true_variance = self.clipped_variance[i]
        log_ratio = np.log(variance / true_variance)
        shift = (true_mean - mean) ** 2 / variance
        kl = 0.5 * (-1 + log_ratio + np.exp(-log_ratio) + shift)
        return np.mean(kl) / np.log(2)

    @staticmethod
    def log_likelihood(x, mean, std):
        x, mean, std = (np.asarray(v, dtype=np.float32) for v in (x, mean, std))
        upper = tanh_cdf((x - mean + 1 / 255) / std)
        lower = tanh_cdf((x - mean - 1 / 255) / std)
        assert upper.dtype == np.float32
        middle = np.log(np.maximum(upper - lower, 1e-12))
        top = np.log(np.maximum(1 - lower, 1e-12))
        bottom = np.log(np.maximum(upper, 1e-12))
        return np.where(x < -0.999, bottom, np.where(x > 0.999, top, middle))

    def prior_bpd(self, x_0):
        a = self.alphas_cumprod[-1]
        return np.mean(0.5 * (a * x_0**2 + (1 - a) - 1 - np.log(1 - a))) / np.log(2)
