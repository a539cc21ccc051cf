"""Lossless coding of picture after picture by bits back: bytes at the bound, no search.

All pictures share one stack of bits (asymmetric numeral systems, Duda 2009). To encode x_0 the
coder *pops* x_1 ~ q(x_1 | x_0) off it, pushes x_0 under the decoder p(x_0 | x_1), pops
x_t ~ q(x_t | x_s), pushes x_s under p_theta(x_s | x_t), and so on up the chain; x_T goes under
N(0, I). What a picture adds is the K-step bound of one walk, for the pops' bits come back to
whoever decodes (Townsend et al. 2019; in this order, which borrows two steps' worth only, Kingma
et al. 2019, Bit-Swap).

Every x_t is a grid of integers in the model's coordinates, several cells to a standard deviation:
exact on both sides. The Gaussians' parameters are computed in float64 and `rounded`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.discretized import PixelDecoder
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.exact import Floats, rounded
from ddpm_codec.pixel_code import FAMILY, decoded, in_order
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.schedule import Indices
from ddpm_codec.units import from_uint8

Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]

CELLS = 4
"""A grid's cells in the smaller of the standard deviations that it serves, at least."""
WIDENINGS = (0, 4, 8)
"""Binary orders by which p's support is widened for a picture that it does not hold."""
_DRAWN_STDS, _CODED_STDS = 8.0, 16.0
_LEAST_REACH, _MOST_REACH = 1 << 9, 1 << 22
_PARAMETER_QUANTUM = 2.0**-6  # of a cell
_WIDENING_CHANCES = np.array([0.96, 0.02, 0.02])

DISAGREES = "the file is damaged, or this machine's network disagrees with the packer's"


def _exponent(x: float) -> int:
    """e with 2^(e-1) <= x < 2^e, without a logarithm."""
    return int(np.frexp(x)[1])


class Stack:
    """What goes on last comes off first. `words` (M,) uint32 lie on it at the beginning."""

    def __init__(self, words: Words, sealed: bool = True) -> None:
        self._coder = constriction.stream.stack.AnsCoder(words, seal=sealed)
        self.fewest_words = self._coder.num_words()
        """How deep pops have gone: so many words were always left."""

    @property
    def bits(self) -> int:
        """Bits on the stack."""
        return int(self._coder.num_valid_bits())

    def words(self) -> Words:
        """(M,) all of it; `Stack(words, sealed=False)` is the same stack again."""
        return np.asarray(self._coder.get_compressed())

    def copy(self) -> "Stack":
        """A stack of its own with the same bits."""
        other = Stack(np.zeros(0, np.uint32))
        other._coder, other.fewest_words = self._coder.clone(), self.fewest_words
        return other

    def restore(self, earlier: "Stack") -> None:
        """Back to what a copy holds."""
        self._coder = earlier._coder.clone()

    def push(self, values: Integers, mean: Floats, std: Floats, reach: int) -> None:
        """(D,) integers under Gaussians (D,) whose support ends `reach` from their means. KeyError
        for a value outside."""
        centre = np.floor(mean + 0.5)
        offsets = np.clip(values - centre, -reach - 1, reach).astype(np.int32)
        self._coder.encode_reverse(offsets, _gaussian(reach), mean - centre, std)

    def pop(self, mean: Floats, std: Floats, reach: int) -> Integers:
        """(D,) integers: the inverse of `push`."""
        centre = np.floor(mean + 0.5)
        offsets = self._coder.decode(_gaussian(reach), mean - centre, std)
        self.fewest_words = min(self.fewest_words, self._coder.num_words())
        return np.asarray(offsets, np.int64) + centre.astype(np.int64)

    def push_pixels(self, pixels: Tensor, decoder: PixelDecoder) -> None:
        """x_0 (1,C,H,W) under the discretized decoder."""
        values, means, stds = in_order(pixels, decoder)
        self._coder.encode_reverse(values, FAMILY, means, stds)

    def pop_pixels(self, decoder: PixelDecoder, shape: tuple[int, ...]) -> Tensor:
        """x_0 of this shape (1,C,H,W), uint8: the inverse of `push_pixels`."""
        return decoded(self._coder, decoder, shape)

    def push_widening(self, which: int) -> None:
        """The number of one of `WIDENINGS`."""
        self._coder.encode_reverse(which, _widening())

    def pop_widening(self) -> int:
        """The inverse of `push_widening`."""
        return int(self._coder.decode(_widening()))


def _gaussian(reach: int) -> "constriction.stream.model.QuantizedGaussian":
    return constriction.stream.model.QuantizedGaussian(-reach, reach - 1)


def _widening() -> "constriction.stream.model.Categorical":
    return constriction.stream.model.Categorical(_WIDENING_CHANCES, perfect=False)


@dataclass(frozen=True)
class Rung:
    """One of the chain's t: `unit`, the width of its grid's cells, a power of two; q(x_t | x_s)
    from the rung below, x_s = x_0 at the lowest: `weight` of x_s and `std`; `reach` of its draws,
    in cells."""

    t: int
    unit: float
    weight: float
    std: float

    @property
    def reach(self) -> int:
        """A power of two: draws beyond it have probability 1e-15."""
        return 1 << _exponent(_DRAWN_STDS * self.std / self.unit)

    def values(self, cells: Integers) -> Floats:
        """(D,) the cells' centres."""
        return cells.astype(np.float64) * self.unit


def ladder(model: DiffusionModel, grid: Indices) -> list[Rung]:
    """The rungs of the timesteps `grid` (K,), falling to 1, from t = 1 up."""
    schedule, up = model.schedule, [0, *(int(t) for t in grid[::-1])]
    rungs = []
    for i, t in enumerate(up[1:], start=1):
        s = up[i - 1]
        weight = float(np.sqrt(schedule.alpha_bar[t] / schedule.alpha_bar[s]))
        std = float(np.sqrt(1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]))
        least = std
        if i + 1 < len(up):
            least = min(std, float(np.sqrt(schedule.posterior(up[i + 1], t).variance)))
        rungs.append(Rung(t, 2.0 ** (_exponent(least / CELLS) - 1), weight, std))
    return rungs


class BitsBack:
    """A model in float64 and the `ladder` of a grid. `push` and `pop` are each other's inverse."""

    def __init__(
        self, model: DiffusionModel, grid: Indices, progress: Callable[[int], object] | None = None
    ) -> None:
        self.model, self.rungs, self._progress = model, ladder(model, grid), progress

    def push(self, stack: Stack, pixels: Tensor, grey: bool = False) -> None:
        """Put x_0 = `pixels` (3,H,W) uint8 on the stack; `grey`: its channels are equal.

        ConfigError for a picture that the model is too sure not to see."""
        before = stack.copy()
        for which, order in enumerate(WIDENINGS):
            try:
                self._push(stack, pixels, grey, order)
                stack.push_widening(which)
                return
            except KeyError:
                stack.restore(before)
        raise ConfigError(
            "the model gives a picture no probability: check its calibration, or `send --lossless`"
        )

    def _push(self, stack: Stack, pixels: Tensor, grey: bool, order: int) -> None:
        shape, x_s = (1, *pixels.shape), self._flat(pixels)
        cells: Integers | None = None
        for i, rung in enumerate(self.rungs):
            drawn = stack.pop(*_drawn(rung, x_s), rung.reach)
            step = self._step(rung, drawn, shape)
            if cells is None:
                planes = pixels[:1] if grey else pixels
                stack.push_pixels(planes[None], step.decoder(grey))
            else:
                stack.push(cells, *self._coded(step, self.rungs[i - 1], grey, order))
            cells, x_s = drawn, rung.values(drawn)
        assert cells is not None
        stack.push(cells, *_prior(self.rungs[-1], cells.size))

    def pop(self, stack: Stack, shape: tuple[int, int], grey: bool = False) -> Tensor:
        """(3,H,W) uint8 the picture of `shape` (H, W) that lies uppermost."""
        full = (1, 3, *shape)
        order = WIDENINGS[stack.pop_widening()]
        cells = stack.pop(*_prior(self.rungs[-1], int(np.prod(full))))
        for s, rung in reversed(list(itertools.pairwise(self.rungs))):
            below = stack.pop(*self._coded(self._step(rung, cells, full), s, grey, order))
            self._return(stack, rung, cells, s.values(below))
            cells = below
        lowest = self.rungs[0]
        decoder = self._step(lowest, cells, full).decoder(grey)
        planes = stack.pop_pixels(decoder, (1, 1 if grey else 3, *shape))
        pixels = planes[0].expand(3, *shape).contiguous()
        self._return(stack, lowest, cells, self._flat(pixels))
        return pixels

    def _return(self, stack: Stack, rung: Rung, cells: Integers, x_s: Floats) -> None:
        """Give back what drawing x_t took."""
        try:
            stack.push(cells, *_drawn(rung, x_s), rung.reach)
        except KeyError as error:
            raise Corrupt(f"x_t at t = {rung.t} is not one that q draws: {DISAGREES}") from error

    def _flat(self, pixels: Tensor) -> Floats:
        """(D,) x_0 in the model's coordinates."""
        x_0 = self.model.coordinates(from_uint8(pixels[None]).double())
        return np.asarray(x_0.flatten().numpy(), np.float64)

    def _step(self, rung: Rung, cells: Integers, shape: tuple[int, ...]) -> ReverseStep:
        """The network's view from x_t at the cells' centres."""
        y = torch.from_numpy(rung.values(cells)).view(shape)
        x_t, t = self.model.from_coordinates(y), torch.tensor([rung.t])
        step = ReverseStep(self.model, t, x_t, self.model.estimate(x_t, t))
        if self._progress is not None:
            self._progress(1)
        return step

    def _coded(
        self, step: ReverseStep, s: Rung, grey: bool, order: int
    ) -> tuple[Floats, Floats, int]:
        """p_theta(x_s | x_t) in cells of the rung s: mean (D,), std (D,), reach.

        Of a grey picture's chroma x_0 is known, 0, and p is q(x_s | x_t, x_0)."""
        p = step.p(torch.tensor([s.t]))
        mean, variance = p.mean[0], p.variance.expand_as(p.mean)[0].clone()
        if grey:
            q = self.model.schedule.posterior(int(step.t[0]), s.t)
            mean[1:] = float(q.x_t_weight) * self.model.coordinates(step.x_t)[0, 1:]
            variance[1:] = float(q.variance)
        if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            raise ConfigError(f"the network gives no finite numbers at t = {int(step.t[0])}")
        std = variance.sqrt().flatten().numpy()
        mean_cells, std_cells = rounded(
            mean.flatten().numpy() / s.unit, std / s.unit, _PARAMETER_QUANTUM
        )
        reach = max(_LEAST_REACH, 1 << _exponent(_CODED_STDS * float(std_cells.max())))
        return mean_cells, std_cells, min(reach << order, _MOST_REACH)


def _drawn(rung: Rung, x_s: Floats) -> tuple[Floats, Floats]:
    """q(x_t | x_s) in cells: mean and std, each (D,)."""
    mean = rung.weight * x_s / rung.unit
    return rounded(mean, np.full_like(mean, rung.std / rung.unit), _PARAMETER_QUANTUM)


def _prior(rung: Rung, dims: int) -> tuple[Floats, Floats, int]:
    """N(0, I) in cells: mean and std, each (D,), and the reach."""
    std = np.full(dims, 1 / rung.unit)
    return np.zeros(dims), std, max(_LEAST_REACH, 1 << _exponent(_CODED_STDS / rung.unit))
