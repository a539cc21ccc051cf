"""Images a second of training and of `nll`, and the share of the time inside the network.

    python benchmarks/nll_throughput.py [--ckpt C] [--calls N]

Both shares are measured in one run: the network is wrapped with a clock, everything around it
(noise, terms, decoder) is the rest.
"""

import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from clocked import Clocked

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.checkpoint import MODEL_PRESETS, load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.training import TRAINING_PRESETS, Trainer


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--calls", default=50, help="Network calls an image.")
@click.option("--steps", default=30, help="Training steps to time.")
def main(ckpt, calls, steps):
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    model, pixels = (load(ckpt) if ckpt else load_bundled()).model(), load_batch("sample")
    evaluate_bound(model, pixels[:8], torch.Generator(), 10)
    for timesteps in (calls, 1):
        clocked = Clocked(model.denoiser)
        began = time.perf_counter()
        bound = evaluate_bound(
            replace(model, denoiser=clocked), pixels, torch.Generator(), timesteps
        )
        total = time.perf_counter() - began
        count = len(bound.terms.nats)
        print(
            f"nll, {timesteps} calls an image: {count / total:.0f} calls/s, "
            f"{len(pixels) / total:.2f} images/s, network share {clocked.seconds / total:.1%}"
        )
    network, muon = bfloat16_is_faster(torch.device("cpu"))
    for fast in sorted({False, network}):
        rule = replace(TRAINING_PRESETS["small"], bfloat16=fast, muon_bfloat16=muon)
        config = replace(rule, steps=steps + 3)
        trainer = Trainer.start(MODEL_PRESETS["small"], config)
        crops = pixels.repeat(1, 1, 1, 1)
        run = trainer.run(lambda count, _, crops=crops: crops[:count])
        for _ in range(3):
            next(run)
        began = time.perf_counter()
        done = sum(1 for _ in run)
        rate = done * config.batch / (time.perf_counter() - began)
        print(f"training, {'bfloat16' if fast else 'float32'}: {rate:.0f} images/s")


if __name__ == "__main__":
    main()
