"""Checkpoints: a trained model in one safetensors file, nothing ever unpickled.

Tensors: `model.*` (the averaged weights, any float type), `calibration.*` (float64), and,
while training goes on, `training.*`. The file's metadata hold one JSON text under
`ddpm_codec`: format version, network, schedule, parameterization, and what training noted.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpm_codec.bands import band_count
from ddpm_codec.conditional import weights_shape
from ddpm_codec.configuration import parse, unusual
from ddpm_codec.diffusion import Calibration, DiffusionModel, VarianceHead, VarianceRule
from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.files import write_tensors
from ddpm_codec.schedule import Parameterization, Plan, Schedule, ScheduleConfig
from ddpm_codec.tiling import Tiled
from ddpm_codec.unet import UNet
from ddpm_codec.unet_config import PRESETS, UNetConfig

TimeEmbedding = Literal["t", "index", "rescaled", "log_snr"]

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1 << 24
_KEY = "ddpm_codec"
_TABLES = ("calibration.", "plan.")
_SNR_LEVELS_PER_NAT = 25.0
_RESCALED_T = 1000
_MOST_PLANNED = 256


@dataclass(frozen=True)
class ModelConfig:
    """Everything that says what the tensors of a checkpoint mean.

    `time`: what the network's time embedding sees: `t`, `index` (t - 1, as the paper's code and
    most others have it), `rescaled` (that times 1000 / T, OpenAI's) or `log_snr`.
    `variance_head`: what its second output is, where it has one: `error`, the log of the expected
    squared error of the first, or `range`, v in -1..1 that interpolates log sigma^2 between
    beta_tilde and beta (Nichol & Dhariwal 2021, Eq. 15).
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parameterization: Parameterization = "eps"
    time: TimeEmbedding = "t"
    variance_head: VarianceHead = "error"


MODEL_PRESETS = {
    "paper": ModelConfig(time="index"),
    "small": ModelConfig(PRESETS["small"], parameterization="v", time="log_snr"),
    "medium": ModelConfig(PRESETS["medium"], parameterization="v", time="log_snr"),
}
"""The models of this project, by name."""


@dataclass
class Checkpoint:
    """A model at rest: configuration, weights, calibration, plan, notes, training state.

    `notes` is free JSON for a model card; `training` are the tensors of `training.*`.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    calibration: Calibration | None = None
    plan: Plan | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Tensor] = field(default_factory=dict)

    def model(
        self,
        variance: VarianceRule | None = None,
        device: torch.device | None = None,
        bfloat16: bool = False,
        float64: bool = False,
    ) -> DiffusionModel:
        """The diffusion model, its network in evaluation mode, on `device`, in float32 or, inside,
        in bfloat16, or in float64.

        `variance`: calibrated where there is a calibration, else beta_tilde, unless given.
        """
        network = build_network(self.config)
        network.load_state_dict(self.weights)
        network.eval().requires_grad_(False)
        if float64:
            network.double()
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rule = variance or ("calibrated" if self.calibration is not None else "beta_tilde")
        if rule == "learned" and (self.config.variance_head, self.config.unet.log_variance) != (
            "range",
            True,
        ):
            raise ConfigError("this checkpoint has not learned a variance: choose another one")
        return DiffusionModel(
            denoiser=Tiled(network, bfloat16=bfloat16),
            schedule=Schedule(self.config.schedule),
            parameterization=self.config.parameterization,
            variance=rule,
            variance_head=self.config.variance_head,
            calibration=self.calibration,
        )

    @property
    def hash(self) -> str:
        """SHA-256 over what decoding needs: configuration, weights, calibration and plan."""
        return _content_hash(self.config, self.weights | self._tables())

    def _tables(self) -> dict[str, Tensor]:
        """The tensors of the calibration and of the plan, under their names in the file."""
        groups = {"calibration": self.calibration, "plan": self.plan}
        return {
            f"{group}.{name}": torch.from_numpy(table)
            for group, tables in groups.items()
            if tables is not None
            for name, table in asdict(tables).items()
            if table is not None
        }


def _content_hash(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """Fields at their defaults don't count, so that a new one leaves old hashes as they are."""
    digest = hashlib.sha256(json.dumps(unusual(config), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_network(config: ModelConfig) -> UNet:
    """A `UNet` with fresh weights for this configuration. ConfigError for one that can't be."""
    schedule, experts = Schedule(config.schedule), config.unet.experts
    if experts and experts[-1] >= schedule.T:
        raise ConfigError(f"experts up to timesteps {experts}: of {schedule.T} none is left")
    level = np.arange(schedule.T + 1, dtype=np.float64)
    if config.time == "log_snr":
        level[1:] = _SNR_LEVELS_PER_NAT * (schedule.log_snr[1] - schedule.log_snr[1:])
    elif config.time in ("index", "rescaled"):
        level[1:] = (level[1:] - 1) * (1 if config.time == "index" else _RESCALED_T / schedule.T)
    return UNet(config.unet, torch.from_numpy(level))


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write one file, whole or not at all. Raises DataError when that can't be done."""
    tensors = {f"model.{k}": v for k, v in checkpoint.weights.items()}
    tensors |= checkpoint._tables()
    tensors |= {f"training.{k}": v for k, v in checkpoint.training.items()}
    about = {
        "format": FORMAT_VERSION,
        "config": asdict(checkpoint.config),
        "notes": checkpoint.notes,
        "hash": checkpoint.hash,
    }
    write_tensors(path, tensors, metadata={_KEY: json.dumps(about)})


def load(path: Path, training: bool = False) -> Checkpoint:
    """Read a checkpoint, with its training state if asked for.

    Names, types and shapes are compared with the configured network before a tensor is read. A
    calibration or a plan of another version's tables counts as none.
    Raises CheckpointError for a file that is missing, damaged or foreign, or whose hash fails.
    """
    try:
        _check_length(path)
        with safe_open(path, framework="pt") as file:
            about = _about(path, file.metadata())
            config = parse(ModelConfig, about["config"], path)
            _check_shapes(path, file, config)
            tensors = {k: file.get_tensor(k) for k in file.keys() if _wanted(k, training)}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    weights = _group(tensors, "model.")
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: model.{name} holds numbers that are not finite")
    tables = {k: v for k, v in tensors.items() if k.startswith(_TABLES)}
    found = _content_hash(config, weights | tables)
    if found != about["hash"]:
        raise CheckpointError(
            f"{path}: damaged: its content hashes to {found[:16]}, "
            f"its header says {str(about['hash'])[:16]}"
        )
    return Checkpoint(
        config=config,
        weights=weights,
        calibration=_calibration(path, _group(tensors, "calibration."), config),
        plan=_plan(path, _group(tensors, "plan."), config.schedule.T),
        notes=about["notes"],
        training=_group(tensors, "training."),
    )


def load_bundled() -> Checkpoint:
    """The checkpoint that comes with the package: the `small` preset, trained and calibrated."""
    with resources.as_file(resources.files("ddpm_codec") / "assets/small.safetensors") as path:
        return load(path)


def _wanted(name: str, training: bool) -> bool:
    return training or not name.startswith("training.")


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _check_length(path: Path) -> None:
    """The header's length field against the file, before safetensors trusts it."""
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; a checkpoint file was expected")
    with path.open("rb") as file:
        head = file.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= size <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise CheckpointError(
            f"{path}: not a safetensors file, or cut short; expected a checkpoint"
        )


def _about(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not written by ddpm-codec train")
    try:
        about = json.loads(text)
        version, _, _, _ = (about[key] for key in ("format", "config", "notes", "hash"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description is damaged") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}; this version reads format {FORMAT_VERSION}"
        )
    return cast(dict[str, Any], about)


def _check_shapes(path: Path, file: Any, config: ModelConfig) -> None:
    try:
        with torch.device("meta"):
            expected = build_network(config).state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    found = {k for k in file.keys() if k.startswith("model.")}  # noqa: SIM118
    if found != {f"model.{k}" for k in expected}:
        raise CheckpointError(f"{path}: its tensors are not those of the network it describes")
    for name, tensor in expected.items():
        shape = tuple(file.get_slice(f"model.{name}").get_shape())
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: model.{name} is {shape}, expected {tuple(tensor.shape)}"
            )


def _calibration(path: Path, tensors: dict[str, Tensor], config: ModelConfig) -> Calibration | None:
    rows, channels = config.schedule.T + 1, config.unet.image_channels
    scalar, band = (torch.float64, (rows,)), (torch.float16, (rows, band_count(channels)))
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "x_0_mse": scalar, "head_scale": scalar,
        "band_share": band, "band_ratio": band, "band_power": band,
    }  # fmt: skip
    pixels = {
        "pixel_weights": (torch.float32, weights_shape(channels)),
        "pixel_spread": (torch.float32, weights_shape(channels)[:2]),
    }
    if tensors.keys() not in (kinds.keys(), (kinds | pixels).keys()):
        return None
    for name, table in tensors.items():
        good = (table.dtype, tuple(table.shape)) == (kinds | pixels)[name]
        signed = name == "pixel_weights"
        if not good or not bool((torch.isfinite(table) & (signed | (table >= 0))).all()):
            raise CheckpointError(f"{path}: calibration.{name} is damaged")
    return Calibration(**{k: v.numpy() for k, v in tensors.items()})


def _plan(path: Path, tensors: dict[str, Tensor], T: int) -> Plan | None:
    if sorted(tensors) != sorted(f.name for f in fields(Plan)):
        return None
    if [tensors[k].dtype for k in ("timesteps", "packet_bpd")] != [torch.int64, torch.float64]:
        raise CheckpointError(f"{path}: its plan is damaged")
    t, bpd = tensors["timesteps"].numpy(), tensors["packet_bpd"].numpy()
    falling = t.ndim == 1 and bool(np.all(np.diff(t) < 0))
    if not falling or not 2 <= len(t) <= _MOST_PLANNED or t[0] != T or t[-1] < 1:
        raise CheckpointError(f"{path}: its plan is damaged")
    if bpd.shape != (len(t) - 1,) or not np.isfinite(bpd).all():
        raise CheckpointError(f"{path}: its plan is damaged")
    return Plan(t, bpd)
