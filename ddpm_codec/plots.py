"""Figures, from results; the only module that imports matplotlib."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from ddpm_codec.bound import Bound
from ddpm_codec.data import Pixels
from ddpm_codec.files import atomic
from ddpm_codec.rate_distortion import TABLE_4
from ddpm_codec.schedule import Array, Plan
from ddpm_codec.stepping import StepTable

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_OURS, _PAPER = "#1f5fa8", "#c4572a"
_PAPER_LABEL = "Ho et al. 2020, CIFAR-10 (Table 4)"


def _write(figure: Figure, path: Path) -> None:
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
    plt.close(figure)


def plot_bound(bound: Bound, path: Path) -> None:
    """Bits/dim of every visited L_{t-1} against t, and against log SNR per unit of it."""
    rows = pd.DataFrame(bound.per_timestep())
    log_snr, t = bound.model.schedule.log_snr, rows["t"].to_numpy()
    is_full = bound.timesteps == "all"
    line = {"color": _OURS, "lw": 1.2, "marker": None if is_full else ".", "ls": "-"}
    line["ls"] = "-" if is_full else "none"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(t, rows["kl_bpd"], **line)
    left.set(xscale="log", yscale="log", xlabel="t", ylabel="$L_{t-1}$ (bits/dim)")
    left.set_title("KL of each step")
    work = bound.terms.work
    step_to = dict(zip(work.t.tolist(), work.s.tolist(), strict=True))
    width = np.array([log_snr[step_to[u]] - log_snr[u] for u in t])
    right.plot(log_snr[t], rows["kl_bpd"] / width, **line)
    right.set(xlabel="log SNR (nats)", ylabel="bits/dim per nat of log SNR", ylim=(0, None))
    right.set_title("Where the rate goes: the area is the rate")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    report = bound.as_json()
    figure.suptitle(
        f"{report['total_bpd']:.3f} bits/dim = {report['rate_bpd']:.3f} rate "
        f"+ {report['decoder_bpd']:.3f} decoder ({report['images']} images)"
    )
    _write(figure, path)


def plot_rate_distortion(curve: pd.DataFrame, path: Path, label: str) -> None:
    """Figure 5's three panels for `curve` (see `expected_curve`), with the paper's Table 4."""
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 3.8), layout="constrained")
    rmse = "distortion (RMSE, 0..255)"
    rate = "rate (bits/dim)"
    wanted = [
        ("reverse_step", "rmse_255", "reverse process steps ($T-t+1$)", rmse),
        ("reverse_step", "rate_bpd", "reverse process steps ($T-t+1$)", rate),
        ("rate_bpd", "rmse_255", rate, rmse),
    ]
    for axes, (x, y, x_label, y_label) in zip(panels, wanted, strict=True):
        axes.plot(curve[x], curve[y], color=_OURS, lw=1.6, label=label)
        axes.plot(TABLE_4[x], TABLE_4[y], "o", ms=4, mfc="none", color=_PAPER, label=_PAPER_LABEL)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    _write(figure, path)


def plot_realised(expected: pd.DataFrame, realised: dict[str, pd.DataFrame], path: Path) -> None:
    """PSNR of x_0_hat against bits/dim: every coder's walk, and the T-step expectation."""
    figure, (low, high) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes in (low, high):
        axes.plot(
            expected["rate_bpd"], expected["psnr_db"], color="0.6", lw=3, label="T-step bound"
        )
        for name, curve in realised.items():
            style = "--" if name == "ideal" else "-"
            axes.plot(curve["rate_bpd"], curve["psnr_db"], style, marker=".", label=name)
        axes.set(xlabel="rate (bits/dim)", ylabel="PSNR of x_0_hat (dB)")
        axes.grid(alpha=0.3)
    top = float(np.interp(0.6, expected["rate_bpd"], expected["psnr_db"]))
    low.set(xlim=(0, 0.5), ylim=(None, top))
    low.set_title("first half bit a dimension")
    high.legend()
    _write(figure, path)


def plot_plan(table: StepTable, plan: Plan, log_snr: Array, path: Path) -> None:
    """Bits per nat of log SNR along the nodes of `table`, and the packets of `plan`."""
    x = log_snr[table.nodes]
    fine = np.diagonal(table.kl_bits, 1).mean(axis=0) / np.diff(x)
    ends, words = log_snr[plan.timesteps], plan.packet_bpd * table.dims
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(x[:-1], fine, color="0.6", lw=3, label=f"KL, {len(x) - 1} steps")
    left.stairs(words / np.diff(ends), ends, color=_OURS, label=f"packets, {plan.steps} steps")
    left.set(xlabel="log SNR (nats)", ylabel="bits per nat of log SNR", yscale="log")
    left.legend()
    right.plot(ends[1:], words, ".-", color=_OURS)
    right.set(xlabel="log SNR (nats) at the end of a step", ylabel="bits of a packet", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{plan.steps} steps, {words.sum():.0f} bits in {table.dims} dimensions")
    _write(figure, path)


def plot_training(log: pd.DataFrame, path: Path) -> None:
    """Loss (smoothed over 200 steps) and validation bits/dim against minutes of training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    minutes = log["seconds"] / 60
    left.plot(minutes, log["loss"], color=_OURS, lw=1)
    left.set(xlabel="minutes of training", ylabel="training loss", yscale="log")
    points = log["validation_bpd"].notna()
    right.plot(minutes[points], log["validation_bpd"][points], ".-", color=_OURS)
    right.set(xlabel="minutes of training", ylabel="validation bits/dim")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _write(figure, path)


def plot_images(rows: Pixels, path: Path, titles: list[str]) -> None:
    """A sheet of (R,K,H,W,3) uint8 pictures, K columns with `titles`, enlarged 3 times."""
    count, columns = rows.shape[:2]
    size = (0.9 * columns, 0.9 * count + 0.3)
    figure, grid = plt.subplots(count, columns, figsize=size, layout="constrained", squeeze=False)
    for r, line in enumerate(grid):
        for c, axes in enumerate(line):
            axes.imshow(rows[r, c], interpolation="nearest")
            axes.axis("off")
            if r == 0:
                axes.set_title(titles[c], fontsize=7)
    _write(figure, path)
