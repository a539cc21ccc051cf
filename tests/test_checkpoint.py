"""Checkpoints: whole or refused, and never trusted before they are checked."""

import json
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_codec import checkpoint
from ddpm_codec.calibration import calibrate
from ddpm_codec.checkpoint import MODEL_PRESETS, Checkpoint, _plan, build_network
from ddpm_codec.errors import CheckpointError, DataError


@pytest.fixture
def saved(tiny, pixels, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tiny.calibration = calibrate(tiny.model(), pixels, generator)
    tiny.notes = {"minutes": 1.5, "data": "photographs"}
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(tiny, path)
    return tiny, path


def test_round_trip_gives_the_same_model(saved, pixels):
    original, path = saved
    loaded = checkpoint.load(path)
    assert loaded.config == original.config
    assert loaded.notes == original.notes
    assert loaded.hash == original.hash
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 20])
    for a, b in zip(original.model().estimate(x, t), loaded.model().estimate(x, t), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    original, path = saved
    checkpoint.save(original, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_hash_covers_what_decoding_needs_and_nothing_else(saved):
    original, _ = saved
    same = replace(original, notes={}, training={"x": torch.zeros(1)})
    assert same.hash == original.hash
    name = "head.bias"
    moved = {**original.weights, name: original.weights[name] + 1e-6}
    assert replace(original, weights=moved).hash != original.hash
    assert replace(original, calibration=None).hash != original.hash
    other = replace(original.config, parameterization="eps")
    assert replace(original, config=other).hash != original.hash


def test_a_calibration_may_lack_the_dependence_of_pixels(saved, tmp_path):
    """Checkpoints calibrated before it was measured keep their decoder of independent pixels."""
    original, path = saved
    assert checkpoint.load(path).model().conditional
    before = replace(original.calibration, pixel_weights=None, pixel_spread=None)
    old = replace(original, calibration=before)
    checkpoint.save(old, tmp_path / "old.safetensors")
    again = checkpoint.load(tmp_path / "old.safetensors").model()
    assert again.variance == "calibrated"
    assert not again.conditional
    assert old.hash != original.hash


@pytest.mark.parametrize("name", ["pixel_weights", "pixel_spread", "head_scale"])
def test_tables_of_no_numbers_are_refused_whatever_their_hash(saved, tmp_path, name):
    original, _ = saved
    table = getattr(original.calibration, name).copy()
    table.flat[5] = np.nan
    bad = replace(original, calibration=replace(original.calibration, **{name: table}))
    checkpoint.save(bad, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=f"calibration.{name} is damaged"):
        checkpoint.load(tmp_path / "bad.safetensors")


def test_weights_of_no_numbers_are_refused_whatever_their_hash(saved, tmp_path):
    original, _ = saved
    weights = {k: v.clone() for k, v in original.weights.items()}
    weights["stem.bias"][0] = torch.inf
    checkpoint.save(replace(original, weights=weights), tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"model.stem.bias holds numbers that are not finite"):
        checkpoint.load(tmp_path / "bad.safetensors")


def test_half_precision_weights_run_in_float32(saved, tmp_path):
    original, _ = saved
    half = replace(original, weights={k: v.half() for k, v in original.weights.items()})
    checkpoint.save(half, tmp_path / "half.safetensors")
    network = checkpoint.load(tmp_path / "half.safetensors").model().denoiser
    assert {p.dtype for p in network.network.parameters()} == {torch.float32}


def test_nothing_is_left_behind_when_writing_fails(saved, tmp_path):
    original, _ = saved
    with pytest.raises(DataError, match="no such file"):
        checkpoint.save(original, tmp_path / "no" / "such.safetensors")
    with pytest.raises(DataError, match="folder"):
        checkpoint.save(original, tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_written_files_follow_the_umask(saved):
    """safetensors creates its files readable by their owner only; a shared one must not be."""
    umask = os.umask(0)
    os.umask(umask)
    assert saved[1].stat().st_mode & 0o777 == 0o666 & ~umask


def edited(path, change):
    """The file with `change` made to its JSON description."""
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    about = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["ddpm_codec"])
    change(about)
    save_file(load_file(path), path, metadata={"ddpm_codec": json.dumps(about)})


def corrupt(path, kind):
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut in the header":
        path.write_bytes(data[:100])
    elif kind == "cut in the tensors":
        path.write_bytes(data[:-100])
    elif kind == "flipped bit":
        path.write_bytes(data[:-50] + bytes([data[-50] ^ 4]) + data[-49:])
    elif kind == "huge header":
        path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    elif kind == "foreign":
        save_file({"x": torch.zeros(3)}, path)
    elif kind == "tensor left out":
        tensors = load_file(path)
        tensors.pop("model.head.bias")
        save_file(tensors, path, metadata=_metadata(data))
    elif kind == "tensor of another shape":
        tensors = load_file(path)
        tensors["model.head.bias"] = torch.zeros(7)
        save_file(tensors, path, metadata=_metadata(data))
    elif kind == "calibration of another length":
        tensors = load_file(path)
        tensors["calibration.x_0_mse"] = torch.zeros(7, dtype=torch.float64)
        save_file(tensors, path, metadata=_metadata(data))
    elif kind == "absurd network":
        edited(path, lambda a: a["config"]["unet"].update(channels=10**9))
    elif kind == "field of another type":
        edited(path, lambda a: a["config"]["unet"].update(channels="many"))
    elif kind == "unknown word":
        edited(path, lambda a: a["config"]["unet"].update(dialect="klingon"))
    elif kind == "a description without end":
        tensors = load_file(path)
        save_file(tensors, path, metadata={"ddpm_codec": "[" * 100_000})
    elif kind == "an octave beyond floats":
        edited(path, lambda a: a["config"]["unet"].update(fourier=[5000]))
    elif kind == "unknown field":
        edited(path, lambda a: a["config"].update(plan=3))
    elif kind == "other format":
        edited(path, lambda a: a.update(format=99))


def _metadata(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size])["__metadata__"]


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "cut in the header",
        "cut in the tensors",
        "flipped bit",
        "huge header",
        "pickle",
        "foreign",
        "tensor left out",
        "tensor of another shape",
        "calibration of another length",
        "absurd network",
        "field of another type",
        "unknown word",
        "a description without end",
        "an octave beyond floats",
        "unknown field",
        "other format",
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_line(saved, kind):
    path = saved[1]
    corrupt(path, kind)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_of_numbers_that_numpy_lacks_is_damage(tmp_path):
    """One whose hash is right: a TypeError once came out."""
    tensors = {
        "timesteps": torch.tensor([20, 1]),
        "packet_bpd": torch.zeros(1, dtype=torch.bfloat16),
    }
    with pytest.raises(CheckpointError, match="plan is damaged"):
        _plan(tmp_path, tensors, 20)


def test_a_field_at_its_default_is_no_part_of_the_hash(saved):
    """So that checkpoints and streams of a version that lacked the field stay what they are."""
    source, path = saved
    edited(path, lambda a: a["config"]["unet"].pop("dialect"))
    assert checkpoint.load(path).hash == source.hash


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="folder"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("preset", sorted(MODEL_PRESETS))
def test_the_time_embedding_sees_distinct_levels(preset):
    with torch.device("meta"):
        config = MODEL_PRESETS[preset]
    level = build_network(replace(config, unet=replace(config.unet, channels=32))).noise_level
    assert np.all(np.diff(level[1:].numpy()) > 0)


def test_weights_of_another_network_are_not_loaded(tiny):
    other = Checkpoint(MODEL_PRESETS["small"], tiny.weights)
    with pytest.raises(RuntimeError):
        other.model()
