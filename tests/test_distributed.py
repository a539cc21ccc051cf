"""Two processes as `torchrun` would start them: the same training, the same bound."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from ddpm_codec import checkpoint
from ddpm_codec.data import load_batch, write_image
from ddpm_codec.distributed import Workers, join
from ddpm_codec.errors import ConfigError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(arguments, processes, folder):
    """`python -m ddpm_codec ARGUMENTS` by some processes with torchrun's environment."""
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(processes):
        one = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        command = [sys.executable, "-m", "ddpm_codec", *arguments]
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | about | one,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=240) for process in running]
    assert [p.returncode for p in running] == [0] * processes, outputs
    return outputs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i, picture in enumerate(load_batch("sample", 4).permute(0, 2, 3, 1).numpy()):
        write_image(folder / f"{i}.png", picture)
    return folder


def test_shares_cover_everything_once():
    for count, total, parts in ((1, 5, 2), (3, 8, 1), (4, 3, 2)):
        slices = [s for rank in range(count) for s in Workers(rank, count).share(total, parts)]
        assert [i for s in slices for i in range(s.start, s.stop)] == list(range(total))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cpu"):
        join("cuda")


def test_two_processes_train_as_one(photographs, tmp_path):
    """Same global batches, so weights differ by the order of sums only."""
    options = ["--steps", "3", "--batch", "6", "--precision", "float32"]
    weights = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.safetensors"
        run(["train", "--data", str(photographs), "--out", str(out), *options], processes, tmp_path)
        weights.append(checkpoint.load(out, training=True).training)
    for name, expected in weights[0].items():
        if name.startswith("weights."):
            torch.testing.assert_close(weights[1][name], expected, rtol=1e-2, atol=2e-3)


def test_two_processes_measure_as_one(tmp_path):
    """`nll` draws the same noise in the same batches: every digit agrees; one process prints."""
    reports = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        arguments = ["nll", "--limit", "8", "--timesteps", "40", "--json", str(out)]
        outputs = run(arguments, processes, tmp_path)
        assert [bool(stdout) for stdout, _ in outputs] == [True] + [False] * (processes - 1)
        reports.append(json.loads(out.read_text()))
    assert reports[0] == reports[1]
