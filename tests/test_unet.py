"""The two presets: the paper's size, the small one's locality."""

from dataclasses import replace

import pytest
import torch

from ddpm_codec.checkpoint import MODEL_PRESETS, build_network
from ddpm_codec.errors import ConfigError
from ddpm_codec.layers import PixelNorm
from ddpm_codec.unet import UNet, for_experts, parameter_count
from ddpm_codec.unet_config import UNetConfig

from .conftest import TINY, random_checkpoint


def test_paper_preset_has_the_papers_35_7_million_parameters():
    """35 746 307 is the count of the authors' CIFAR-10 network, layer by layer."""
    with torch.device("meta"):
        assert parameter_count(UNet(MODEL_PRESETS["paper"].unet, torch.zeros(1001))) == 35_746_307


def test_small_preset_fits_its_ten_megabytes_in_half_precision():
    """With 1.2 MB of calibration; both of its halves upward are in the file, one runs in a call."""
    assert 2 * parameter_count(build_network(MODEL_PRESETS["small"])) < 10e6 - 1.25e6


def test_pixel_norm_is_layer_norm_over_channels():
    x = torch.randn(2, 8, 4, 4)
    y = PixelNorm(8)(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-3, rtol=0)


def test_a_pixel_of_the_local_network_sees_a_bounded_neighbourhood():
    network = random_checkpoint(TINY).model().denoiser
    x = torch.randn(1, 3, 8, 160)
    t = torch.tensor([5])
    far = x.clone()
    far[..., 80:] += 1.0
    before, after = network(x, t).prediction, network(far, t).prediction
    changed = (before != after).any(dim=(0, 1, 2)).nonzero().min()
    # Radius in half-resolution pixels: 9 layers there and 10 twice as wide behind the stride.
    assert 80 - 2 * (9 + 2 * 10 + 2) <= changed <= 80


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_presets_run_on_their_input_sizes(preset):
    unet = replace(MODEL_PRESETS[preset].unet, channels=32)
    network = build_network(replace(MODEL_PRESETS[preset], unet=unet)).eval()
    x = torch.randn(2, 3, 16, 24)
    prediction, log_variance = network(x, torch.tensor([1, 1000]))
    assert prediction.shape == x.shape
    assert (log_variance is None) == (preset == "paper")


def test_every_timestep_has_its_expert():
    """Whatever the order in a batch: those up to 3 the network's own half, 4 to 7 the next, ..."""
    alone = random_checkpoint(TINY)
    model = replace(TINY, unet=replace(TINY.unet, experts=(3, 7)))
    network, single = build_network(model), build_network(TINY)
    network.load_state_dict(for_experts(alone.weights, 2))
    single.load_state_dict(alone.weights)
    x, t = torch.randn(7, 3, 8, 8), torch.tensor([9, 3, 4, 1, 8, 7, 2])
    with torch.no_grad():
        before = network(x, t)
        torch.testing.assert_close(before, single(x, t))
        for parameter in network.others[0].parameters():
            parameter.add_(0.1)
        changed = (network(x, t).prediction - before.prediction).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, True, False, False, True, False]


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(channels=33),
        UNetConfig(channels=5, norm="pixel", attention=()),
        UNetConfig(experts=(7, 7)),
        UNetConfig(experts=(0,)),
        UNetConfig(attention=(7,)),
        UNetConfig(channels=10**9),
    ],
)
def test_absurd_shapes_are_refused_before_anything_is_allocated(config):
    with pytest.raises(ConfigError):
        UNet(config, torch.zeros(3))


def test_an_expert_without_timesteps_is_refused():
    unet = replace(TINY.unet, experts=(TINY.schedule.T,))
    with pytest.raises(ConfigError, match="none is left"):
        build_network(replace(TINY, unet=unet))
