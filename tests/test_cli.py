"""The command line's contract: JSON, CSV, exit statuses, one-line errors, no half-written files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from ddpm_codec import checkpoint, data
from ddpm_codec.calibration import calibrate
from ddpm_codec.cli import main

from .conftest import TINY, random_checkpoint


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in `tmp_path`; returns the result, printed on failure."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, status=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return call


@pytest.fixture
def ckpt(tmp_path, pixels):
    source = random_checkpoint(TINY)
    source.calibration = calibrate(source.model(), pixels, torch.Generator().manual_seed(0))
    checkpoint.save(source, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        data.write_image(folder / f"{i}.png", coarse.repeat(4, 0).repeat(4, 1))
    return folder


def test_nll_json_follows_the_contract(run, ckpt):
    run("nll", "--ckpt", ckpt, "--limit", 5, "--timesteps", "all", "--json", "o.json")
    report = json.loads(Path("o.json").read_text())
    assert {
        "images",
        "dims",
        "timesteps",
        "steps",
        "variance",
        "total_bpd",
        "total_bpd_sem",
        "prior_bpd",
        "rate_bpd",
        "decoder_bpd",
        "per_timestep",
        "model",
    } <= set(report)
    assert (report["images"], report["dims"], report["steps"]) == (5, 3072, 20)
    assert (report["timesteps"], report["variance"]) == ("all", "calibrated")
    assert report["total_bpd"] == pytest.approx(report["rate_bpd"] + report["decoder_bpd"])
    assert [row["t"] for row in report["per_timestep"]] == list(range(20, 1, -1))
    assert {"t", "kl_bpd", "kl_bpd_sem", "eps_mse", "x0_rmse_255"} <= set(report["per_timestep"][0])


def test_same_seed_same_bytes_other_seed_other_bytes(run, ckpt):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("nll", "--ckpt", ckpt, "--limit", 3, "--timesteps", 6, "--seed", seed, "--json", name)
    a, b, c = (Path(name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_nll_of_a_single_image_has_no_standard_error(run, ckpt):
    run(
        "nll", "--ckpt", ckpt, "--limit", 1, "--timesteps", 5, "--json", "o.json", "--plot", "o.png"
    )
    assert json.loads(Path("o.json").read_text())["total_bpd_sem"] is None
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")


def test_nll_steps_and_variances(run, ckpt):
    for variance in ("beta", "beta_tilde", "calibrated"):
        run("nll", "--ckpt", ckpt, "--limit", 2, "--steps", 7, "--variance", variance,
            "--json", "o.json")  # fmt: skip
        report = json.loads(Path("o.json").read_text())
        assert (report["steps"], report["variance"]) == (7, variance)
        assert len(report["per_timestep"]) == 6


def test_rd_curve_files(run, ckpt):
    result = run("rd-curve", "--ckpt", ckpt, "--limit", 3, "--out", "curve")
    curve = pd.read_csv("curve/rd.csv")
    assert list(curve.columns) == [
        "reverse_step",
        "t",
        "rate_bpd",
        "rate_bpd_sem",
        "rmse_255",
        "rmse_255_sem",
        "psnr_db",
    ]
    assert list(curve["t"]) == list(range(20, 0, -1))
    report = json.loads(Path("curve/rd.json").read_text())
    assert report["rate_bpd"] == pytest.approx(curve["rate_bpd"].iloc[-1])
    assert len(report["curve"]) == 20
    assert Path("curve/rd.png").read_bytes().startswith(b"\x89PNG")
    assert result.output.count("+-") == 20


def test_sample_writes_a_sheet(run, ckpt):
    run("sample", "--ckpt", ckpt, "-n", 5, "--side", 8, "--steps", 10, "-o", "s.png")
    assert data.read_image(Path("s.png")).shape == (16, 24, 3)


def test_train_resume_calibrate_nll(run, photos, monkeypatch):
    from ddpm_codec.cli import train

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    common = ("train", "--data", photos, "--out", "c.safetensors", "--batch", 4)
    run(*common, "--val", photos, "--steps", 60)
    assert Path("c.csv").exists()
    assert Path("c.png").exists()
    log = pd.read_csv("c.csv")
    assert {"step", "seconds", "images_per_second", "loss", "validation_bpd"} <= set(log.columns)
    run(*common, "--resume", "c.safetensors", "--steps", 70)
    result = run("train", "--data", photos, "--out", "d.safetensors", "--steps", 2, "--batch", 4,
                 "--init", "c.safetensors")  # fmt: skip
    assert "2 steps" in result.output
    run("calibrate", "--ckpt", "c.safetensors", "--data", photos, "--limit", 3, "--half",
        "--out", "h.safetensors")  # fmt: skip
    assert Path("h.safetensors").stat().st_size < Path("c.safetensors").stat().st_size / 4
    run("nll", "--ckpt", "h.safetensors", "--limit", 2, "--timesteps", 5)
    # Calibrating in place keeps the training state.
    run("calibrate", "--ckpt", "c.safetensors", "--data", photos, "--limit", 1)
    run(*common, "--resume", "c.safetensors", "--steps", 71)


def test_ctrl_c_saves_first(run, photos, monkeypatch):
    from ddpm_codec.cli import train

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    draw, calls = data.PhotoCrops.draw, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    monkeypatch.setattr(data.PhotoCrops, "draw", interrupted)
    common = ("train", "--data", photos, "--out", "c.safetensors", "--batch", 4, "--steps", 9)
    result = run(*common, status=1)
    assert "stopped at step 3; --resume c.safetensors goes on" in result.stderr
    result = run(*common, "--resume", "c.safetensors")
    assert "9 steps" in result.output


BAD = {
    "missing checkpoint": ["nll", "--ckpt", "no.safetensors"],
    "missing data": ["nll", "--data", "no-such-folder"],
    "empty folder": ["nll", "--data", "empty"],
    "corrupt picture": ["nll", "--data", "corrupt", "--crop", "8"],
    "json into a missing folder": ["nll", "--limit", "1", "--json", "no/such.json"],
    "json onto a folder": ["nll", "--limit", "1", "--json", "empty"],
    "plot into a missing folder": ["nll", "--limit", "1", "--plot", "no/such.png"],
    "too many steps": ["nll", "--limit", "1", "--steps", "21"],
    "sides that do not fit": ["nll", "--limit", "1", "--crop", "6"],
    "crop larger than the image": ["nll", "--limit", "1", "--crop", "64"],
    "uncalibrated": ["nll", "--ckpt", "plain.safetensors", "--variance", "calibrated"],
    "curve onto a file": ["rd-curve", "--out", "plain.safetensors"],
    "calibrating the bundled checkpoint in place": ["calibrate", "--limit", "1"],
    "sample side": ["sample", "--side", "7"],
    "training on nothing": ["train", "--data", "empty", "--out", "x", "--steps", "1"],
    "training without length": ["train", "--data", "corrupt", "--out", "x"],
    "resume and init": ["train", "--data", "corrupt", "--out", "x", "--steps", "1",
                        "--resume", "plain.safetensors", "--init", "plain.safetensors"],
    "resume without state": ["train", "--data", "corrupt", "--out", "x", "--steps", "1",
                             "--resume", "plain.safetensors"],
    "demo onto a file": ["demo", "--out", "plain.safetensors"],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_1(run, ckpt, case):
    Path("empty").mkdir()
    Path("corrupt").mkdir()
    Path("corrupt/a.png").write_bytes(b"not a picture")
    checkpoint.save(random_checkpoint(TINY), Path("plain.safetensors"))
    arguments = BAD[case]
    if arguments[0] not in ("train", "demo", "calibrate") and "--ckpt" not in arguments:
        arguments = [*arguments, "--ckpt", ckpt]
    before = sorted(Path().rglob("*"))
    result = run(*arguments, status=1)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before


def test_usage_errors_are_status_2(run):
    run("nll", "--timesteps", "some", status=2)
    run("nll", "--variance", "guessed", status=2)
    run("no-such-command", status=2)


def test_debug_shows_the_traceback(run):
    result = run("--debug", "nll", "--ckpt", "no.safetensors", status=1)
    assert isinstance(result.exception, checkpoint.CheckpointError)


def test_a_real_process_prints_no_bar_into_a_pipe(ckpt):
    command = [sys.executable, "-m", "ddpm_codec", "nll", "--ckpt", str(ckpt), "--limit", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "bits/dim" in done.stdout
