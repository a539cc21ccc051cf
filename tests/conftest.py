"""Shared fixtures: a small random network, so that no test waits for training."""

import pytest
import torch

from ddpm_codec.checkpoint import Checkpoint, ModelConfig, build_network
from ddpm_codec.schedule import ScheduleConfig
from ddpm_codec.unet_config import UNetConfig

TINY = ModelConfig(
    unet=UNetConfig(
        channels=8,
        multipliers=(1, 1),
        blocks=1,
        attention=(),
        norm="pixel",
        dropout=0.0,
        patch=2,
        fourier=(1,),
        log_variance=True,
    ),
    schedule=ScheduleConfig(T=20, beta_1=1e-3, beta_T=0.3),
    parameterization="v",
    time="log_snr",
)


def random_checkpoint(config: ModelConfig, seed: int = 0) -> Checkpoint:
    """A network with random weights everywhere, also where training starts from zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the same whatever other tests have drawn
        torch.manual_seed(seed)
        fresh = build_network(config).state_dict()
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in fresh.items()
    }
    return Checkpoint(config, weights)


@pytest.fixture
def tiny() -> Checkpoint:
    return random_checkpoint(TINY)


def smooth_pictures(count: int) -> torch.Tensor:
    """Smooth random pictures (count,3,8,8) uint8."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=8, mode="bilinear")
    return (smooth * 255).round().to(torch.uint8)


@pytest.fixture
def pixels() -> torch.Tensor:
    return smooth_pictures(6)
