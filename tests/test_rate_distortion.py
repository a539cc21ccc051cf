"""BD-rate against curves whose difference is known."""

import numpy as np
import pytest

from ddpm_codec.errors import ConfigError
from ddpm_codec.rate_distortion import bd_rate

QUALITY = np.array([28.0, 30.0, 33.0, 37.0, 40.0])
RATE = np.exp(0.15 * QUALITY)


def test_a_tenth_more_rate_everywhere_is_ten_percent():
    assert bd_rate(1.1 * RATE, QUALITY, RATE, QUALITY) == pytest.approx(0.1)
    assert bd_rate(RATE, QUALITY, 1.1 * RATE, QUALITY) == pytest.approx(1 / 1.1 - 1)


def test_exponential_curves_have_their_mean_difference_in_the_exponent():
    """log R = 0.15 q against 0.17 q - 0.7, over the range that both cover, 30..37 dB."""
    other = np.array([30.0, 34.0, 37.0])
    expected = np.expm1(np.mean(0.15 * np.array([30, 37]) - (0.17 * np.array([30, 37]) - 0.7)))
    found = bd_rate(RATE, QUALITY, np.exp(0.17 * other - 0.7), other)
    assert found == pytest.approx(expected, rel=1e-6)


def test_order_does_not_matter_and_of_equal_quality_the_smaller_file_counts():
    shuffled = [3, 0, 4, 2, 1]
    doubled = np.append(RATE, 2 * RATE[2]), np.append(QUALITY, QUALITY[2])
    assert bd_rate(RATE[shuffled], QUALITY[shuffled], *doubled) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("other", [[50.0, 60.0], [30.0, 30.0]])
def test_curves_that_share_nothing_are_refused(other):
    with pytest.raises(ConfigError):
        bd_rate(RATE, QUALITY, np.array([1.0, 2.0]), np.array(other))
