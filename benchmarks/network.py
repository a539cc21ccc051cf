"""One network call: milliseconds, share of this machine's peak, memory, beside diffusers' U-Net.

    pip install '.[bench,test]'
    python benchmarks/network.py [--ckpt C] [--repeats R]

diffusers' UNet2DModel is that of google/ddpm-cifar10-32 with fewer channels: as many parameters as
a call of ours uses, of whose upper halves one runs. Freed memory is kept. Floating-point
operations are counted by torch; the peak is what a large GEMM and a large 3x3 convolution reach in
the same run. Memory is the peak of a process of its own, less what it has before the call.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import click
import pandas as pd
import torch
from ddpm_unet import ddpm_unet
from torch.utils.flop_counter import FlopCounterMode

from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.tiling import Tiled
from ddpm_codec.unet import parameter_count

SHAPES = {
    "32x32, one": (1, 32, 32),
    "32x32, 16": (16, 32, 32),  # what the toolkit's calls have at most
    "32x32, 64": (64, 32, 32),
    "768x512, one": (1, 512, 768),
}
NETWORKS = ("ddpm-codec", "ddpm-codec, bfloat16", "diffusers")


def diffusers_network(parameters):
    """The published CIFAR-10 configuration at the width whose parameter count is nearest."""
    best = None
    for width in range(8, 64, 8):
        network = ddpm_unet((width, 2 * width, 2 * width, 2 * width), norm_num_groups=8)
        if best is None or abs(parameter_count(network) - parameters) < abs(
            parameter_count(best) - parameters
        ):
            best = network
    return best.eval().requires_grad_(False)


def used_parameters(network):
    """Those that one call uses."""
    return parameter_count(network) - parameter_count(getattr(network, "others", torch.nn.Module()))


def network_of(name, ckpt):
    """(callable, module) of x and t."""
    ours = (load(ckpt) if ckpt else load_bundled()).model().denoiser
    assert isinstance(ours, Tiled)
    if name == "diffusers":
        theirs = diffusers_network(used_parameters(ours.network))
        theirs = theirs.to(memory_format=torch.channels_last)
        return theirs, theirs
    return Tiled(ours.network, bfloat16=name.endswith("bfloat16")), ours.network


def best_seconds(call, repeats, patience=30):
    """The fastest of so many calls, fewer if they take longer than `patience` seconds in all."""
    call()
    times = []
    while len(times) < repeats and sum(times) < patience:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def peaks(repeats):
    """GFLOP/s of a GEMM of 2048 and of a 3x3 convolution of 128 channels on 64 maps of 16x16."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(2048, 2048).to(dtype)
        found[f"GEMM, {name}"] = 2 * 2048**3 / best_seconds(lambda a=a: a @ a, repeats) / 1e9
        layer = torch.nn.Conv2d(128, 128, 3, padding=1, dtype=dtype).requires_grad_(False)
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(64, 128, 16, 16).to(dtype, memory_format=torch.channels_last)
        flops = 2 * 128 * 128 * 9 * 64 * 256
        found[f"convolution, {name}"] = (
            flops / best_seconds(lambda f=layer, x=x: f(x), repeats) / 1e9
        )
    return found


def measure(name, shape, ckpt, repeats):
    """One row, in this process."""
    keep_freed_memory()
    call, module = network_of(name, ckpt)
    batch, height, width = SHAPES[shape]
    x, t = torch.randn(batch, 3, height, width), torch.full((batch,), 500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        seconds = best_seconds(lambda: call(x, t), repeats)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        with FlopCounterMode(display=False) as counter:
            call(x, t)
    gflop = counter.get_total_flops() / 1e9
    return {
        "network": name,
        "parameters": used_parameters(module),
        "pictures": shape,
        "ms": 1000 * seconds,
        "pictures_per_s": batch / seconds,
        "GFLOP a picture": gflop / batch,
        "GFLOP/s": gflop / seconds,
        "MB": memory / 1024,
    }


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--repeats", default=5, show_default=True)
@click.option("--only", help="One row, as JSON: what the benchmark runs in processes of their own.")
def main(ckpt, repeats, only):
    if only:
        name, shape = only.split(";")
        print(json.dumps(measure(name, shape, ckpt, repeats)))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    best = peaks(repeats)
    for name, value in best.items():
        print(f"peak, {name}: {value:.0f} GFLOP/s")
    rows = []
    for name in NETWORKS:
        for shape in SHAPES:
            command = [sys.executable, __file__, "--only", f"{name};{shape}"]
            command += ["--repeats", str(repeats), *(["--ckpt", str(ckpt)] if ckpt else [])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            kind = "bfloat16" if name.endswith("bfloat16") else "float32"
            row["share of GEMM peak"] = row["GFLOP/s"] / best[f"GEMM, {kind}"]
            rows.append(row)
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                            for k, v in row.items()), flush=True)  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
