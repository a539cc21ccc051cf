"""Oracle 3: the discretized decoder sums to one and agrees with mpmath in the far tails."""

import mpmath
import pytest
import torch

from ddpm_codec.discretized import DiscretizedGaussian

PIXELS = torch.arange(256)


def mpmath_log_pmf(k: int, mean: float, std: float) -> float:
    """The mass of a bin as a difference of two tails, on the side of the mean that it lies."""
    with mpmath.workdps(60):
        mean, std = mpmath.mpf(mean), mpmath.mpf(std)
        centre = mpmath.mpf(k) / mpmath.mpf("127.5") - 1
        side = 1 if centre > mean else -1

        def tail(x):
            return mpmath.erfc(side * (x - mean) / (std * mpmath.sqrt(2))) / 2

        ends = {-1: 0 if side < 0 else 1, 1: 0 if side > 0 else 1}
        low, high = (centre + s * mpmath.mpf(1) / 255 for s in (-1, 1))
        at_low = ends[-1] if k == 0 else tail(low)
        at_high = ends[1] if k == 255 else tail(high)
        return float(mpmath.log(abs(at_low - at_high)))


@pytest.mark.parametrize("mean", [-1.5, -1.0, -0.3, 0.0, 0.001, 0.7, 1.0, 1.2])
@pytest.mark.parametrize("std", [1e-3, 3e-3, 0.01, 0.1, 1.0])
def test_probabilities_sum_to_one(mean, std):
    p = DiscretizedGaussian(torch.tensor(mean), torch.tensor(std))
    assert p.log_pmf_nats(PIXELS).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-3), (0.31, 0.0074), (-1.4, 0.02), (1.1, 0.3)])
def test_log_agrees_with_mpmath_far_into_the_tails(mean, std):
    log_pmf = DiscretizedGaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    ).log_pmf_nats(PIXELS)
    for k in (0, 1, 20, 127, 128, 167, 200, 254, 255):
        assert log_pmf[k].item() == pytest.approx(
            mpmath_log_pmf(k, mean, std), rel=1e-10, abs=1e-14
        )


def test_far_tails_do_not_underflow():
    """A difference of CDFs is 0 here; its logarithm is -499 549 nats."""
    p = DiscretizedGaussian(torch.tensor(-1.0), torch.tensor(1e-3))
    value = p.log_pmf_nats(torch.tensor(128))
    assert torch.isfinite(value)
    assert value.item() < -4e5
