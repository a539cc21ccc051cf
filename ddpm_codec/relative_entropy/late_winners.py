"""When a search among Poisson arrivals may end: how many later candidates would still win.

A candidate that arrives at time t with weight w = q / p has the score t / w, and the least score
wins. After time T, with best score s, the expected number of winners still to come is

    integral_T^inf P(w > t / s) dt = s E_p[(w - h)+] = s (Q(w >= h) - h P(w >= h)),  h = T / s.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm_codec.relative_entropy.protocol import LogRatio

_ORDERS = np.geomspace(0.02, 50, 60)
"""Tried as a - 1."""
_LATE = -8.0
"""Nats: log of the number of winners, over s, near which the contour is best."""
_DIFFERENCE = 1e-3
_POINTS = 96

Numbers = npt.NDArray[np.inexact[Any]]


def log_moments(ratio: LogRatio, orders: Numbers) -> Numbers:
    """(n,) log E_p[w^u] in nats for every u of `orders` (n,), real or complex; infinite where the
    moment is.

    sum(u log rho - 1/2 log A + 1/2 u (u - 1) delta^2 / A), A = 1 + u (rho^2 - 1), Re A > 0.
    """
    u = orders[:, None]
    spread = 1 + u * (ratio.rho**2 - 1)
    with np.errstate(all="ignore"):
        terms = u * np.log(ratio.rho) - 0.5 * np.log(spread)
        terms += 0.5 * u * (u - 1) * ratio.delta**2 / spread
    return np.where((spread.real > 0).all(axis=1), terms.sum(axis=1), np.inf)


def log_largest(ratio: LogRatio) -> float:
    """log max w in nats: sum(log rho + 1/2 delta^2 / (rho^2 - 1)), finite for sigma_q < sigma_p.

    A dimension with equal variances adds 0 where delta is 0, else w is unbounded.
    """
    if np.any(ratio.rho < 1) or np.any((ratio.rho == 1) & (ratio.delta != 0)):
        return np.inf
    wide = ratio.rho > 1
    rho, delta = ratio.rho[wide], ratio.delta[wide]
    return float(np.sum(np.log(rho) + 0.5 * delta**2 / (rho**2 - 1)))


class LateWinners:
    """The expected number of winners after time T when the best score is s: s E_p[(w - h)+].

    By the inverse Mellin transform along u = a + iv, for any a > 1 whose moment is finite,

        E_p[(w - h)+] = 1 / pi  integral_0^inf Re(E_p[w^u] h^(1 - u) / (u (u - 1))) dv

    (as Carr & Madan 1999 price options), with the trapezoidal rule from 0 to V. What lies beyond V,
    at most |E_p[w^(a + iV)]| h^(1 - a) / (pi V), is added, and so is a bound on rounding.
    """

    def __init__(self, ratio: LogRatio) -> None:
        self.log_largest = log_largest(ratio)
        self.a = _contour(ratio)
        if self.a is None:
            return
        middle = log_moments(ratio, np.array([self.a, self.a + 1j * _DIFFERENCE])).real
        spread = np.sqrt(max(2 * float(middle[0] - middle[1]), 0.0)) / _DIFFERENCE
        step = min(0.2 / max(spread, 1e-9), 0.2 * (self.a - 1))
        v = step * np.arange(_POINTS + 1)
        u = self.a + 1j * v
        log_moment = log_moments(ratio, u)
        self.v, self.log_scale = v, float(log_moment[0].real)
        self.terms = np.exp(log_moment - self.log_scale) / (u * (u - 1)) * (step / np.pi)
        self.terms[[0, -1]] /= 2
        self.slack = float(np.exp(log_moment[-1].real - self.log_scale)) / (np.pi * v[-1]) + 1e-12

    def expected(self, log_s: float, log_time: float) -> float:
        """The number, from log s and log T; too large by what was added, infinite where no moment
        of an order above 1 is finite."""
        log_h = log_time - log_s
        if log_h >= self.log_largest:
            return 0.0
        if self.a is None:
            return np.inf
        inside = float((self.terms * np.exp(-1j * log_h * self.v)).real.sum())
        scale = np.exp(np.clip(log_s + self.log_scale + (1 - self.a) * log_h, -700, 700))
        return float(scale) * (max(inside, 0.0) + self.slack)


def _contour(ratio: LogRatio) -> float | None:
    """The a > 1 at which E_p[w^a] h^(1 - a) has its least value where that is about e^-8, as where
    a search ends; the largest finite order if none is so large, None if none is finite."""
    orders = 1 + _ORDERS
    log_moment = log_moments(ratio, orders + 1j * _DIFFERENCE**2)
    orders, log_moment = orders[np.isfinite(log_moment)], log_moment[np.isfinite(log_moment)]
    least = log_moment.real - (orders - 1) * log_moment.imag / _DIFFERENCE**2
    late = np.flatnonzero(least <= _LATE)
    if not len(orders):
        return None
    return float(orders[late[0] if len(late) else -1])
