"""Training: the objectives' weights, and runs that continue as if they had never stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_codec import checkpoint
from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.objectives import TimestepSampler, TrainingLoss
from ddpm_codec.schedule import Schedule, ScheduleConfig
from ddpm_codec.training import Trainer, TrainingConfig, TrainingLog

from .conftest import TINY

CONFIG = TrainingConfig(steps=8, batch=4, crop=8, warmup_steps=2)


def draw(count, generator):
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def finish(trainer, stop_at=None):
    for _ in trainer.run(draw):
        if trainer.step == stop_at:
            break
    return trainer


@pytest.mark.parametrize(("dropout", "optimizer"), [(0.0, "adam"), (0.0, "muon"), (0.3, "muon")])
def test_resume_continues_bit_for_bit(tmp_path, dropout, optimizer):
    model = replace(TINY, unet=replace(TINY.unet, dropout=dropout))
    config = replace(CONFIG, optimizer=optimizer)
    straight = finish(Trainer.start(model, config))
    stopped = finish(Trainer.start(model, config), stop_at=3)
    checkpoint.save(stopped.checkpoint(), tmp_path / "c.safetensors")
    resumed = Trainer.resume(checkpoint.load(tmp_path / "c.safetensors", training=True))
    assert resumed.step == 3
    finish(resumed)
    expected, got = straight.checkpoint(), resumed.checkpoint()
    assert expected.hash == got.hash
    for name, tensor in expected.training.items():
        torch.testing.assert_close(got.training[name], tensor, rtol=0, atol=0)


def test_a_gradient_of_no_numbers_stops_the_run_and_spoils_no_weight(monkeypatch):
    trainer = finish(Trainer.start(TINY, CONFIG), stop_at=2)
    before = trainer.checkpoint()
    monkeypatch.setattr(
        TrainingLoss, "__call__", lambda *_: next(trainer.network.parameters()).sum() * np.nan
    )
    with pytest.raises(ConfigError, match="step 3 is not finite"):
        finish(trainer)
    after = trainer.checkpoint()
    assert before.hash == after.hash
    for state in (before.training, after.training):
        del state["generator"]  # the batch that came to nothing was drawn
    torch.testing.assert_close(before.training, after.training, rtol=0, atol=0)


def test_a_log_without_its_columns_is_none(tmp_path):
    (tmp_path / "c.csv").write_text("no,log\n1,2\n")
    assert not TrainingLog.read(tmp_path / "c.csv", 5).rows


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    finish(Trainer.start(TINY, CONFIG))
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_training_lowers_the_loss_on_one_picture():
    picture = torch.randint(0, 256, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    picture = picture.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    config = replace(CONFIG, steps=150, batch=16, learning_rate=1e-2)
    losses = list(
        Trainer.start(TINY, config).run(lambda count, _: picture.expand(count, -1, -1, -1))
    )
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_init_starts_from_weights_alone(tiny):
    trainer = Trainer.start(TINY, CONFIG, tiny)
    assert trainer.step == 0
    for name, weight in tiny.weights.items():
        torch.testing.assert_close(trainer.ema[name], weight)
    with pytest.raises(CheckpointError, match="--init"):
        Trainer.start(replace(TINY, parameterization="eps"), CONFIG, tiny)


def test_experts_start_alike_and_learn_apart(tiny):
    """From the weights of a network without any; each sees the pictures of its own timesteps."""
    model = replace(TINY, unet=replace(TINY.unet, experts=(6,)))
    trainer = Trainer.start(model, CONFIG, tiny)
    before = {k: v.clone() for k, v in trainer.ema.items()}
    for name, weight in before.items():
        torch.testing.assert_close(weight, tiny.weights[name.removeprefix("others.0.")])
    finish(trainer)
    for name in ("head.weight", "middle.0.block.conv1.weight"):
        one, other = trainer.ema[name], trainer.ema[f"others.0.{name}"]
        assert not torch.equal(one, other)
        assert not torch.equal(other, before[name])
    assert set(trainer.checkpoint(with_state=False).model().denoiser.network.state_dict()) == set(
        before
    )
    with pytest.raises(CheckpointError, match="--init"):
        Trainer.start(TINY, CONFIG, trainer.checkpoint(with_state=False))


@pytest.mark.parametrize("damage", ["tensor missing", "shape", "generator", "notes", "fields"])
def test_damaged_training_state_is_refused(damage):
    saved = finish(Trainer.start(TINY, CONFIG), stop_at=2).checkpoint()
    if damage == "tensor missing":
        del saved.training["exp_avg.head.bias"]
    elif damage == "shape":
        saved.training["weights.head.bias"] = torch.zeros(1)
    elif damage == "generator":
        saved.training["generator"] = torch.zeros(3, dtype=torch.uint8)
    elif damage == "notes":
        del saved.notes["progress"]
    else:
        saved.notes["training"]["magic"] = 1
    with pytest.raises(CheckpointError, match="damaged"):
        Trainer.resume(saved)


def test_resume_needs_training_state(tiny):
    with pytest.raises(CheckpointError, match="--init"):
        Trainer.resume(tiny)


@pytest.mark.parametrize("objective", ["vlb", "simple", "hybrid"])
def test_importance_weights_make_the_proposal_the_objective(objective):
    """E[w f(t)] over the draws is the average of f under the objective's distribution."""
    schedule = Schedule(ScheduleConfig())
    t, weight, chance = TimestepSampler(schedule, objective).draw(
        200_000, torch.Generator().manual_seed(0)
    )
    f = np.sin(np.arange(1001) / 100) + schedule.log_snr.clip(max=10) / 10
    uniform = np.full(1000, 1e-3)
    even = np.concatenate([[1.5], -np.diff(schedule.log_snr[1:])])
    even /= even.sum()
    target = {"vlb": even, "simple": uniform, "hybrid": (even + uniform) / 2}[objective]
    values = weight.numpy() * f[t.numpy()]
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - target @ f[1:]) < 4.5 * error
    assert (t.min(), t.max()) == (1, 1000)
    expected = np.bincount(t.numpy())[t.numpy()] / len(t)
    assert np.corrcoef(chance.numpy(), expected)[0, 1] > 0.99


@pytest.mark.parametrize("parameterization", ["eps", "v", "x_0", "mu_tilde"])
def test_loss_is_the_error_of_eps_for_every_parameterization(parameterization):
    """A network that answers 0 errs by a known amount of eps, whatever it predicts."""
    model = replace(TINY, parameterization=parameterization)
    training_loss = TrainingLoss(model, "vlb", log_variance_weight=0.0)
    schedule, seen = training_loss.schedule, []

    def network(x_t, t):
        seen.append((x_t, t))
        return torch.zeros_like(x_t), None

    x_0 = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    loss = training_loss(network, training_loss.draw(x_0, generator)).item()
    _, weight, _ = training_loss.sampler.draw(64, torch.Generator().manual_seed(2))
    x_t, t = seen[0]
    a, _ = schedule.x_0_coefficients(parameterization)
    x_0_hat = torch.from_numpy(a[t.numpy()]).view(-1, 1, 1, 1) * x_t
    eps_error2 = ((x_0 - x_0_hat) ** 2).mean((1, 2, 3)) * torch.from_numpy(schedule.snr[t.numpy()])
    assert loss == pytest.approx((weight * eps_error2).mean().item(), rel=1e-4)


def test_learning_rate_warms_up_stays_and_falls():
    trainer = Trainer.start(TINY, replace(CONFIG, steps=100, warmup_steps=10, decay=0.4))
    rates = []
    for trainer.step in range(100):
        rates.append(trainer.rate_factor())
    assert rates[0] == pytest.approx(1 / 10)
    assert all(rate == pytest.approx(1) for rate in rates[9:60])
    assert np.all(np.diff(rates[61:]) < 0)
    assert rates[-1] == pytest.approx(CONFIG.final, rel=0.1)


@pytest.mark.parametrize("wrong", [{}, {"steps": 5, "minutes": 1.0}, {"steps": 5, "batch": 0}])
def test_contradictions_are_refused(wrong):
    with pytest.raises(ConfigError):
        TrainingConfig(**wrong).check()


def test_a_batch_in_parts_is_the_same_step():
    """Gradient accumulation changes the order of sums and nothing else."""
    whole = finish(Trainer.start(TINY, CONFIG), stop_at=1)
    parts = finish(Trainer.start(TINY, replace(CONFIG, accumulate=3)), stop_at=1)
    for expected, got in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_leaves_its_checkpoint_alone():
    """The average is a copy of the checkpoint's weights, which it once shared."""
    saved = finish(Trainer.start(TINY, CONFIG), stop_at=3).checkpoint()
    before = saved.hash
    finish(Trainer.resume(saved))
    assert saved.hash == before
