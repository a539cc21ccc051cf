"""The variational bound, term by term: L_T, every L_{t-1}, L_0 (Ho et al. 2020, Eq. 5).

Three quantities, never confused: the T-step bound summed over every t; an unbiased estimate of
that same sum from K network calls an image; and the bound of another chain, of K steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.diffusion import DiffusionModel, Estimate, broadcast
from ddpm_codec.distributed import ALONE, Workers
from ddpm_codec.errors import ConfigError
from ddpm_codec.gaussian import excess_kl_nats, sum_dims
from ddpm_codec.schedule import Array, Indices
from ddpm_codec.units import HALF_RANGE_255, from_uint8, nats_to_bpd

Progress = Callable[[int], object]

BATCH_PIXELS = 1 << 14
"""Pixels in one network call: few enough for the activations of `small` to stay in a CPU's cache,
which on two cores makes a call of 16 patches 1.6 times as fast a patch as one of 128."""
_GPU_BATCH_PIXELS = 1 << 18


class Work(NamedTuple):
    """Network calls to make, flat arrays (M,): image, t, the s that t steps to (0: the decoder),
    and the weight with which the term enters its image's sum."""

    image: Indices
    t: Indices
    s: Indices
    weight: Array


@dataclass(frozen=True)
class Terms:
    """What the calls of a `Work` gave, flat arrays (M,).

    `nats`: KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t)), or -log p_theta(x_0 | x_t) where s = 0.
    `mse`, `clipped_mse`: |x_0 - x_0_hat|^2 / D, and with x_0_hat clipped to [-1, 1].
    """

    work: Work
    nats: Array
    mse: Array
    clipped_mse: Array

    def by_image(self, t: int) -> tuple[Array, Array, Array]:
        """The three at t, (images,) each, for the images that visited it: an image may have drawn
        a t more than once, and counts as one by the mean of its calls."""
        at = np.flatnonzero(self.work.t == t)
        _, image = np.unique(self.work.image[at], return_inverse=True)
        nats, mse, clipped_mse = (
            np.bincount(image, values[at]) / np.bincount(image)
            for values in (self.nats, self.mse, self.clipped_mse)
        )
        return nats, mse, clipped_mse


@dataclass(frozen=True)
class Bound:
    """The bound of N images, in nats per image (N,), with the terms it was summed from.

    `timesteps`: calls an image, or "all"; `steps`: the length of the chain.
    """

    model: DiffusionModel
    dims: int
    timesteps: int | Literal["all"]
    steps: int
    prior_nats: Array
    rate_nats: Array
    decoder_nats: Array
    terms: Terms

    @property
    def total_nats(self) -> Array:
        """(N,) rate + decoder; the prior's L_T is part of the rate."""
        return self.rate_nats + self.decoder_nats

    def as_json(self) -> dict[str, Any]:
        """The contract of `nll --json`: bits per dimension, standard errors over images."""
        report: dict[str, Any] = {
            "images": len(self.rate_nats),
            "dims": self.dims,
            "timesteps": self.timesteps,
            "steps": self.steps,
            "variance": self.model.variance,
            "pixels": "dependent" if self.model.conditional else "independent",
        }
        for name in ("total", "prior", "rate", "decoder"):
            bpd = nats_to_bpd(getattr(self, f"{name}_nats"), self.dims)
            report[f"{name}_bpd"] = float(bpd.mean())
            report[f"{name}_bpd_sem"] = standard_error(bpd)
        report["per_timestep"] = self.per_timestep()
        return report

    def per_timestep(self) -> list[dict[str, Any]]:
        """A row for every t >= 2 that was visited: means over the images that visited it."""
        work, schedule = self.terms.work, self.model.schedule
        rows = []
        for t in np.unique(work.t[work.t >= 2])[::-1]:
            nats, mse, clipped = self.terms.by_image(int(t))
            kl_bpd = nats_to_bpd(nats, self.dims)
            rows.append(
                {
                    "t": int(t),
                    "kl_bpd": float(kl_bpd.mean()),
                    "kl_bpd_sem": standard_error(kl_bpd),
                    "eps_mse": float(schedule.snr[t] * mse.mean()),
                    "x0_rmse_255": HALF_RANGE_255 * float(clipped.mean()) ** 0.5,
                    "images": len(nats),
                }
            )
        return rows


def standard_error(values: Array) -> float | None:
    """Standard deviation over sqrt(N); None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def prior_nats(model: DiffusionModel, x_0: Tensor) -> Array:
    """(N,) L_T = KL(q(x_T | x_0) || N(0, I)) in nats."""
    v, alpha_bar = float(model.schedule.variance[-1]), float(model.schedule.alpha_bar[-1])
    dims = x_0[0].numel()
    shift2 = alpha_bar * sum_dims(x_0.double() ** 2).numpy()
    return np.asarray(0.5 * (shift2 + dims * (v - 1 - np.log(v))))


def step_kl_nats(
    model: DiffusionModel, estimate: Estimate, x_0: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """(N,) KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t)) for 1 <= s < t, x_0 (N,C,H,W).

    The means differ by x_0_weight (x_0 - x_0_hat), and x_0_weight^2 / beta_tilde is
    SNR_s - SNR_t, so that with beta_tilde this is 1/2 (SNR_s - SNR_t) |x_0 - x_0_hat|^2.
    """
    snr = model.schedule.snr
    gain = broadcast(snr[s.cpu().numpy()] - snr[t.cpu().numpy()], torch.arange(len(t)), x_0)
    shift2 = gain * model.coordinates(x_0 - estimate.x_0_hat) ** 2
    return sum_dims(excess_kl_nats(model.reverse_excess(estimate, t, s), shift2))


def evaluate(
    model: DiffusionModel,
    pixels: Tensor,
    work: Work,
    generator: torch.Generator,
    progress: Progress | None = None,
    workers: Workers = ALONE,
) -> Terms:
    """Make the calls: x_t drawn afresh for each from q(x_t | x_0), then the exact term.

    `pixels` (N,C,H,W) uint8. Noise comes from `generator` in the order of `work`; several
    `workers` draw all of it and take turns with the batches.
    """
    dims = pixels[0].numel()
    most = _GPU_BATCH_PIXELS if workers.device.type == "cuda" else BATCH_PIXELS
    size = max(1, most // pixels[0, 0].numel())
    values = np.zeros((3, len(work.t)))
    for number, start in enumerate(range(0, len(work.t), size)):
        part = slice(start, start + size)
        x_0 = pixels[torch.from_numpy(work.image[part])]
        eps = torch.randn(x_0.shape, generator=generator)
        if number % workers.count == workers.rank:
            batch = x_0.to(workers.device), eps.to(workers.device)
            values[:, part] = _evaluate_batch(model, *batch, work.t[part], work.s[part])
        if progress is not None:
            progress(len(x_0))
    nats, squared, clipped = workers.sum_arrays(values)
    return Terms(work, nats, squared / dims, clipped / dims)


def _evaluate_batch(
    model: DiffusionModel,
    pixels: Tensor,
    eps: Tensor,
    t: Indices,
    s: Indices,
) -> tuple[Array, Array, Array]:
    x_0, t_ = from_uint8(pixels), torch.from_numpy(t).to(pixels.device)
    estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
    x_0_hat = estimate.x_0_hat
    squared = sum_dims((x_0 - x_0_hat) ** 2).cpu().numpy()
    clipped = sum_dims((x_0 - x_0_hat.clamp(-1, 1)) ** 2).cpu().numpy()
    last = np.flatnonzero(s == 0)
    nats = np.empty(len(t))
    if len(steps := np.flatnonzero(s)):
        at = torch.from_numpy(steps)
        s_ = torch.from_numpy(s[steps])
        nats[steps] = step_kl_nats(model, estimate.at(at), x_0[at], t_[at], s_).cpu().numpy()
    if len(last):
        decoder = model.decoder(estimate.at(torch.from_numpy(last)), t_[last])
        nats[last] = -decoder.log_prob_nats(pixels[last]).cpu().numpy()
    return nats, squared, clipped


def chain_work(images: int, grid: Indices) -> Work:
    """Every step of the chain `grid`, falling from T to 1, for every image."""
    steps = len(grid)
    return Work(
        image=np.repeat(np.arange(images), steps),
        t=np.tile(grid, images),
        s=np.tile(np.append(grid[1:], 0), images),
        weight=np.ones(images * steps),
    )


def expected_kl(model: DiffusionModel) -> Array:
    """(T+1,) about E[L_{t-1}] / D in nats for t >= 2, 0 elsewhere: shares for sampling.

    1/2 (SNR_{t-1} - SNR_t) E|x_0 - x_0_hat|^2 / D, with the calibration's error where there is
    one, else that of a Gaussian source of variance 1/4.
    """
    snr = model.schedule.snr
    mse = 1 / (4 + snr[1:])
    if model.calibration is not None:
        mse = model.calibration.x_0_mse[1:]
    return np.concatenate([[0.0, 0.0], 0.5 * -np.diff(snr[1:]) * mse[1:]])


def sampled_work(
    model: DiffusionModel, images: int, calls: int, generator: torch.Generator
) -> Work:
    """About `calls` calls an image whose weighted sum estimates the T-step sum without bias.

    Every t whose expected share of the KL is above 1 / calls is evaluated exactly, and so is
    L_0; the others are cut into strata of equal expected KL, and each image draws one t from
    each, with weight 1 / (strata * probability of t).
    """
    share = expected_kl(model) / expected_kl(model).sum()
    exact = np.flatnonzero(share > 1 / calls)
    rest = np.where(share > 1 / calls, 0.0, share)
    strata = max(1, calls - len(exact) - 1) if rest.any() else 0
    cumulative = np.cumsum(rest)
    u = torch.rand(images, strata, generator=generator, dtype=torch.float64).numpy()
    u = (np.arange(strata) + u) * cumulative[-1] / max(1, strata)
    drawn = np.searchsorted(cumulative, u, side="right").clip(max=rest.nonzero()[0].max(initial=0))
    fixed = np.broadcast_to(np.append(exact, 1), (images, len(exact) + 1))
    t = np.concatenate([fixed, drawn], axis=1)
    weight = np.ones(t.shape)
    weight[:, fixed.shape[1] :] = cumulative[-1] / (strata * rest[drawn]) if strata else 1.0
    image = np.repeat(np.arange(images), t.shape[1])
    return Work(image, t.ravel(), t.ravel() - 1, weight.ravel())


def evaluate_bound(
    model: DiffusionModel,
    pixels: Tensor,
    generator: torch.Generator,
    timesteps: int | Literal["all"] = "all",
    steps: int | None = None,
    progress: Progress | None = None,
    on_start: Progress | None = None,
    workers: Workers = ALONE,
) -> Bound:
    """The bound of `pixels` (N,C,H,W) uint8.

    `steps` = K: the bound of the K-step chain on `Schedule.log_snr_grid(K)`. Otherwise the
    T-step bound, from every t ("all") or estimated from `timesteps` calls an image.
    `on_start` is told the number of network calls, `progress` each batch of them. Several
    `workers` share the calls; each gets the same result, of the same digits as one alone.
    """
    T, images = model.schedule.T, len(pixels)
    if timesteps != "all" and timesteps < 1:
        raise ConfigError(f"--timesteps {timesteps}: choose a number from 1 to {T}, or all")
    if steps is not None:
        work, timesteps = chain_work(images, model.schedule.log_snr_grid(steps)), "all"
    elif timesteps == "all" or timesteps >= T:
        work, timesteps = chain_work(images, np.arange(T, 0, -1)), "all"
    else:
        work = sampled_work(model, images, timesteps, generator)
    if on_start is not None:
        on_start(len(work.t))
    terms = evaluate(model, pixels, work, generator, progress, workers)
    weighted = work.weight * terms.nats
    prior = prior_nats(model, from_uint8(pixels))
    is_kl = work.s > 0
    return Bound(
        model=model,
        dims=pixels[0].numel(),
        timesteps=timesteps,
        steps=steps or T,
        prior_nats=prior,
        rate_nats=prior + np.bincount(work.image[is_kl], weighted[is_kl], minlength=images),
        decoder_nats=np.bincount(work.image[~is_kl], weighted[~is_kl], images).astype(np.float64),
        terms=terms,
    )
