"""What `keep_freed_memory` is worth: training steps and network calls with it and without.

    python benchmarks/memory.py [--rounds N]

Each in a process of its own, in turn; medians over the rounds. Pages are the process's minor page
faults a step or a call.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import click
import torch

from ddpm_codec.checkpoint import load_bundled
from ddpm_codec.crops import ArrayCrops
from ddpm_codec.data import load_batch
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.training import TRAINING_PRESETS, Trainer

STEPS = 6


def faults():
    """Pages that the system has handed out to this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def clocked(work):
    """Seconds and page faults of each of some runs of `work`, after two that warm up."""
    rows = []
    for _ in range(2 + STEPS):
        pages, began = faults(), time.perf_counter()
        work()
        rows.append((time.perf_counter() - began, faults() - pages))
    return [statistics.median(column) for column in zip(*rows[2:], strict=True)]


def calls(count):
    """A network call of so many patches."""
    denoiser = load_bundled().model().denoiser
    x, t = torch.rand(count, 3, 32, 32), torch.full((count,), 100)
    return lambda: denoiser(x, t)


def training(precision):
    """A step of 64 crops."""
    source = load_bundled()
    source.weights = {k: v.float() for k, v in source.weights.items()}
    crops = ArrayCrops(load_batch("sample").permute(0, 2, 3, 1).numpy(), 32)
    rule = replace(TRAINING_PRESETS["small"], steps=2 + STEPS, batch=64)
    muon = bfloat16_is_faster(torch.device("cpu"))[1]
    rule = replace(rule, bfloat16=precision == "bfloat16", muon_bfloat16=muon)
    run = Trainer.start(source.config, rule, source).run(crops.draw)
    return lambda: next(run)


WORKS = {
    "a call of 16 patches": lambda: calls(16),
    "a call of 64": lambda: calls(64),
    "a training step of 64, float32": lambda: training("float32"),
    "a training step of 64, bfloat16": lambda: training("bfloat16"),
}


def alone(work, kept):
    """Seconds and page faults of one of `WORKS` in a process of its own: what a process did before
    decides what malloc gives back."""
    command = [sys.executable, __file__, "--work", work, *(["--keep"] if kept else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(rounds):
    """Run both in turn and print a line for each work."""
    for work in WORKS:
        runs = [(alone(work, True), alone(work, False)) for _ in range(rounds)]
        (kept, few), (free, many) = (
            [statistics.median(run[i][j] for run in runs) for j in (0, 1)] for i in (0, 1)
        )
        print(f"{work}: {1e3 * kept:.1f} ms kept ({few:.0f} pages), {1e3 * free:.1f} ms not "
              f"({many:.0f} pages): x {free / kept:.2f}", flush=True)  # fmt: skip


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--work", type=click.Choice(list(WORKS)), hidden=True)
@click.option("--keep", is_flag=True, hidden=True)
def main(rounds, work, keep):
    if keep and not keep_freed_memory():
        raise click.ClickException("only glibc's malloc can be told to keep memory")
    if work is None:
        compare(rounds)
    else:
        print(json.dumps(clocked(WORKS[work]())))


if __name__ == "__main__":
    main()
