"""Training: Algorithm 1 of Ho et al. 2020, with everything that lets a run stop and go on."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ddpm_codec.checkpoint import Checkpoint, ModelConfig, build_network
from ddpm_codec.distributed import ALONE, Workers
from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.files import write_text
from ddpm_codec.objectives import NoisyBatch, Objective, TrainingLoss
from ddpm_codec.optimizers import Optimizer, OptimizerName
from ddpm_codec.unet import for_experts
from ddpm_codec.units import from_uint8

DrawCrops = Callable[[int, torch.Generator], Tensor]

_STATE_NOTES = ("training", "progress")
_LOG_EVERY = 50


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters; the defaults are those of the `small` preset.

    The rates warm up over `warmup_steps`, stay, and over the last `decay` of the run (in steps or
    in minutes, whichever was given) fall to `final` of themselves. `accumulate`: parts in which a
    process goes through its share of a batch, to save memory. `bfloat16`: the
    network's inside runs in it; `muon_bfloat16`: Muon's iterations do.
    """

    objective: Objective = "vlb"
    steps: int = 0
    minutes: float = 0.0
    batch: int = 32
    accumulate: int = 1
    crop: int = 32
    enlarged: float = 0.0
    subsampled: float = 0.0
    optimizer: OptimizerName = "muon"
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    beta2: float = 0.99
    ema_decay: float = 0.999
    warmup_steps: int = 200
    decay: float = 0.4
    final: float = 0.02
    clip_norm: float = 1.0
    log_variance_weight: float = 0.1
    bfloat16: bool = False
    muon_bfloat16: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError unless exactly one of `steps` and `minutes` is given."""
        if (self.steps > 0) == (self.minutes > 0):
            raise ConfigError("training needs either a number of steps or a number of minutes")
        if not (0 <= self.enlarged <= 1 and 0 <= self.subsampled <= 1):
            raise ConfigError("shares of enlarged and of subsampled crops are 0..1")
        rates_are_good = 0 < self.learning_rate <= 1 and 0 < self.muon_rate <= 1
        if not rates_are_good or min(self.batch, self.crop, self.accumulate) < 1:
            raise ConfigError("training needs learning rates in (0, 1] and a batch of crops")


TRAINING_PRESETS = {
    "small": TrainingConfig(),
    "medium": TrainingConfig(batch=128, crop=64, ema_decay=0.9999, warmup_steps=1000),
    "paper": TrainingConfig(
        batch=128,
        optimizer="adam",
        learning_rate=2e-4,
        beta2=0.999,
        ema_decay=0.9999,
        warmup_steps=5000,
        decay=0.0,
    ),
}
"""`paper`: Appendix B, and the warm-up and clipping of the authors' code."""


@dataclass
class Trainer:
    """The state of a training run; `checkpoint` and `resume` lose nothing of it."""

    model: ModelConfig
    config: TrainingConfig
    network: nn.Module
    ema: dict[str, Tensor]
    optimizer: Optimizer
    generator: torch.Generator
    workers: Workers = ALONE
    step: int = 0
    seconds: float = 0.0
    images_here: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def start(
        model: ModelConfig,
        config: TrainingConfig,
        init: Checkpoint | None = None,
        workers: Workers = ALONE,
    ) -> "Trainer":
        """Fresh weights from `config.seed`, or those of `init` (CheckpointError if foreign), which
        all experts share at first where `init` has none."""
        config.check()
        generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(model)
        if init is not None:
            alone = replace(model, unet=replace(model.unet, experts=()))
            if init.config not in (model, alone):
                raise CheckpointError("--init: that checkpoint is of another model configuration")
            experts = len(model.unet.experts) if init.config == alone else 0
            network.load_state_dict(for_experts(init.weights, experts))
        network.to(workers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rates = (config.learning_rate, config.muon_rate, config.beta2)
        optimizer = Optimizer(network, config.optimizer, *rates, config.muon_bfloat16)
        ema = {k: v.detach().clone() for k, v in network.named_parameters()}
        return Trainer(model, config, network, ema, optimizer, generator, workers)

    @staticmethod
    def resume(checkpoint: Checkpoint, workers: Workers = ALONE) -> "Trainer":
        """Continue exactly where `checkpoint` was taken.

        Raises CheckpointError if it holds no training state, or a damaged one.
        """
        if "generator" not in checkpoint.training:
            raise CheckpointError("--resume: that checkpoint holds no training state; use --init")
        try:
            config = TrainingConfig(**checkpoint.notes["training"])
            trainer = Trainer.start(checkpoint.config, config, workers=workers)
            trainer._restore(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError("--resume: its training state is damaged; use --init") from error
        return trainer

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, progress = checkpoint.training, checkpoint.notes["progress"]
        device = self.workers.device
        self.ema = {k: v.float().to(device, copy=True) for k, v in checkpoint.weights.items()}
        self.notes = {k: v for k, v in checkpoint.notes.items() if k not in _STATE_NOTES}
        self.step, self.seconds = int(progress["step"]), float(progress["seconds"])
        self.generator.set_state(state["generator"])
        for name, parameter in self.network.named_parameters():
            parameter.data.copy_(state[f"weights.{name}"].view(parameter.shape))
        self.optimizer.restore(state)

    def checkpoint(self, with_state: bool = True) -> Checkpoint:
        """The averaged weights and, if asked, everything that `resume` needs, on the CPU."""
        state: dict[str, Tensor] = {}
        if with_state:
            state["generator"] = self.generator.get_state()
            state |= self.optimizer.state()
            for name, parameter in self.network.named_parameters():
                state[f"weights.{name}"] = parameter.detach().to("cpu", copy=True)
        notes = self.notes | {
            "training": asdict(self.config),
            "progress": {"step": self.step, "seconds": self.seconds},
        }
        weights = {k: v.to("cpu", copy=True) for k, v in self.ema.items()}
        return Checkpoint(self.model, weights, notes=notes, training=state)

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def rate_factor(self) -> float:
        """Warm-up, plateau, cosine decay to `final`: what the learning rates are multiplied by."""
        c = self.config
        factor = min(1.0, (self.step + 1) / max(1, c.warmup_steps))
        if c.decay and self.progress > 1 - c.decay:
            x = (self.progress - (1 - c.decay)) / c.decay
            factor *= c.final + (1 - c.final) * 0.5 * (1 + math.cos(math.pi * x))
        return factor

    def images_left(self) -> int:
        """Images still to come: exact for a run in steps, a guess for one in minutes."""
        if self.config.steps:
            return (self.config.steps - self.step) * self.config.batch
        done = self.step * self.config.batch
        return round(done / self.progress * (1 - self.progress)) if done else 0

    def run(self, draw: DrawCrops) -> Iterator[float]:
        """Train until `progress` is 1; yields the loss of every step."""
        c = self.config
        loss = TrainingLoss(self.model, c.objective, c.log_variance_weight, c.bfloat16)
        self.network.train()
        while self.progress < 1.0:
            began = time.monotonic()
            x_0 = from_uint8(draw(c.batch, self.generator))
            value = self._gradients(loss, loss.draw(x_0, self.generator))
            self._update()
            [seconds] = self.workers.sums([(time.monotonic() - began) / self.workers.count])
            self.seconds += seconds
            self.images_here += c.batch
            yield value

    def _gradients(self, loss: TrainingLoss, batch: NoisyBatch) -> float:
        """Add up the gradients of the batch, this process doing its share; returns the loss.

        Dropout draws from the global generator: seeded for each part, and put back.
        """
        total = 0.0
        for part in self.workers.share(len(batch.t), self.config.accumulate):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(hash_seed(self.config.seed, self.step, part.start))
                share = (part.stop - part.start) / len(batch.t)
                value = share * loss(self.network, batch.part(part, self.workers.device))
            value.backward()
            total += float(value.detach())
        self.workers.sum_gradients(self.network)
        return self.workers.sums([total])[0]

    def _update(self) -> None:
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):  # one such step would leave no weight as it was
            raise ConfigError(
                f"the gradient of step {self.step + 1} is not finite: go on from the last "
                "checkpoint with --init and a lower --learning-rate and --muon-rate"
            )
        self.optimizer.step(self.rate_factor())
        self.step += 1
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        pairs = dict(self.network.named_parameters())
        torch._foreach_lerp_(
            [self.ema[k] for k in pairs], [p.data for p in pairs.values()], 1 - decay
        )


def hash_seed(*numbers: int) -> int:
    """A seed for one part of one step of a run, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass
class TrainingLog:
    """A row every few steps: step, seconds, images a second, learning rate, loss, validation."""

    rows: list[Any] = field(default_factory=list)
    loss: float = math.nan

    @staticmethod
    def read(path: Path, step: int) -> "TrainingLog":
        """The log of a run that is resumed at `step`; empty if there is none."""
        try:
            rows = pd.read_csv(path)
        except (OSError, ValueError):
            rows = pd.DataFrame()
        if "step" not in rows:
            return TrainingLog()
        return TrainingLog(rows[rows["step"] <= step].to_dict("records"))

    def add(self, trainer: Trainer, loss: float) -> None:
        """Average `loss` over about 200 steps and note it every 50."""
        self.loss = loss if math.isnan(self.loss) else self.loss + 0.005 * (loss - self.loss)
        if trainer.step % _LOG_EVERY == 0:
            self.rows.append(self._row(trainer))

    def validated(self, trainer: Trainer, bpd: float) -> None:
        """Note a validation in bits/dim."""
        self.rows.append(self._row(trainer) | {"validation_bpd": bpd})

    def _row(self, trainer: Trainer) -> dict[str, float]:
        return {
            "step": trainer.step,
            "seconds": round(trainer.seconds, 3),
            "images_per_second": trainer.step * trainer.config.batch / max(trainer.seconds, 1e-9),
            "learning_rate": trainer.config.learning_rate * trainer.rate_factor(),
            "loss": self.loss,
            "validation_bpd": math.nan,
        }

    def write(self, path: Path, trainer: Trainer) -> None:
        """Write the rows and where the run is now as CSV, atomically."""
        if not self.rows or self.rows[-1]["step"] != trainer.step:
            self.rows.append(self._row(trainer))
        write_text(path, pd.DataFrame(self.rows).to_csv(index=False))
