"""The reverse chain: the one traversal of it.

`reverse_chain` walks p_theta down; sampling, sending, receiving and the realised rate-distortion
curve differ only in who answers at each step.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_codec.bands import to_bands
from ddpm_codec.diffusion import DiffusionModel, Estimate
from ddpm_codec.discretized import DiscretizedGaussian, PixelDecoder
from ddpm_codec.errors import ConfigError
from ddpm_codec.gaussian import DiagonalGaussian, excess_kl_nats, sum_dims
from ddpm_codec.schedule import Indices
from ddpm_codec.units import NATS_PER_BIT


@dataclass(frozen=True)
class ReverseStep:
    """Where a walk stands: t (N,), x_t (N,C,H,W), and what the network makes of it."""

    model: DiffusionModel
    t: Tensor
    x_t: Tensor
    estimate: Estimate

    def at(self, images: Tensor) -> "ReverseStep":
        """Where some of the images stand, by index (M,); nothing is copied for all of them."""
        if torch.equal(images, torch.arange(len(self.t))):
            return self
        estimate = self.estimate.at(images)
        return ReverseStep(self.model, self.t[images], self.x_t[images], estimate)

    @property
    def x_0_hat(self) -> Tensor:
        """(N,C,H,W) Eq. 15, not clipped."""
        return self.estimate.x_0_hat

    def q(self, x_0: Tensor, s: Tensor) -> DiagonalGaussian:
        """q(x_s | x_t, x_0) for x_0 (N,C,H,W) and s (N,) with 1 <= s < t, over the model's
        `coordinates`, as p."""
        posterior = self.model.posterior(x_0, self.x_t, self.t, s)
        return DiagonalGaussian(self.model.coordinates(posterior.mean), posterior.variance)

    def p(self, s: Tensor) -> DiagonalGaussian:
        """p_theta(x_s | x_t) for s (N,) with 1 <= s < t, over the model's `coordinates`."""
        posterior = self.model.posterior(self.x_0_hat, self.x_t, self.t, s)
        excess = self.model.reverse_excess(self.estimate, self.t, s)
        mean = self.model.coordinates(posterior.mean)
        return DiagonalGaussian(mean, posterior.variance * (1 + excess))

    def kl_bits_to(self, x_0: Tensor, planes: int) -> Callable[[int], float]:
        """KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t)) in bits as a function of s, of one image
        x_0 (1,C,H,W) and the first `planes` of its bands. One network call gives all of them."""
        t, snr = int(self.t[0]), self.model.schedule.snr
        error2 = to_bands(x_0 - self.x_0_hat)[:, :planes] ** 2
        expected = self.model.error_variance(self.estimate, self.t).expand_as(x_0)[:, :planes]

        def kl_bits(s: int) -> float:
            gain = float(snr[s] - snr[t])
            nats = sum_dims(excess_kl_nats(gain * expected, gain * error2))
            return float(nats) / NATS_PER_BIT

        return kl_bits

    def decoder(self, grey: bool = False) -> PixelDecoder:
        """p(0): p_theta(x_0 | x_t), the discretized decoder. Of `grey` pictures, one plane: the
        mean of the channels' means, whose errors are as good as equal, with the mean of their
        variances."""
        if not grey:
            return self.model.decoder(self.estimate, self.t)
        decoder = self.model.independent_decoder(self.estimate, self.t)
        variance = decoder.std.expand_as(decoder.mean) ** 2
        return DiscretizedGaussian(
            decoder.mean.mean(dim=1, keepdim=True), variance.mean(dim=1, keepdim=True).sqrt()
        )


Walk = Generator[ReverseStep, tuple[Tensor, Tensor], Tensor]


def reverse_chain(model: DiffusionModel, x_t: Tensor, t: Tensor) -> Walk:
    """Walk down from x_t (N,C,H,W) at t (N,), every image at its own pace.

    Yields a `ReverseStep` of the images that are not finished, in their order; is sent
    (s, x_s), the step that the partner took with each of them. An image that reaches s = 0 is
    finished and leaves the batch. Returns x_0 (N,C,H,W).
    """
    x, t = x_t.clone(), t.clone()
    while bool((t > 0).any()):
        active = t.nonzero().squeeze(1)
        step = ReverseStep(model, t[active], x[active], model.estimate(x[active], t[active]))
        s, x_s = yield step
        if not bool(((s >= 0) & (s < step.t)).all()):
            raise ConfigError("a reverse step needs 0 <= s < t")
        t[active], x[active] = s, x_s.to(x.dtype)
    return x


def ancestral_sample(
    model: DiffusionModel, x_t: Tensor, grid: Indices, generator: torch.Generator
) -> Generator[ReverseStep, None, Tensor]:
    """Algorithm 2 from x_t (N,C,H,W) at t = grid[0], on the timesteps `grid` (K,) falling to 1.

    Yields every step as it is taken, for progress and for x_0_hat on the way. At the end
    x_0_hat of the last timestep is returned without noise, as in the paper: x_0 (N,C,H,W).
    """
    walk = reverse_chain(model, x_t, torch.full((len(x_t),), int(grid[0])))
    step = next(walk)
    for s in [*grid[1:], 0]:
        yield step
        to = torch.full_like(step.t, int(s))
        x_s = model.from_coordinates(step.p(to).sample(generator)) if s > 0 else step.x_0_hat
        try:
            step = walk.send((to, x_s))
        except StopIteration as stop:
            return stop.value
    raise ConfigError("the grid of timesteps must fall to 1")
