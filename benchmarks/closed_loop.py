"""Real streams against the full T-step bound, at equal achieved PSNR.

    python benchmarks/closed_loop.py [--data D] [--limit N] [--walks W] [--runs 'a;b'] [--out DIR]

The yardstick: the ideal coder (exact draws of q, their KL charged) walks every timestep of the
chain, W times a picture; bits and squared error of x_0_hat are averaged over its walks at every t.
A stream is compared with it at the PSNR that the stream really has after each packet. Bits are
those of the packets, side information included; header and checksum are listed apart. The
yardstick's walks are kept in DIR.
"""

import hashlib
import os
import time
from multiprocessing import get_context
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from walks import DiffCLike, coder_walk, overhead

from ddpm_codec.bound import step_kl_nats
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.codec import ProgressiveCodec
from ddpm_codec.data import load_batch
from ddpm_codec.files import atomic
from ddpm_codec.ledger import Ledger, Step
from ddpm_codec.outgoing import psnr_db
from ddpm_codec.reverse import reverse_chain
from ddpm_codec.sending import send
from ddpm_codec.units import NATS_PER_BIT, from_uint8, to_uint8

POINTS_BITS = (300, 1000, 3000)
PICTURES_A_CALL = 16
RUNS = {  # name: backend, parameter, rate of constant-rate stepping
    "trellis 16": ("trellis", 16, 0),
    "trellis 18": ("trellis", 18, 0),
    "trellis 12": ("trellis", 12, 0),
    "trellis 16, constant 64": ("trellis", 16, 64),
    "max projection 12": ("max_projection", 12, 0),
    "orc 12": ("orc", 12, 0),
    "mrc 12": ("mrc", 12, 0),
    "DiffC-like": ("diffc", 0, 0),
    "pfr, at most 8": ("pfr", 6, 0),
    "dithered": ("dithered", 0, 0),
}
SLOW = ("pfr", "diffc")
"""Backends that take ten seconds a picture and more."""


def reference_walk(codec, pixels, coder):
    """Ledgers of pictures that `coder` walks along the plan, without a stream."""
    ledgers = [Ledger(picture.numel(), 0) for picture in pixels]
    for first in range(0, len(pixels), PICTURES_A_CALL):
        part = slice(first, first + PICTURES_A_CALL)
        x_0, some = from_uint8(pixels[part]), range(len(pixels))[part]
        for t, s, coded, x_0_hat in coder_walk(codec.model, x_0, codec.plan.timesteps, coder, some):
            for number, one, shown in zip(some, coded, to_uint8(x_0_hat), strict=True):
                ledgers[number].steps.append(Step.of(t, s, one))
                ledgers[number].steps[-1].psnr_db = psnr_db(pixels[number], shown)
    return ledgers


def picture_mse(pixels, x_0_hat):
    """(N,) of x_0_hat rounded to 8 bits, 0..255 units."""
    return ((to_uint8(x_0_hat).double() - pixels.double()) ** 2).mean(dim=(1, 2, 3)).numpy()


def ideal_walk(job):
    """One walk of n pictures in a process of its own, on one thread: (2, T, n), at t = T..1 the KL
    until x_t in bits and the squared error of x_0_hat(x_t) in 0..255 units; kept in `path`."""
    ckpt, bfloat16, pixels, seed, path = job
    if path.exists():
        return np.load(path)
    torch.set_num_threads(1)
    source = load(ckpt) if ckpt else load_bundled()
    model, generator = source.model("calibrated", bfloat16=bfloat16), torch.Generator()
    T, x_0, spent = model.schedule.T, from_uint8(pixels), np.zeros(len(pixels))
    tables = np.zeros((2, T, len(pixels)))
    x_T = torch.randn(x_0.shape, generator=generator.manual_seed(seed))
    walk = reverse_chain(model, x_T, torch.full((len(x_0),), T))
    step = next(walk)
    for row in range(T):
        tables[:, row] = spent, picture_mse(pixels, step.x_0_hat)
        if row == T - 1:
            break
        s = step.t - 1
        spent = spent + step_kl_nats(model, step.estimate, x_0, step.t, s).numpy() / NATS_PER_BIT
        step = walk.send((s, model.posterior(x_0, step.x_t, step.t, s).sample(generator)))
    with atomic(path) as partial, partial.open("wb") as file:
        np.save(file, tables)
    return tables


def walk_name(source, bfloat16, pixels, seed):
    """The name under which a walk is kept: another model or other pictures have another one."""
    digest = hashlib.sha256(f"{source.hash} {bfloat16} {seed}".encode() + pixels.numpy().tobytes())
    return f"ideal_{digest.hexdigest()[:16]}.npy"


def ideal_walks(ckpt, bfloat16, pixels, walks, out):
    """(bits, mse), each (T, N): those of `ideal_walk`, means over the walks."""
    source, parts = load(ckpt) if ckpt else load_bundled(), pixels.split(PICTURES_A_CALL)
    jobs = []
    for number, part in enumerate(parts):
        for walk in range(walks):
            seed = walk * len(parts) + number
            path = out / walk_name(source, bfloat16, part, seed)
            jobs.append((ckpt, bfloat16, part, seed, path))
    with get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        tables = pool.map(ideal_walk, jobs, chunksize=1)
    by_part = [np.mean(tables[i : i + walks], axis=0) for i in range(0, len(jobs), walks)]
    return np.concatenate(by_part, axis=2)


def ideal_bits_at(psnr, bits, mse):
    """The ideal coder's bits for a PSNR, one picture: between its points, beyond the last along
    the slope of the last two decibels."""
    curve = np.maximum.accumulate(psnr_of(np.maximum(mse, 1e-3)))
    keep = np.concatenate([[True], np.diff(curve) > 0])
    x, y = curve[keep], bits[keep]
    if psnr <= x[-1]:
        return float(np.interp(psnr, x, y))
    first = min(np.searchsorted(x, x[-1] - 2.0), len(x) - 2)
    slope = (y[-1] - y[first]) / (x[-1] - x[first])
    return float(y[-1] + slope * (psnr - x[-1]))


def steps_of(ledger):
    """Cumulative packet bits and the PSNR after each packet."""
    spent = np.cumsum([s.spent_bits + s.side_bits for s in ledger.steps])
    psnr = np.array([60.0 if s.psnr_db is None else s.psnr_db for s in ledger.steps])
    return spent, psnr


def compare(ledgers, bits, mse):
    """For each budget (None: the whole walk): real and ideal bits of every picture, at the last
    packet within the budget."""
    rows = {}
    for budget in (*POINTS_BITS, None):
        real, ideal = [], []
        for picture, ledger in enumerate(ledgers):
            spent, psnr = steps_of(ledger)
            last = len(spent) - 1 if budget is None else np.searchsorted(spent, budget, "right") - 1
            if last < 0 or (budget is not None and spent[-1] < budget):
                continue
            real.append(spent[last])
            ideal.append(ideal_bits_at(psnr[last], bits[:, picture], mse[:, picture]))
        rows[budget] = np.array([real, ideal])
    return rows


def plan_mse(ledgers):
    """(steps, N) squared error of x_0_hat after each packet."""
    return np.array([255.0**2 / 10 ** (steps_of(x)[1] / 10) for x in ledgers]).T


def rmse_ratios(ledgers, exact):
    """Over the steps of the plan: RMSE of x_0_hat over that of exact draws of q, and its standard
    error over pictures; `exact` (steps, N) is the mean of several walks."""
    real = plan_mse(ledgers)
    exact = exact[:, : real.shape[1]]
    ratio = np.sqrt(real.mean(axis=1) / exact.mean(axis=1))
    spread = (real / real.mean(axis=1)[:, None] - exact / exact.mean(axis=1)[:, None]).std(axis=1)
    return ratio, 0.5 * spread / np.sqrt(real.shape[1])


def psnr_of(mse):
    """dB of a squared error in 0..255 units."""
    return 20 * np.log10(255) - 10 * np.log10(mse)


def ledgers_of(codec, pixels, backend, parameter, rate):
    """What one coder does with the pictures."""
    if backend == "diffc":
        return reference_walk(codec, pixels, DiffCLike())
    return [s.ledger for s in send(codec, pixels, None, backend, parameter, rate_bits=rate)]


def bits_row(ledgers, bits, mse):
    """Where the bits go, and the overhead at every budget."""
    steps = [s for x in ledgers for s in x.steps]
    row = {
        "packets": len(steps) / len(ledgers),
        "side bits": sum(s.side_bits for s in steps) / len(ledgers),
        "frame bits": np.mean([x.header_bits + x.checksum_bits for x in ledgers]),
    }
    for budget, (real, ideal) in compare(ledgers, bits, mse).items():
        label = "t = 1" if budget is None else f"{budget} bits"
        value, error = overhead(real, ideal)
        row[f"over, {label}"] = f"{100 * value:+.1f} +- {100 * error:.1f} %"
    psnr = np.array([steps_of(x)[1][-1] for x in ledgers])
    difference = psnr - psnr_of(mse[-1, : len(ledgers)])
    effective = sum(s.kl_bits * s.projection**2 for s in steps)
    words, kl = sum(s.spent_bits for s in steps), sum(s.kl_bits for s in steps)
    return row | {
        "PSNR over ideal's": f"{difference.mean():+.2f} dB",
        "words over effective": f"{100 * (words / effective - 1):+.1f} %",
        "KL over ideal's": f"{100 * (kl / bits[-1, : len(ledgers)].sum() - 1):+.1f} %",
    }


def rmse_row(name, timesteps, ledgers, exact, out):
    """The error of x_0_hat against exact draws; every t of it in a file."""
    ratio, error = rmse_ratios(ledgers, exact)
    np.savetxt(out / f"rmse_{name.replace(' ', '_')}.csv",
               np.stack([timesteps, ratio, error], axis=1), delimiter=",",
               header="t,rmse_ratio,sem")  # fmt: skip
    worst = int(np.argmax(np.abs(ratio - 1)))
    text = f"{100 * (np.sqrt(np.mean((ratio - 1) ** 2))):.1f} % rms over t, at t = "
    text += f"{timesteps[worst]} {100 * (ratio[worst] - 1):+.1f} +- {100 * error[worst]:.1f} %"
    return {"RMSE over exact draws": text}


def plot_walks(axes, name, ledgers):
    """Mean PSNR over mean bits/dim after each packet."""
    spent = np.mean([steps_of(x)[0] for x in ledgers], axis=0) / ledgers[0].dims
    label = f"{name}, {len(ledgers)} pictures"
    axes.plot(spent, psnr_of(plan_mse(ledgers).mean(axis=1)), ".-", lw=1, label=label)


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--walks", default=4, show_default=True)
@click.option("--runs", default=";".join(RUNS), show_default=True, help="Separated by semicolons.")
@click.option("--slow-limit", type=int, help="Pictures for pfr and DiffC's kind [default: all].")
@click.option("--bfloat16", is_flag=True, help="The yardstick's network in it, to save time.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("closed_loop"))
def main(ckpt, data, limit, walks, runs, slow_limit, bfloat16, out):
    out.mkdir(parents=True, exist_ok=True)
    codec = ProgressiveCodec(load(ckpt) if ckpt else load_bundled())
    pixels = load_batch(data, limit)
    bits, mse = ideal_walks(ckpt, bfloat16, pixels, walks, out)
    exact = np.mean(
        [plan_mse([s.ledger for s in send(codec, pixels, None, "ideal", seed=seed)])
         for seed in range(walks)], axis=0,
    )  # fmt: skip
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(bits.mean(axis=1) / pixels[0].numel(), psnr_of(mse.mean(axis=1)), color="0.6", lw=3,
              label=f"ideal, every t, {len(pixels)} pictures")  # fmt: skip
    table = []
    for name in runs.split(";"):
        backend, parameter, rate = RUNS[name]
        some = pixels[:slow_limit] if backend in SLOW and slow_limit else pixels
        began = time.perf_counter()
        ledgers = ledgers_of(codec, some, backend, parameter, rate)
        seconds = (time.perf_counter() - began) / len(some)
        row = {"coder": name, "pictures": len(some), "s a picture": seconds}
        row |= bits_row(ledgers, bits, mse)
        if not rate:  # pictures then share their timesteps
            row |= rmse_row(name, codec.plan.timesteps[1:], ledgers, exact, out)
            plot_walks(axes, name, ledgers)
        table.append(row)
        text = [f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
        print("; ".join(text), flush=True)
        pd.DataFrame(table).to_csv(out / "closed_loop.csv", index=False)
    axes.set(xlabel="rate on disk (bits/dim)", ylabel="PSNR of x_0_hat (dB)", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(out / "closed_loop.png", dpi=130)


if __name__ == "__main__":
    main()
