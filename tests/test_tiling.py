"""Tiles with halos give what the whole picture gives; the receptive field is what it is said."""

import itertools
from dataclasses import replace

import pytest
import torch

from ddpm_codec import layers
from ddpm_codec.checkpoint import build_network
from ddpm_codec.tiling import Tiled, cuts, receptive_radius
from ddpm_codec.unet_config import PRESETS

from .conftest import TINY, random_checkpoint

CONFIGS = {
    "two levels": TINY,
    "one level": replace(TINY, unet=replace(TINY.unet, multipliers=(1,))),
    "three levels": replace(TINY, unet=replace(TINY.unet, multipliers=(1, 1, 1))),
    "gated blocks": replace(
        TINY, unet=replace(TINY.unet, multipliers=(1,), blocks=3, block="gated")
    ),
    "no stem": replace(TINY, unet=replace(TINY.unet, patch=1)),
}


def network_of(config):
    network = build_network(config)
    network.load_state_dict(random_checkpoint(config).weights)
    return network.eval().requires_grad_(False)


@pytest.fixture(params=CONFIGS, name="config")
def _config(request):
    return CONFIGS[request.param]


def test_nothing_further_away_than_the_radius_matters(config):
    """Change one pixel, at each phase of the grid: no output beyond the radius changes."""
    network, radius = network_of(config), receptive_radius(config.unet)
    side = 2 * radius + 24
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = network(x, torch.tensor([7]))[0]
    furthest = 0
    for phase in range(config.unet.stride):
        at = radius + 8 + phase
        changed = x.clone()
        changed[0, :, at, at] += 1.0
        moved = (network(changed, torch.tensor([7]))[0] - before).abs().amax(dim=(0, 1)) > 0
        rows, columns = moved.nonzero(as_tuple=True)
        furthest = max(furthest, *(int((v - at).abs().max()) for v in (rows, columns)))
    assert furthest <= radius
    assert furthest > radius / 2  # a bound that is twice too large would waste work


def test_strips_give_what_the_whole_gives(monkeypatch):
    """A gated block takes large pictures in strips of rows that know their neighbours."""
    network = network_of(CONFIGS["gated blocks"])
    x = torch.randn(1, 3, 34, 14, generator=torch.Generator().manual_seed(0))
    whole = network(x, torch.tensor([7]))
    for cells in (1, 21, 35):  # 1, 3 and 5 rows of 7 cells
        monkeypatch.setattr(layers, "CACHE_CELLS", cells)
        for a, b in zip(whole, network(x, torch.tensor([7])), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (37, 91), (90, 3)])
def test_tiles_give_what_the_whole_gives(config, shape):
    network = network_of(config)
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 15])
    whole, tiled = network(x, t), Tiled(network, tile=16)(x, t)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 2)])
def test_sides_of_any_length(shape):
    network = network_of(TINY)
    x = torch.randn(1, 3, *shape)
    prediction, log_variance = network(x, torch.tensor([5]))
    assert prediction.shape == log_variance.shape == x.shape


def test_a_global_network_is_never_cut():
    assert receptive_radius(PRESETS["paper"]) is None
    assert receptive_radius(PRESETS["small"]) is not None


def test_cuts_are_even_and_on_the_grid():
    assert cuts(32, 4, 384) == [0, 32]
    for side in (385, 768, 2731, 4096):
        edges = cuts(side, 4, 384)
        assert edges[0] == 0
        assert edges[-1] == side
        assert all(edge % 4 == 0 for edge in edges[:-1])
        widths = [b - a for a, b in itertools.pairwise(edges)]
        assert max(widths) <= 384 + 4
        assert max(widths) - min(widths) <= 8
