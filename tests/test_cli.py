"""The command line's contract: JSON, CSV, exit statuses, one-line errors, no half-written files."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ddpm_codec import checkpoint, crops, data
from ddpm_codec.calibration import calibrate
from ddpm_codec.cli import archive, main
from ddpm_codec.cli import calibrate as calibrate_cli
from ddpm_codec.cli.common import write_bytes
from ddpm_codec.errors import DataError
from ddpm_codec.header import VERSION
from ddpm_codec.schedule import Plan

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
    source.plan = Plan(source.model().schedule.log_snr_grid(6), np.zeros(5))
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
        "pixels",
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


def test_what_is_not_known_of_a_single_image_is_a_dash(run, ckpt):
    tables = run("nll", "--ckpt", ckpt, "--limit", 1).output
    tables += run("rd-curve", "--ckpt", ckpt, "--limit", 1).output
    assert "nan" not in tables.lower()
    assert "None" not in tables
    assert "walks of 1 images" in tables


def test_nll_steps_and_variances(run, ckpt):
    for variance in ("beta", "beta_tilde", "one_number", "band", "calibrated"):
        run("nll", "--ckpt", ckpt, "--limit", 2, "--steps", 7, "--variance", variance,
            "--json", "o.json")  # fmt: skip
        report = json.loads(Path("o.json").read_text())
        assert (report["steps"], report["variance"]) == (7, variance)
        assert len(report["per_timestep"]) == 6


def test_nll_of_independent_pixels_is_equation_13(run, ckpt):
    """The rate of the calibrated chain and, as every measured variance rule has it, the decoder."""
    reports = []
    for options in ((), ("--independent-pixels",), ("--variance", "band")):
        run("nll", "--ckpt", ckpt, "--limit", 2, "--timesteps", "all", *options, "--json", "o.json")
        reports.append(json.loads(Path("o.json").read_text()))
    assert [r["pixels"] for r in reports] == ["dependent", "independent", "independent"]
    dependent, independent, band = reports
    assert independent["rate_bpd"] == dependent["rate_bpd"] != band["rate_bpd"]
    assert independent["decoder_bpd"] == band["decoder_bpd"] != dependent["decoder_bpd"]


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
    assert list(pd.read_csv("d.csv")["step"]) == [2]  # once an empty file for so short a run
    run("calibrate", "--ckpt", "c.safetensors", "--data", photos, "--limit", 3, "--half",
        "--out", "h.safetensors")  # fmt: skip
    assert Path("h.safetensors").stat().st_size < Path("c.safetensors").stat().st_size / 4
    run("nll", "--ckpt", "h.safetensors", "--limit", 2, "--timesteps", 5)
    # Calibrating in place keeps the training state.
    run("calibrate", "--ckpt", "c.safetensors", "--data", photos, "--limit", 1)
    run(*common, "--resume", "c.safetensors", "--steps", 71)


def test_init_keeps_the_network_unless_a_preset_is_asked_for(run, photos, ckpt):
    """A network of any shape could be resumed, but not be given a new run."""
    common = ("train", "--data", photos, "--out", "c.safetensors", "--steps", 1, "--batch", 4)
    run(*common, "--init", ckpt)
    assert checkpoint.load(Path("c.safetensors")).config == checkpoint.load(Path(ckpt)).config
    refused = run(*common, "--init", ckpt, "--preset", "small", status=1)
    assert "another model configuration" in refused.stderr


def test_a_resumed_run_keeps_its_rules(run, photos, monkeypatch):
    """Options of another run are refused, not ignored; its length, decay and parts may change."""
    from ddpm_codec.cli import train

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    common = ("train", "--data", photos, "--out", "c.safetensors")
    run(*common, "--batch", 4, "--steps", 2, "--precision", "float32")
    resume = (*common, "--resume", "c.safetensors", "--steps", 3)
    for option in (
        ["--batch", 5], ["--learning-rate", 0.5], ["--objective", "simple"], ["--seed", 1],
        ["--precision", "bfloat16"], ["--preset", "medium"], ["--learned-variance"],
    ):  # fmt: skip
        assert f"{option[0]} " in run(*resume, *option, status=1).stderr
    run(*resume, "--batch", 4, "--preset", "small", "--precision", "auto", "--decay", 0.9,
        "--accumulate", 2, "--objective", "vlb")  # fmt: skip
    progress = checkpoint.load(Path("c.safetensors"), training=True).notes
    assert (progress["training"]["decay"], progress["training"]["accumulate"]) == (0.9, 2)
    assert progress["progress"]["step"] == 3


def test_crops_are_varied_on_request(run, photos, monkeypatch):
    from ddpm_codec.cli import train

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    common = ("train", "--data", photos, "--batch", 4, "--steps", 2)
    run(*common, "--out", "a.safetensors")
    run(*common, "--out", "b.safetensors", "--enlarged", 0, "--subsampled", 0)
    run(*common, "--out", "c.safetensors", "--enlarged", 1)
    run(*common, "--out", "d.safetensors", "--subsampled", 0.9)
    a, b, c, d = (checkpoint.load(Path(f"{name}.safetensors")) for name in "abcd")
    assert a.hash == b.hash
    assert len({a.hash, c.hash, d.hash}) == 3
    assert c.notes["training"]["enlarged"] == 1.0
    assert d.notes["training"]["subsampled"] == 0.9


def test_pictures_left_out_of_a_folder_are_named(run, ckpt, photos):
    """By every command that draws crops from it, not by `train` alone."""
    (photos / "broken.png").write_bytes(b"not a picture")
    common = ("--ckpt", ckpt, "--data", photos, "--limit", 12)
    for command in (["calibrate", *common, "--out", "d.safetensors"], ["plan", *common]):
        assert "skipped" in (stderr := run(*command).stderr)
        assert "broken.png" in stderr


def test_ctrl_c_saves_first(run, photos, monkeypatch):
    from ddpm_codec.cli import train

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    draw, calls = crops.PhotoCrops.draw, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    monkeypatch.setattr(crops.PhotoCrops, "draw", interrupted)
    common = ("train", "--data", photos, "--out", "c.safetensors", "--batch", 4, "--steps", 9)
    result = run(*common, status=1)
    assert "stopped at step 3; --resume c.safetensors goes on" in result.stderr
    result = run(*common, "--resume", "c.safetensors")
    assert "9 steps" in result.output


def test_a_run_is_saved_before_its_last_validation(run, photos, monkeypatch):
    from ddpm_codec.cli import train

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(train.MODEL_PRESETS, "small", TINY)
    monkeypatch.setattr(train, "validate", interrupted)
    run("train", "--data", photos, "--val", photos, "--out", "c.safetensors", "--batch", 4,
        "--steps", 2, status=1)  # fmt: skip
    assert checkpoint.load(Path("c.safetensors")).notes["progress"]["step"] == 2


BAD = {
    "missing checkpoint": ["nll", "--ckpt", "no.safetensors"],
    "missing data": ["nll", "--data", "no-such-folder"],
    "empty folder": ["nll", "--data", "empty"],
    "corrupt picture": ["nll", "--data", "corrupt", "--crop", "8"],
    "json into a missing folder": ["nll", "--limit", "1", "--json", "no/such.json"],
    "json onto a folder": ["nll", "--limit", "1", "--json", "empty"],
    "a name too long for a file": ["send", "x" * 5000],
    "plot into a missing folder": ["nll", "--limit", "1", "--plot", "no/such.png"],
    "too many steps": ["nll", "--limit", "1", "--steps", "21"],
    "crop larger than the image": ["nll", "--limit", "1", "--crop", "64"],
    "uncalibrated": ["nll", "--ckpt", "plain.safetensors", "--variance", "calibrated"],
    "curve onto a file": ["rd-curve", "--out", "plain.safetensors"],
    "calibrating the bundled checkpoint in place": ["calibrate", "--limit", "1"],
    "send into a missing folder": ["send", "odd.png", "-o", "no/such.ddpm"],
    "send a folder to one file": ["send", "corrupt", "-o", "plain.safetensors"],
    "send without a plan": ["send", "odd.png", "--ckpt", "plain.safetensors"],
    "send with two targets": ["send", "odd.png", "--lossless", "--bpd", "1"],
    "receive a folder": ["receive", "empty"],
    "receive this folder": ["receive", "."],
    "receive onto a folder": ["receive", "odd.png", "-o", "empty"],
    "truncate a picture": ["truncate", "odd.png", "--max-bytes", "50", "-o", "t"],
    "training on nothing": ["train", "--data", "empty", "--out", "x", "--steps", "1"],
    "training without length": ["train", "--data", "corrupt", "--out", "x"],
    "resume and init": ["train", "--data", "corrupt", "--out", "x", "--steps", "1",
                        "--resume", "plain.safetensors", "--init", "plain.safetensors"],
    "resume without state": ["train", "--data", "corrupt", "--out", "x", "--steps", "1",
                             "--resume", "plain.safetensors"],
    "plan to an end outside the chain": ["plan", "--end", "5000", "--limit", "1"],
    "two outputs in one file": ["nll", "--limit", "1", "--json", "o", "--plot", "./o"],
    "a stream onto its picture": ["send", "odd.png", "-o", "odd.png"],
    "an archive onto its pictures": ["pack", "x.npz", "-o", "x.npz"],
    "numbers onto their checkpoint": ["nll", "--json", "plain.safetensors",
                                      "--ckpt", "plain.safetensors"],
    "an imported model onto its source": ["import", "odd.png", "-o", "odd.png"],
    "a ledger onto its stream": ["send", "odd.png", "-o", "o", "--ledger", "o"],
    "a picture onto its stream": ["receive", "odd.png", "-o", "odd.png"],
    "a checkpoint where its log goes": ["train", "--data", "corrupt", "--out", "x.csv",
                                        "--steps", "1"],
    "half of a checkpoint onto the whole": ["calibrate", "--ckpt", "plain.safetensors", "--half"],
    "a picture onto standard output": ["receive", "odd.png", "-o", "-"],
    "numbers onto standard output": ["nll", "--limit", "1", "--json", "-"],
    "previews into a file": ["receive", "odd.png", "--previews", "plain.safetensors"],
    "demo onto a file": ["demo", "--out", "plain.safetensors"],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_1(run, ckpt, case):
    Path("empty").mkdir()
    Path("corrupt").mkdir()
    Path("corrupt/a.png").write_bytes(b"not a picture")
    data.write_image(Path("odd.png"), np.zeros((7, 9, 3), np.uint8))
    np.savez("x.npz", x=np.zeros((1, 8, 8, 3), np.uint8))
    checkpoint.save(random_checkpoint(TINY), Path("plain.safetensors"))
    arguments = BAD[case]
    alone = ("train", "demo", "calibrate", "truncate", "import")
    if arguments[0] not in alone and "--ckpt" not in arguments:
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
    run("nll", "--seed", -1, status=2)
    run("nll", "--seed", 1 << 63, status=2)
    run("plan", "--kappa", 30, status=2)
    run("send", "x.png", "--bpd", "nan", status=2)
    run("send", "x.png", "--psnr", "inf", status=2)
    for option in ("--minutes", "--decay", "--save-minutes", "--muon-rate"):
        run("train", "--data", "d", "--out", "x", option, "nan", status=2)
    run("train", "--data", "d", "--out", "x", "--minutes", "inf", status=2)
    run("no-such-command", status=2)


def test_a_full_disk_behind_standard_output_is_one_error(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=Full()))
    with pytest.raises(DataError, match="no space left"):
        write_bytes(Path("-"), b"x")


def test_debug_shows_the_traceback(run):
    result = run("--debug", "nll", "--ckpt", "no.safetensors", status=1)
    assert isinstance(result.exception, checkpoint.CheckpointError)


def test_a_real_process_prints_no_bar_into_a_pipe(ckpt):
    command = [sys.executable, "-m", "ddpm_codec", "nll", "--ckpt", str(ckpt), "--limit", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "bits/dim" in done.stdout


@pytest.fixture
def picture(tmp_path):
    coarse = np.random.default_rng(5).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((8, 8), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "p.png")
    return np.asarray(smooth)


OTHER_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}
"""Makes the libraries below choose other instructions, which round otherwise."""


def process(*arguments, threads, stdin=b"", machine=None):
    """A command in a process of its own, on so many threads."""
    return subprocess.run(
        [sys.executable, "-m", "ddpm_codec", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | (machine or {}),
    )


def test_lossless_in_separate_processes_with_other_thread_counts(ckpt, picture, tmp_path):
    """Oracle 8, through a pipe; the receiver's instructions round otherwise."""
    sent = process("send", tmp_path / "p.png", "-o", "-", "--ckpt", ckpt, "--lossless",
                   "--ledger", tmp_path / "l.json", threads=1)  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    assert json.loads((tmp_path / "l.json").read_text())["file_bytes"] == len(sent.stdout)
    received = process("receive", "-", "-o", tmp_path / "q.png", "--ckpt", ckpt,
                       threads=2, stdin=sent.stdout, machine=OTHER_MACHINE)  # fmt: skip
    assert received.returncode == 0, received.stderr
    np.testing.assert_array_equal(data.read_image(tmp_path / "q.png"), picture)


def test_previews_come_while_the_pipe_is_open(ckpt, picture, tmp_path):
    """The receiver takes what is there: it once waited for 4096 bytes or the end."""
    sent = process("send", tmp_path / "p.png", "-o", "-", "--ckpt", ckpt, threads=1)
    command = [sys.executable, "-m", "ddpm_codec", "receive", "-", "-o", tmp_path / "q.png",
               "--ckpt", ckpt, "--previews", tmp_path / "previews"]  # fmt: skip
    with subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE) as receiver:
        assert receiver.stdin is not None
        receiver.stdin.write(sent.stdout[:-8])
        receiver.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("previews/*.png")):
            assert time.monotonic() < deadline, "no preview before the end of the stream"
            time.sleep(0.05)
        receiver.stdin.write(sent.stdout[-8:])
        receiver.stdin.close()
    assert receiver.returncode == 0


def test_one_picture_out_of_reach_does_not_cost_the_others(run, ckpt, tmp_path):
    """A flat picture comes closer than noise does; a folder once lost all for one."""
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    data.write_image(tmp_path / "in" / "noise.png", noise)
    data.write_image(tmp_path / "in" / "flat.png", np.full((8, 8, 3), 128, np.uint8))
    run("send", "in", "-o", "all", "--ckpt", ckpt, "--ledger", "l.json")
    reached = {p.name: walk["steps"][-1]["psnr_db"] for p, walk in
               zip(sorted((tmp_path / "in").iterdir()), json.loads(Path("l.json").read_text()),
                   strict=True)}  # fmt: skip
    (worst, low), (best, high) = sorted(reached.items(), key=lambda item: item[1])
    result = run("send", "in", "-o", "out", "--ckpt", ckpt, "--psnr", (low + high) / 2,
                 "--ledger", "l.json", status=1)  # fmt: skip
    assert f"out of reach of {worst}" in result.stderr
    assert [p.name for p in Path("out").iterdir()] == [f"{best}.ddpm"]
    assert [walk is None for walk in json.loads(Path("l.json").read_text())] == [
        name == worst for name in sorted(reached)
    ]


def test_an_archive_in_separate_processes(ckpt, picture, tmp_path):
    """Bits back needs every number of the packer's: another thread count, other instructions."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.bmp"):
        Image.fromarray(picture).save(folder / name)
    Image.fromarray(picture[:5, :, 0]).save(folder / "grey.png")
    packed = process("pack", folder, "-o", tmp_path / "x.ddpa", "--ckpt", ckpt, "--steps", 5,
                     "--json", tmp_path / "x.json", threads=2)  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["file_bytes"] == (tmp_path / "x.ddpa").stat().st_size
    unpacked = process("unpack", tmp_path / "x.ddpa", "-o", tmp_path / "out", "--ckpt", ckpt,
                       threads=1, machine=OTHER_MACHINE)  # fmt: skip
    assert unpacked.returncode == 0, unpacked.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.png",
        "b.bmp.png",
        "grey.png",
    ]
    np.testing.assert_array_equal(data.read_image(tmp_path / "out" / "b.bmp.png"), picture)
    with Image.open(tmp_path / "out" / "grey.png") as grey:
        assert grey.mode == "L"
        np.testing.assert_array_equal(np.asarray(grey), picture[:5, :, 0])


def test_pack_arrays(run, ckpt, pixels):
    x = pixels.permute(0, 2, 3, 1).numpy()
    np.savez("x.npz", x=x)
    run("pack", "x.npz", "-o", "x.ddpa", "--ckpt", ckpt, "--steps", 4, "--limit", 3)
    run("unpack", "x.ddpa", "-o", "y.npz", "--ckpt", ckpt)
    np.testing.assert_array_equal(np.load("y.npz")["x"], x[:3])
    run("unpack", "x.ddpa", "-o", "out", "--ckpt", ckpt)
    assert sorted(p.name for p in Path("out").iterdir()) == ["0.png", "1.png", "2.png"]
    run("info", "x.ddpa", "--json", "i.json")
    report = json.loads(Path("i.json").read_text())
    assert report["file_bytes"] == Path("x.ddpa").stat().st_size
    assert (report["images"], report["pixels"], report["steps"]) == (3, 192, 4)
    Path("damaged").write_bytes(Path("x.ddpa").read_bytes()[:-1])
    assert "checksum" in run("unpack", "damaged", "-o", "z", "--ckpt", ckpt, status=1).stderr
    assert "not a ddpm-codec archive" in run("unpack", "x.npz", "-o", "z", status=1).stderr
    assert not Path("z").exists()  # it once was made before the archive was looked at


def test_send_info_truncate_receive(run, ckpt, picture):
    run("send", "p.png", "--ckpt", ckpt, "--backend", "mrc", "--lossless", "--ledger", "l.json")
    run("info", "p.png.ddpm", "--json", "i.json")
    report = json.loads(Path("i.json").read_text())
    assert (report["width"], report["backend"], report["complete"]) == (8, "mrc", True)
    assert report["file_bytes"] == Path("p.png.ddpm").stat().st_size
    most = report["header_bytes"] + report["packet_end_bits"][1] // 8 + 5
    run("truncate", "p.png.ddpm", "--max-bytes", most, "-o", "short.ddpm")
    assert Path("short.ddpm").stat().st_size <= most
    refused = run("truncate", "short.ddpm", "--max-bytes", 50, "-o", "short.ddpm", status=1)
    assert "it is read as well" in refused.stderr  # what was cut off was gone once
    run("receive", "short.ddpm", "--ckpt", ckpt, "--previews", "steps")
    assert Path("short.ddpm.png").exists()
    steps = json.loads(Path("l.json").read_text())["steps"]
    assert len(list(Path("steps").glob("t*.png"))) == 3
    assert {"t", "s", "kl_bits", "spent_bits", "side_bits", "projection", "psnr_db"} == set(
        steps[0]
    )


def test_an_archive_on_standard_output_is_nothing_else(run, ckpt, pixels):
    np.savez("x.npz", x=pixels.permute(0, 2, 3, 1).numpy())
    common = ("pack", "x.npz", "--ckpt", ckpt, "--steps", 3, "--limit", 2, "-o")
    run(*common, "x.ddpa")
    assert run(*common, "-").stdout_bytes == Path("x.ddpa").read_bytes()


def test_a_folder_called_sample_does_not_hide_the_bundled_patches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sample").mkdir()
    assert archive._pictures("sample", 2)[0][0].shape == (3, 32, 32)
    pixels = calibrate_cli._pictures("sample", 2, None, torch.Generator())
    assert pixels.shape == (2, 3, 32, 32)


def test_send_targets(run, ckpt, picture):
    run("send", "p.png", "--ckpt", ckpt, "--bpd", 1e308, "-o", "all.ddpm")
    run("send", "p.png", "--ckpt", ckpt, "--bpd", 2.5, "-o", "a.ddpm")
    assert 8 * Path("a.ddpm").stat().st_size <= 2.5 * 192
    run("send", "p.png", "--ckpt", ckpt, "--max-bytes", 40, "-o", "b.ddpm")
    assert Path("b.ddpm").stat().st_size <= 40


def test_calibrate_plans_and_plan_replans(run, ckpt, pixels, tmp_path):
    """What `calibrate` stores is what `plan` finds; another plan makes another model hash."""
    data = tmp_path / "patches.npz"
    np.savez(data, x=pixels.permute(0, 2, 3, 1).numpy())
    run("calibrate", "--ckpt", ckpt, "--data", data, "--out", tmp_path / "new.safetensors")
    first = checkpoint.load(tmp_path / "new.safetensors")
    short = tmp_path / "short.safetensors"
    result = run("plan", "--ckpt", tmp_path / "new.safetensors", "--data", data, "--calls", 3,
                 "--out", short, "--plot", tmp_path / "plan.png")  # fmt: skip
    second = checkpoint.load(short)
    assert second.plan.steps <= 2
    assert second.hash != first.hash
    assert f"{second.plan.steps} steps" in result.output
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_interpolation_at_t_1_is_nearly_a_mixture_of_pixels(run, ckpt, picture, tmp_path):
    """At little noise the ends are the pictures themselves, whatever the model; one row."""
    Image.fromarray(255 - picture).save(tmp_path / "other.png")
    row = tmp_path / "row.png"
    run("interpolate", "p.png", "other.png", "--ckpt", ckpt, "-t", 1, "-n", 3, "-o", row)
    pixels = np.asarray(Image.open(row))
    assert pixels.shape == (8, 5 * 8, 3)
    np.testing.assert_array_equal(pixels[:, :8], picture)
    np.testing.assert_array_equal(pixels[:, 32:], 255 - picture)
    Image.fromarray(picture[:4]).save(tmp_path / "low.png")
    for arguments in (["p.png", "low.png"], ["p.png", "other.png", "-t", 21]):
        result = run("interpolate", *arguments, "--ckpt", ckpt, status=1)
        assert result.stderr.count("\n") == 1


def test_constant_rate_by_command_line(run, ckpt, picture, tmp_path):
    stream, out = tmp_path / "s.ddpm", tmp_path / "s.png"
    run("send", "p.png", "-o", stream, "--ckpt", ckpt, "--rate-bits", 16, "--block-bits", 8)
    shown = dict(line.split(maxsplit=1) for line in run("info", stream).output.splitlines())
    assert shown["rate_bits"] == "16"
    # what --block-bits takes: the header's byte, kappa + 32 (b - 1), was shown once
    assert (shown["block_bits"], shown["new_bits"]) == ("8", "2")
    run("receive", stream, "-o", out, "--ckpt", ckpt)
    assert out.exists()


def test_a_byte_limit_inside_a_step_is_used(run, ckpt, picture):
    """Most of it was not, where the next packet of the plan did not fit."""
    run("send", "p.png", "--ckpt", ckpt, "--ledger", "l.json")
    steps = json.loads(Path("l.json").read_text())["steps"]
    bits = [step["spent_bits"] + step["side_bits"] for step in steps]
    i = max(
        (i for i in range(len(steps)) if steps[i]["t"] > steps[i]["s"] + 2), key=bits.__getitem__
    )
    limit = 16 + 4 + int((sum(bits[:i]) + 0.8 * bits[i]) / 8)
    run("send", "p.png", "--ckpt", ckpt, "--max-bytes", limit, "-o", "part.ddpm")
    run("truncate", "p.png.ddpm", "--max-bytes", limit, "-o", "cut.ddpm")
    shown = dict(line.split(maxsplit=1) for line in run("info", "part.ddpm").output.splitlines())
    assert 0 < float(shown["last_step"]) < 1
    assert len(Path("cut.ddpm").read_bytes()) < len(Path("part.ddpm").read_bytes()) <= limit
    run("receive", "part.ddpm", "--ckpt", ckpt)


def test_a_folder_is_sent_in_one_batch(run, ckpt, picture):
    Path("in").mkdir()
    for name, view in (("a", picture), ("b", picture[::-1]), ("c", picture[:, :4])):
        data.write_image(Path(f"in/{name}.png"), np.ascontiguousarray(view))
    run("send", "in", "-o", "out", "--ckpt", ckpt, "--ledger", "l.json", "--backend", "mrc")
    assert sorted(p.name for p in Path("out").iterdir()) == [f"{n}.png.ddpm" for n in "abc"]
    assert len(json.loads(Path("l.json").read_text())) == 3
    result = run("receive", "out/c.png.ddpm", "--ckpt", ckpt)
    assert "4x8" in result.output


def test_a_cut_stream_leaves_the_best_picture_and_says_so(run, ckpt, picture):
    run("send", "p.png", "--ckpt", ckpt)
    stream = Path("p.png.ddpm").read_bytes()
    Path("cut.ddpm").write_bytes(stream[:-7])
    result = run("receive", "cut.ddpm", "--ckpt", ckpt, status=1)
    assert f"ends at byte {len(stream) - 7}" in result.stderr
    assert data.read_image(Path("cut.ddpm.png")).shape == (8, 8, 3)


BAD_STREAMS = {
    "empty": (b"", "ends at byte 0, in its header"),
    "foreign": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a ddpm-codec stream"),
    "header only": (b"\xddp%c\x00" % VERSION, "ends at byte 4"),
    "another version": (b"\xddp\x07" + bytes(50), "version 7"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_what_is_no_stream_writes_nothing(run, ckpt, case):
    content, reason = BAD_STREAMS[case]
    Path("x.ddpm").write_bytes(content)
    for command in (["receive", "x.ddpm", "--ckpt", ckpt], ["info", "x.ddpm"]):
        result = run(*command, status=1)
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
    assert not Path("x.ddpm.png").exists()


def test_every_command_has_its_help(run):
    for name in main.commands:
        assert run(name, "--help").output.startswith(f"Usage: main {name} ")


def test_a_mistyped_command_is_refused(run):
    assert "No such command 'sned'" in run("sned", status=2).output


@pytest.mark.parametrize("name", ["send", "receive", "info", "truncate", "pack", "unpack"])
def test_commands_that_draw_nothing_start_without_what_draws(name):
    code = (
        "import sys; from ddpm_codec.cli import main;"
        f"assert main.get_command(None, {name!r}).callback;"
        "print(*sorted({'matplotlib', 'pandas', 'ddpm_codec.cli.train'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
