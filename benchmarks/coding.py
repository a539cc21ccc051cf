"""Bits, quality and time of sending real patches, by backend, against the bound and the ideal.

    python benchmarks/coding.py [--data D] [--limit N] [--runs 'trellis 16,orc 12']

Every patch is sent lossless, then received in another process, which compares the pixels.
Reported per backend, means over patches with standard errors: the file, the KL of its own walk,
the ideal coder's walk of the same plan, the T-step bound; the projection (q's mean gives 1);
seconds in the network and in the coder.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from clocked import Clocked
from walks import overhead

from ddpm_codec import receiving
from ddpm_codec.bound import evaluate_bound
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.codec import ProgressiveCodec, make_coder
from ddpm_codec.data import load_batch
from ddpm_codec.outgoing import Target
from ddpm_codec.receiving import Receiver
from ddpm_codec.sending import send
from ddpm_codec.units import NATS_PER_BIT


def clocked_codec(ckpt):
    codec = ProgressiveCodec(load(ckpt) if ckpt else load_bundled())
    clock = Clocked(codec.exact_model.denoiser)  # what lossless streams run
    codec.exact_model = replace(codec.exact_model, denoiser=clock)
    return codec, clock


def receive_all(ckpt, folder):
    """In a process of its own: receive every stream and compare with the pixels beside it."""
    codec, clock = clocked_codec(ckpt)
    decoder = Clocked(None)

    def make_clocked(*header):
        coder = make_coder(*header)  # a new one for each packet, all on one clock
        decoder.function, coder.sample = coder.sample, decoder
        return coder

    receiving.make_coder = make_clocked
    equal, began = 0, time.perf_counter()
    paths = sorted(folder.glob("*.ddpm"))
    for path in paths:
        receiver = Receiver(codec)
        list(receiver.feed(path.read_bytes()))
        equal += np.array_equal(receiver.close().numpy(), np.load(path.with_suffix(".npy")))
    seconds = (time.perf_counter() - began) / len(paths)
    network, words = clock.seconds / len(paths), decoder.seconds / len(paths)
    print(f"received in another process: {equal} of {len(paths)} with every pixel equal; "
          f"{network:.3f} s network + {words:.3f} s decoder + {seconds - network - words:.3f} s "
          "the rest a patch")  # fmt: skip


def mean(values):
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f} +- {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def over(real, ideal):
    value, error = overhead(real, ideal)
    return f"{value:+.2%} +- {error:.2%}"


def _frame(ledger):
    return ledger.header_bits + ledger.checksum_bits + ledger.padding_bits


def report(name, codec, clock, pixels, bound, ckpt):
    """Send `pixels` with one coder, and print the table's lines."""
    backend, parameter = name.rsplit(" ", 1)
    clock.seconds, began = 0.0, time.perf_counter()
    sent = send(codec, pixels, Target(lossless=True), backend, int(parameter))
    seconds = (time.perf_counter() - began) / len(pixels)
    network, dims = clock.seconds / len(pixels), pixels[0].numel()
    ledgers = [s.ledger for s in sent]
    file_bits = np.array([8 * len(s.stream) for s in sent])
    kl = np.array([sum(step.kl_bits for step in x.steps) for x in ledgers])
    spent = np.array([x.packet_bits for x in ledgers])
    side = np.array([sum(step.side_bits for step in x.steps) for x in ledgers])
    effective = np.array([sum(s.kl_bits * s.projection**2 for s in x.steps) for x in ledgers])
    projection = [
        np.average([s.projection for s in x.steps], weights=[s.kl_bits for s in x.steps])
        for x in ledgers
    ]
    rate = bound.rate_nats[: len(pixels)] / NATS_PER_BIT
    total = bound.total_nats[: len(pixels)] / NATS_PER_BIT
    own = np.array([x.ideal_bits for x in ledgers])
    x_0 = np.array([x.decoder_bits for x in ledgers])
    psnr = [x.steps[-1].psnr_db for x in ledgers]
    rows = {
        "file": f"{mean(file_bits / dims)} bits/dim",
        "ideal bits of its own walk": f"{mean(own / dims)} bits/dim",
        "T-step bound": f"{mean(total / dims)} bits/dim",
        "packets": f"{mean(spent / dims)} bits/dim",
        "of them side information": f"{mean(side / dims)} bits/dim",
        "KL of its own walk": f"{mean(kl / dims)} bits/dim",
        "rate of the T-step bound": f"{mean(rate / dims)} bits/dim",
        "x_0": f"{mean(x_0 / dims)} bits/dim",
        "projection, KL-weighted": mean(projection),
        "file over its own ideal bits": over(file_bits, own),
        "file over the T-step bound": over(file_bits, total),
        "packets over effective bits": over(spent, effective),
        "packets over the bound's rate": over(spent, rate),
        "header, checksums, padding": f"{np.mean([_frame(x) for x in ledgers]):.1f} bits",
        "PSNR of x_0_hat(x_1)": f"{mean(psnr)} dB",
        "sending a patch": f"{network:.3f} s network + {seconds - network:.3f} s coder",
        "network calls a patch": f"{np.mean([len(x.steps) + 1 for x in ledgers]):.1f}",
    }
    print(f"\n{name}, {len(pixels)} patches, lossless", flush=True)
    for label, text in rows.items():
        print(f"  {label:30s} {text}")
    with tempfile.TemporaryDirectory() as folder:
        for i, s in enumerate(sent):
            (Path(folder) / f"{i:03d}.ddpm").write_bytes(s.stream)
            np.save(Path(folder) / f"{i:03d}.npy", pixels[i].numpy())
        batch = time.perf_counter()
        send(codec, pixels, None, backend, int(parameter))
        batch = len(pixels) / (time.perf_counter() - batch)
        print(f"  {'sent in a batch, not lossless':30s} {batch:.2f} patches a second", flush=True)
        command = [sys.executable, __file__, "--receive", folder]
        subprocess.run(command + (["--ckpt", str(ckpt)] if ckpt else []), check=True)


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--runs", default="trellis 16,trellis 18,trellis 12,max_projection 12,orc 12,mrc 12",
              show_default=True, help="Coders with their parameters.")  # fmt: skip
@click.option("--receive", "folder", type=click.Path(path_type=Path), hidden=True)
def main(ckpt, data, limit, runs, folder):
    if folder is not None:
        receive_all(ckpt, folder)
        return
    codec, clock = clocked_codec(ckpt)
    pixels = load_batch(data, limit)
    bound = evaluate_bound(codec.model, pixels, torch.Generator().manual_seed(0), 100)
    ideal = [s.ledger for s in send(codec, pixels, None, "ideal")]
    dims = pixels[0].numel()
    print(f"ideal coder, same plan of {codec.plan.steps} steps: "
          f"{mean([x.ideal_bits / dims for x in ideal])} bits/dim; full bound's rate "
          f"{mean(bound.rate_nats / NATS_PER_BIT / dims)}; PSNR "
          f"{mean([x.steps[-1].psnr_db for x in ideal])} dB")  # fmt: skip
    for name in runs.split(","):
        some = pixels[:4] if name.startswith("pfr") else pixels
        report(name, codec, clock, some, bound, ckpt)


if __name__ == "__main__":
    main()
