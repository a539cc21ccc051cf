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


def measure():
    """What one process does, as JSON: {name: (seconds, pages)}."""
    source = load_bundled()
    pictures = load_batch("sample")
    results = {}
    denoiser = source.model().denoiser
    for count in (1, 16, 64):
        x, t = torch.rand(count, 3, 32, 32), torch.full((count,), 100)
        results[f"call, {count}"] = clocked(lambda x=x, t=t: denoiser(x, t))
    source.weights = {k: v.float() for k, v in source.weights.items()}
    crops = ArrayCrops(pictures.permute(0, 2, 3, 1).numpy(), 32)
    for precision in ("float32", "bfloat16"):
        rule = replace(TRAINING_PRESETS["small"], steps=2 + STEPS, batch=64)
        rule = replace(rule, bfloat16=precision == "bfloat16")
        run = Trainer.start(source.config, rule, source).run(crops.draw)
        results[f"training, 64, {precision}"] = clocked(lambda run=run: next(run))
    print(json.dumps(results))


def alone(kept):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", "kept" if kept else "not"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(rounds):
    """Run both in turn and print a line for each work."""
    runs = [(alone(True), alone(False)) for _ in range(rounds)]
    for work in runs[0][0]:
        (kept, few), (free, many) = (
            [statistics.median(run[i][work][j] for run in runs) for j in (0, 1)] for i in (0, 1)
        )
        print(f"{work}: {1e3 * kept:.1f} ms kept ({few:.0f} pages), {1e3 * free:.1f} ms not "
              f"({many:.0f} pages): x {free / kept:.2f}")  # fmt: skip


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--one", type=click.Choice(["kept", "not"]), hidden=True)
def main(rounds, one):
    if one == "kept" and not keep_freed_memory():
        raise click.ClickException("only glibc's malloc can be told to keep memory")
    if one is None:
        compare(rounds)
    else:
        measure()


if __name__ == "__main__":
    main()
