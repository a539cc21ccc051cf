"""Muon, against singular values and against PyTorch's own where it has one."""

import pytest
import torch

from ddpm_codec import muon
from ddpm_codec.checkpoint import MODEL_PRESETS, build_network
from ddpm_codec.muon import Muon, orthogonal
from ddpm_codec.optimizers import Optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (16, 90), (90, 16)])
def test_orthogonal_keeps_directions_and_levels_singular_values(shape, dtype):
    """The result has the singular vectors of what came, and singular values near 1."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonal(matrix[None].to(dtype))[0].float() @ vt.T
    values = inside.diagonal()
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (inside - values.diag()).abs().max() < 0.15


def test_steps_are_those_of_pytorchs_muon():
    """Same matrices, same gradients, several steps; a convolution is the matrix that it flattens
    to. Bfloat16 rounds in another order, hence the tolerance."""
    reference = getattr(torch.optim, "Muon", None)
    if reference is None:
        pytest.skip("this torch has no Muon")
    generator = torch.Generator().manual_seed(1)
    ours = torch.nn.Parameter(torch.randn(8, 6, 3, 3, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().flatten(1).clone())
    steps = (
        (Muon([ours], lr=0.02), ours),
        (reference([theirs], lr=0.02, weight_decay=0.0, momentum=0.95), theirs),
    )
    for _ in range(5):
        gradient = torch.randn(8, 54, generator=generator)
        for optimizer, parameter in steps:
            parameter.grad = gradient.reshape(parameter.shape).clone()
            optimizer.step()
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=2e-3)


def test_matrices_of_equal_shape_are_followed_each_on_its_own():
    """They go through the iterations together, which must not mix them."""
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(4, 6, 1, 1, generator=generator) * 10**i for i in range(3)]
    together = [torch.nn.Parameter(torch.zeros(4, 6, 1, 1)) for _ in gradients]
    alone = [torch.nn.Parameter(torch.zeros(4, 6, 1, 1)) for _ in gradients]
    optimizers = [Muon(together, lr=0.02), *(Muon([p], lr=0.02) for p in alone)]
    for parameter, other, gradient in zip(together, alone, gradients, strict=True):
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
    for optimizer in optimizers:
        optimizer.step()
    for parameter, other in zip(together, alone, strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=2e-4)
        assert other.abs().max() > 1e-3


def test_depthwise_convolutions_are_adams():
    """A depthwise kernel is a vector a channel; its channels don't mix, so that orthogonalising
    them against each other would mean nothing."""
    network = build_network(MODEL_PRESETS["small"])
    optimizer = Optimizer(network, "muon", 1e-3, 0.02, 0.99)
    moments = set(optimizer.state())
    depthwise = [name for name in dict(network.named_parameters()) if "spatial.weight" in name]
    assert depthwise
    for name in depthwise:
        assert f"exp_avg.{name}" in moments
        assert f"momentum.{name}" not in moments
    assert f"momentum.{depthwise[0].replace('spatial', 'expand')}" in moments


@pytest.mark.parametrize("muon_bfloat16", [False, True])
def test_iterations_run_in_the_precision_that_is_asked_for(muon_bfloat16, monkeypatch):
    """They were in bfloat16 always: 4.8 s a step on a processor that has no instructions for it."""
    seen = set()

    def spy(matrices):
        seen.add(matrices.dtype)
        return matrices

    monkeypatch.setattr(muon, "orthogonal", spy)
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1))
    wrapped = torch.nn.ModuleDict({"inside": network})
    optimizer = Optimizer(wrapped, "muon", 1e-3, 0.02, 0.99, muon_bfloat16)
    network(torch.ones(1, 4, 2, 2)).sum().backward()
    optimizer.step(1.0)
    assert seen == {torch.bfloat16 if muon_bfloat16 else torch.float32}
