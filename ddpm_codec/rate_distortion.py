"""Rate-distortion curves: Table 4 and Figure 5 of Ho et al. 2020 for any model.

Expected curve: to hold x_t costs L_T + the sum of L_{u-1} over u > t, and buys the distortion
of x_0_hat(x_t), the root mean squared error over images and dimensions. Realised curve: what
walks along a plan spend and give, by the ideal coder and by real streams.
"""

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ddpm_codec.bound import Bound, Progress, evaluate_bound
from ddpm_codec.codec import ProgressiveCodec
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.distributed import ALONE, Workers
from ddpm_codec.errors import ConfigError
from ddpm_codec.schedule import Array
from ddpm_codec.sending import send
from ddpm_codec.units import HALF_RANGE_255, nats_to_bpd, rmse_to_psnr_db

TABLE_4 = pd.DataFrame(
    {
        "reverse_step": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
        "rate_bpd": [
            1.77581, 0.11994, 0.05415, 0.02866, 0.01507, 0.00716, 0.00282, 0.00081, 0.00013, 0.0
        ],
        "rmse_255": [
            0.95136, 12.02277, 18.47482, 24.43656, 30.80948, 38.03236, 46.12765, 54.18826,
            60.97170, 67.60125,
        ],
    }
)  # fmt: skip
"""Ho et al. 2020, Table 4: CIFAR-10 test set. A reference to plot, never a result."""


def expected_curve(bound: Bound) -> pd.DataFrame:
    """A row per t = T..1 of the full bound of N images.

    Columns reverse_step (T - t + 1), t, rate_bpd, rate_bpd_sem, rmse_255, rmse_255_sem, psnr_db.
    Standard errors are over images; that of the RMSE by the delta method. `bound` must hold
    every t (timesteps "all", steps T).
    """
    T, images = bound.model.schedule.T, len(bound.rate_nats)
    by_image = bound.terms.nats.reshape(images, T)[:, :-1]
    prior = bound.prior_nats[:, None]
    rate = nats_to_bpd(prior + np.cumsum(np.pad(by_image, ((0, 0), (1, 0))), axis=1), bound.dims)
    mse = bound.terms.clipped_mse.reshape(images, T)
    rmse = HALF_RANGE_255 * np.sqrt(mse.mean(axis=0))
    t = np.arange(T, 0, -1)
    return pd.DataFrame(
        {
            "reverse_step": T - t + 1,
            "t": t,
            "rate_bpd": rate.mean(axis=0),
            "rate_bpd_sem": _standard_errors(rate),
            "rmse_255": rmse,
            "rmse_255_sem": HALF_RANGE_255**2 * _standard_errors(mse) / (2 * rmse),
            "psnr_db": rmse_to_psnr_db(rmse),
        }
    )


def _standard_errors(values: Array) -> Array:
    """(T,) standard errors over the first axis of (N,T); NaN for a single image."""
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def table_4(curve: pd.DataFrame) -> pd.DataFrame:
    """The ten rows of Table 4: reverse_step at every tenth of T, falling."""
    T = len(curve)
    wanted = np.unique((np.arange(10, 0, -1) * T) // 10)[::-1]
    return curve.set_index("reverse_step").loc[wanted[wanted > 0]].reset_index()


def realised_curve(
    codec: ProgressiveCodec, pixels: Tensor, backend: str, progress: Progress | None = None
) -> pd.DataFrame:
    """What one walk a picture costs and gives, pictures (N,3,H,W) uint8.

    A row per timestep of the plan below T. Columns t; rate_bpd: bits per coded dimension (of grey
    pictures those of one plane) really spent until then, header and side information included (of
    the ideal coder: the KL of its walk); kl_bpd: the KL of the walk; psnr_db: of the mean squared
    error over pictures of x_0_hat(x_t), rounded to 8 bits; and the standard errors rate_bpd_sem
    and psnr_db_sem.
    """
    ledgers = [sent.ledger for sent in send(codec, pixels, backend=backend, progress=progress)]
    dims = ledgers[0].dims
    spent = np.array([[s.spent_bits + s.side_bits for s in ledger.steps] for ledger in ledgers])
    header = np.array([[ledger.header_bits] for ledger in ledgers])
    rate = (header + np.cumsum(spent, axis=1)) / dims
    kl = np.cumsum([[s.kl_bits for s in ledger.steps] for ledger in ledgers], axis=1) / dims
    psnr = [[np.inf if s.psnr_db is None else s.psnr_db for s in x.steps] for x in ledgers]
    mse = 255.0**2 / 10 ** (np.array(psnr) / 10)
    mean = mse.mean(axis=0)
    return pd.DataFrame(
        {
            "t": codec.plan.timesteps[1:],
            "rate_bpd": rate.mean(axis=0),
            "rate_bpd_sem": _standard_errors(rate),
            "kl_bpd": kl.mean(axis=0),
            "psnr_db": rmse_to_psnr_db(np.sqrt(mean)),
            "psnr_db_sem": 10 / np.log(10) * _standard_errors(mse) / mean,
        }
    )


def measure_curve(
    model: DiffusionModel,
    pixels: Tensor,
    generator: torch.Generator,
    progress: Progress | None = None,
    on_start: Progress | None = None,
    workers: Workers = ALONE,
) -> tuple[Bound, pd.DataFrame]:
    """The full bound of `pixels` (N,C,H,W) uint8 and its expected curve."""
    bound = evaluate_bound(
        model, pixels, generator, progress=progress, on_start=on_start, workers=workers
    )
    return bound, expected_curve(bound)


def bd_rate(rate: Array, psnr_db: Array, reference_rate: Array, reference_psnr_db: Array) -> float:
    """Mean difference in rate at equal PSNR, 0.1 for 10 % more than the reference (Bjontegaard
    2001, with monotone cubics in place of one polynomial, as is usual today).

    Log rate is interpolated over PSNR and averaged over the range that both curves cover.
    ConfigError where they share none, or a curve has fewer than two points.
    """
    curves = []
    for bits, quality in ((rate, psnr_db), (reference_rate, reference_psnr_db)):
        best = {
            float(q): float(b) for q, b in sorted(zip(quality, bits, strict=True), reverse=True)
        }
        if len(best) < 2:
            raise ConfigError("a curve needs two points of different PSNR")
        at = sorted(best)
        curves.append((at, PchipInterpolator(at, np.log([best[q] for q in at]))))
    low, high = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
    if low >= high:
        raise ConfigError("these curves share no range of PSNR")
    ours, theirs = (log_rate.integrate(low, high) / (high - low) for _, log_rate in curves)
    return float(np.expm1(ours - theirs))
