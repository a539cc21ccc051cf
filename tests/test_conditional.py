"""The decoder of dependent pixels against closed forms, and as a code."""

import itertools

import numpy as np
import pytest
import torch

from ddpm_codec.conditional import (
    CLASS_EDGES,
    CLASSES,
    PHASES,
    ConditionalGaussian,
    PixelFit,
    classes_of,
    parts,
    taps,
    weights_shape,
)
from ddpm_codec.discretized import DiscretizedGaussian, without_rounding
from ddpm_codec.pixel_code import decode_pixels, encode_pixels
from ddpm_codec.units import HALF_RANGE_255


def decoder(x_0_hat, variance, weights=None, spread=None, noise=1e-4, dependent=True):
    shape = weights_shape(x_0_hat.shape[1])
    images = len(x_0_hat)
    return ConditionalGaussian(
        x_0_hat,
        torch.as_tensor(variance).expand_as(x_0_hat),
        torch.full((images, 1, 1, 1), noise),
        torch.as_tensor(dependent).expand(images).view(-1, 1, 1, 1),
        np.zeros(shape, np.float32) if weights is None else weights,
        np.ones(shape[:2], np.float32) if spread is None else spread,
    )


@pytest.fixture
def some():
    """A decoder of two pictures with w and c of no particular kind, and pixels near its means."""
    rng = np.random.default_rng(0)
    x_0_hat = torch.from_numpy(rng.uniform(-1.05, 1.05, (2, 3, 7, 5)))
    variance = torch.from_numpy(np.exp(rng.uniform(-12, -8, (2, 3, 7, 5))))
    weights = rng.normal(0, 0.1, weights_shape(3)).astype(np.float32)
    spread = rng.uniform(0.5, 1, weights_shape(3)[:2]).astype(np.float32)
    noise = rng.normal(size=x_0_hat.shape) * variance.sqrt().numpy()
    pixels = torch.from_numpy(np.rint((x_0_hat.numpy() + noise + 1) * 127.5).clip(0, 255))
    return decoder(x_0_hat, variance, weights, spread), pixels.to(torch.uint8)


def test_parts_are_all_pixels_once():
    for channels, height, width in ((3, 5, 4), (1, 1, 1), (1, 1, 6), (2, 7, 1)):
        count = torch.zeros(1, channels, height, width)
        for part in parts(channels):
            count[part.at] += 1
        assert (count == 1).all()


def test_neighbours_come_before():
    order = parts(3)
    for part in order:
        y, x = PHASES[part.phase]
        before = {(p.channel, PHASES[p.phase]) for p in order[: order.index(part)]}
        found = set(taps(part, 3))
        for channel, dy, dx in itertools.product(range(3), (-1, 0, 1), (-1, 0, 1)):
            comes_before = (channel, ((y + dy) % 2, (x + dx) % 2)) in before
            assert (9 * channel + 3 * (dy + 1) + dx + 1 in found) == comes_before


def test_without_weights_it_is_equation_13(some):
    conditional, pixels = some
    plain = decoder(conditional.x_0_hat, conditional.variance)
    independent = DiscretizedGaussian(plain.x_0_hat, without_rounding(plain.variance).sqrt())
    torch.testing.assert_close(plain.log_pmf_nats(pixels), independent.log_pmf_nats(pixels))
    # ... and where pixels are told to be independent, whatever the tables
    apart = decoder(
        conditional.x_0_hat, conditional.variance, conditional.weights, conditional.spread,
        dependent=torch.tensor([True, False]),
    )  # fmt: skip
    nats = apart.log_prob_nats(pixels)
    assert float(nats[1]) == pytest.approx(float(independent.log_prob_nats(pixels)[1]), rel=1e-12)
    assert float(nats[0]) == pytest.approx(float(conditional.log_prob_nats(pixels)[0]), rel=1e-12)


def test_each_pixel_by_the_formula(some):
    """Pixel by pixel in plain loops, from the module's formula."""
    conditional, pixels = some
    x_0_hat, v = (x.numpy() for x in (conditional.x_0_hat, conditional.variance))
    v = np.maximum(v, (2 / 255 / 16) ** 2)
    z = ((pixels.numpy() / HALF_RANGE_255 - 1 - x_0_hat) / np.sqrt(v)).clip(-3, 3)
    nats = conditional.log_pmf_nats(pixels).numpy()
    order = [(p.channel, PHASES[p.phase]) for p in parts(3)]
    _, channels, height, width = z.shape
    for n, c, y, x in np.ndindex(*z.shape):
        here = order.index((c, (y % 2, x % 2)))
        kind = int(np.searchsorted(CLASS_EDGES, v[n, c, y, x] / 1e-4))
        shift = 0.0
        for channel, dy, dx in itertools.product(range(channels), (-1, 0, 1), (-1, 0, 1)):
            i, j = y + dy, x + dx
            inside = 0 <= i < height and 0 <= j < width
            if inside and order.index((channel, (i % 2, j % 2))) < here:
                tap = 9 * channel + 3 * (dy + 1) + dx + 1
                shift += float(conditional.weights[here, kind, tap]) * z[n, channel, i, j]
        spread = float(conditional.spread[here, kind]) * v[n, c, y, x]
        expected = DiscretizedGaussian(
            torch.tensor(x_0_hat[n, c, y, x] + np.sqrt(v[n, c, y, x]) * shift),
            without_rounding(torch.tensor(spread)).sqrt(),
        ).log_pmf_nats(pixels[n, c, y, x])
        assert nats[n, c, y, x] == pytest.approx(float(expected), abs=1e-9)


def test_probabilities_of_all_pictures_add_up_to_one():
    """Of one row of two pixels, every picture of it."""
    weights = np.full(weights_shape(1), 0.4, np.float32)
    x_0_hat = torch.tensor([[[[0.1, -0.2]]]], dtype=torch.float64)
    values = torch.arange(256)
    pictures = torch.stack([p.flatten() for p in torch.meshgrid(values, values, indexing="ij")], 1)
    pictures = pictures.view(-1, 1, 1, 2)
    many = decoder(x_0_hat.expand(len(pictures), 1, 1, 2), 2e-4, weights)
    assert float(many.log_prob_nats(pictures).exp().sum()) == pytest.approx(1, abs=1e-9)


def field(images, rng):
    """Gaussian errors of unit variance with known covariance: correlated across the three channels
    by 0.6 and to their neighbours by a blur; and x_0 = x_0_hat + std error."""
    white = rng.normal(size=(images, 3, 34, 34)) + 1.2 * rng.normal(size=(images, 1, 34, 34))
    blurred = sum(
        np.roll(white, (i, j), (2, 3)) * w
        for i, j, w in ((0, 0, 1), (0, 1, 0.6), (1, 0, 0.6), (1, 1, 0.3))
    )
    return blurred[:, :, 1:-1, 1:-1] / np.std(blurred)


def test_finds_what_neighbours_tell():
    """On Gaussian errors of many bins, the fit comes as near to their conditional entropy as least
    squares over the window do, which another solver finds; on pictures that it has not seen."""
    rng = np.random.default_rng(0)
    std = 0.05
    fit, noise = PixelFit(3), torch.full((64, 1, 1, 1), 1e-6)
    v = torch.full((64, 3, 32, 32), std**2, dtype=torch.float64)
    coded = []
    for last in (False, True):
        error = field(64, rng)
        x_0_hat = rng.uniform(-0.5, 0.5, error.shape)
        pixels = np.rint((x_0_hat + std * error + 1) * 127.5)
        # x_0_hat moves by the rounding error, so that x_0 - x_0_hat is the error exactly
        x_0_hat = torch.from_numpy(pixels / HALF_RANGE_255 - 1 - std * error)
        coded.append((torch.from_numpy(pixels).to(torch.uint8), x_0_hat, error))
        if not last:
            fit.add(*coded[0][:2], v, noise)
    pixels, x_0_hat, _ = coded[1]
    conditional = decoder(x_0_hat, v, *fit.tables(), noise=1e-6)
    gain = conditional.log_pmf_nats(pixels) - decoder(x_0_hat, v).log_pmf_nats(pixels)
    train, test = coded[0][2].clip(-3, 3), coded[1][2].clip(-3, 3)
    for part in parts(3):
        known = taps(part, 3)
        rows, across = part.at[2:]
        columns = [_shifted(train, tap)[:, rows, across].ravel() for tap in known]
        fresh = [_shifted(test, tap)[:, rows, across].ravel() for tap in known]
        y, y_fresh = train[part.at].ravel(), test[part.at].ravel()
        expected = 0.0
        if known:
            w = np.linalg.lstsq(np.stack(columns, 1), y, rcond=None)[0]
            left, left_fresh = y - np.stack(columns, 1) @ w, y_fresh - np.stack(fresh, 1) @ w
            c = np.mean(left**2)
            expected = float(np.mean(0.5 * (y_fresh**2 - left_fresh**2 / c - np.log(c))))
        found = float(gain[part.at].mean())
        assert found == pytest.approx(expected, abs=0.01)
    assert float(gain.mean()) > 0.2


def _shifted(z, tap):
    """(N,H,W) what lies at a tap from each pixel, zeros beyond the edge."""
    channel, dy, dx = tap // 9, tap % 9 // 3 - 1, tap % 3 - 1
    padded = np.pad(z[:, channel], ((0, 0), (1, 1), (1, 1)))
    height, width = z.shape[2:]
    return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def test_classes_are_by_the_share_of_the_noise():
    v = torch.tensor([0.1, 0.45001, 0.7, 0.79, 5.0]) * 1e-4
    assert classes_of(v, torch.tensor(1e-4)).tolist() == [0, 1, 2, 3, 3]
    assert CLASSES == 4


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 1, 1), (1, 8, 8), (3, 1, 9), (3, 9, 1)])
def test_round_trip_at_minus_log_p(shape):
    rng = np.random.default_rng(1)
    x_0_hat = torch.from_numpy(rng.uniform(-1, 1, (1, *shape)))
    variance = torch.from_numpy(np.exp(rng.uniform(-11, -8, (1, *shape))))
    weights = rng.normal(0, 0.2, weights_shape(shape[0])).astype(np.float32)
    some = decoder(x_0_hat, variance, weights)
    pixels = torch.from_numpy(rng.integers(0, 256, (1, *shape), dtype=np.uint8))
    near = ((x_0_hat + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    for picture in (pixels, near):
        data = encode_pixels(picture, some)
        torch.testing.assert_close(decode_pixels(data, some, (1, *shape)), picture)
    assert 8 * len(data) < -float(some.log_prob_nats(near)) / np.log(2) * 1.01 + 64
