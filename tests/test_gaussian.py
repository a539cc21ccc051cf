"""Diagonal Gaussians against torch.distributions."""

import torch
from torch.distributions import Independent, Normal, kl_divergence

from ddpm_codec.gaussian import DiagonalGaussian


def pair():
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(4, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    q, p = (DiagonalGaussian(tensors[i], tensors[i + 1].exp()) for i in (0, 2))
    ours = [Independent(Normal(g.mean, g.variance.sqrt()), 3) for g in (q, p)]
    return q, p, *ours


def test_kl_and_density():
    q, p, q_torch, p_torch = pair()
    torch.testing.assert_close(q.kl_nats(p), kl_divergence(q_torch, p_torch))
    x = q.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(p.log_prob_nats(x), p_torch.log_prob(x))


def test_kl_is_the_mean_log_ratio_of_samples():
    q, p, *_ = pair()
    many = DiagonalGaussian(q.mean[:1].expand(20_000, -1, -1, -1), q.variance[:1])
    x = many.sample(torch.Generator().manual_seed(2))
    first = DiagonalGaussian(p.mean[:1], p.variance[:1])
    ratio = many.log_prob_nats(x) - first.log_prob_nats(x)
    error = ratio.std() / len(ratio) ** 0.5
    assert abs(ratio.mean() - q.kl_nats(p)[0]) < 4.5 * error
