"""Two processes under torchrun against one: throughput, and whether they do the same.

    python benchmarks/processes.py --data PHOTOS [--steps N] [--limit N]

The same training steps (same global batches, float32 and bfloat16) and the same `nll` of the
bundled patches by one process with two threads and by two processes with one. Throughput is from
the training's own log; weights differ by the order of sums, which training then amplifies; `nll`
has the same digits.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import pandas as pd

from ddpm_codec.checkpoint import load


def seconds_of(processes, *arguments):
    """The seconds that `ddpm_codec ARGUMENTS` takes in so many processes on two cores."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
             "--master-port", "29417"]  # fmt: skip
    if processes == 1:
        start = [sys.executable]
    began = time.perf_counter()
    subprocess.run([*start, "-m", "ddpm_codec", *map(str, arguments)], check=True,
                   env=os.environ | {"OMP_NUM_THREADS": str(2 // processes)},
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - began


def compare_training(folder, data, steps, precision):
    """Crops a second, and how far apart the weights end, beside the largest weight."""
    rates, ends = [], []
    for processes in (1, 2):
        out = folder / f"{precision}_{steps}_{processes}.safetensors"
        seconds_of(processes, "train", "--data", data, "--steps", steps, "--out", out,
                "--precision", precision)  # fmt: skip
        rates.append(float(pd.read_csv(out.with_suffix(".csv")).images_per_second.iloc[-1]))
        ends.append({k: v for k, v in load(out, training=True).training.items()
                     if k.startswith("weights.")})  # fmt: skip
    apart = max(float((ends[1][k] - v).abs().max()) for k, v in ends[0].items())
    largest = max(float(v.abs().max()) for v in ends[0].values())
    print(
        f"training, {precision}, {steps} steps: {rates[0]:.1f} crops a second in one process, "
        f"{rates[1]:.1f} in two (x {rates[1] / rates[0]:.2f}); a weight ends at most {apart:.1e} "
        f"apart (the largest is {largest:.2f})",
        flush=True,
    )


def compare_bounds(folder, limit):
    """`nll` in either: seconds, start included, and whether the reports are equal."""
    seconds, reports = [], []
    for processes in (1, 2):
        out = folder / f"{processes}.json"
        seconds.append(
            seconds_of(processes, "nll", "--limit", limit, "--timesteps", 50, "--json", out)
        )
        reports.append(json.loads(out.read_text()))
    print(
        f"nll, {limit} patches, 50 calls: {seconds[0]:.1f} s in one process, {seconds[1]:.1f} s "
        f"in two; total {reports[0]['total_bpd']!r} and {reports[1]['total_bpd']!r} bits/dim, "
        f"reports {'equal in every digit' if reports[0] == reports[1] else 'differ'}"
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--limit", default=64, show_default=True)
def main(data, steps, limit):
    with tempfile.TemporaryDirectory() as folder:
        compare_training(Path(folder), data, 3, "float32")
        compare_training(Path(folder), data, steps, "float32")
        compare_training(Path(folder), data, steps, "bfloat16")
        compare_bounds(Path(folder), limit)


if __name__ == "__main__":
    main()
