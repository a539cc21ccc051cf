"""Algorithms 3 and 4: what is received is what was sent, and the ledger counts every bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ddpm_codec import sending
from ddpm_codec.bands import to_bands
from ddpm_codec.bound import chain_work, evaluate
from ddpm_codec.calibration import calibrate
from ddpm_codec.codec import BACKENDS, IDEAL, ProgressiveCodec, packet_parser
from ddpm_codec.container import read_stream, truncate
from ddpm_codec.errors import BitstreamError, ConfigError, Corrupt, ModelMismatch, Truncated
from ddpm_codec.header import Header
from ddpm_codec.outgoing import Target, psnr_db
from ddpm_codec.rate_distortion import realised_curve
from ddpm_codec.receiving import Receiver
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.schedule import Plan
from ddpm_codec.sending import send

from .conftest import TINY, random_checkpoint, smooth_pictures


@pytest.fixture(scope="module")
def pictures():
    return smooth_pictures(8)


@pytest.fixture(scope="module")
def source(pictures):
    source = random_checkpoint(TINY)
    generator = torch.Generator().manual_seed(0)
    source.calibration = calibrate(source.model(), pictures.repeat(20, 1, 1, 1), generator)
    source.plan = Plan(source.model().schedule.log_snr_grid(6), np.zeros(5))
    return source


@pytest.fixture(scope="module")
def codec(source):
    return ProgressiveCodec(source)


def receive(codec, data, size=64):
    receiver, seen = Receiver(codec), []
    for start in range(0, len(data), size):
        seen += receiver.feed(data[start : start + size])
    return receiver.close(), seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lossless", [False, True])
def test_received_is_sent(codec, pictures, backend, lossless):
    block_bits = {"pfr": 3, "dithered": 0}.get(backend, 8)
    sent = send(codec, pictures[:2], Target(lossless=lossless), backend, block_bits)
    for picture, result in zip(pictures, sent, strict=False):
        received, seen = receive(codec, result.stream)
        # A batch sums in another order than a picture alone: a value may round differently.
        expected = picture if lossless else result.picture
        assert (received.int() - expected.int()).abs().max() <= (0 if lossless else 1)
        assert [t for t, _ in seen] == codec.plan.timesteps.tolist()


@pytest.mark.parametrize("target", [Target(), Target(lossless=True), Target(max_bytes=60)])
def test_constant_rate(codec, pictures, target):
    """Every picture at its own pace; all blocks have R bits, and the walk ends at t = 1.

    Noise costs more a step than a flat picture, so that its first step is shorter by two nodes:
    smooth pictures differ by less than what another machine's rounding moves.
    """
    noise = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(5))
    pictures = torch.cat([pictures[:1], noise.byte(), torch.full((1, 3, 8, 8), 128).byte()])
    sent = send(codec, pictures, target, block_bits=8, rate_bits=20)
    for picture, result in zip(pictures, sent, strict=False):
        received, seen = receive(codec, result.stream)
        expected = picture if target.lossless else result.picture
        assert (received.int() - expected.int()).abs().max() <= (0 if target.lossless else 1)
        steps = result.ledger.steps
        assert [t for t, _ in seen] == [step.t for step in steps] + [steps[-1].s]
        assert all(step.spent_bits % 20 == 0 for step in steps)
        assert (steps[-1].s == 1) == (target.max_bytes is None)
        assert result.ledger.total_bits == 8 * len(result.stream)
    _, noisy, flat = (result.ledger.steps for result in sent)
    assert noisy[0].s > flat[0].s


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 13)])
@pytest.mark.parametrize("lossless", [False, True])
def test_sides_of_any_length(codec, shape, lossless):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, *shape), generator=generator).to(torch.uint8)
    [sent] = send(codec, picture, Target(lossless=lossless), block_bits=8)
    received, _ = receive(codec, sent.stream)
    expected = picture[0] if lossless else sent.picture
    assert (received.int() - expected.int()).abs().max() <= (0 if lossless else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lossless", [False, True])
def test_grey_is_coded_as_one_plane(codec, pictures, backend, lossless):
    """No bits for chroma: the receiver knows that there is none."""
    grey = pictures[:2, :1].expand(2, 3, 8, 8).contiguous()
    block_bits = {"pfr": 3, "dithered": 0}.get(backend, 8)
    for picture, result in zip(
        grey, send(codec, grey, Target(lossless=lossless), backend, block_bits), strict=True
    ):
        received, _ = receive(codec, result.stream)
        expected = picture if lossless else result.picture
        assert (received.int() - expected.int()).abs().max() <= (0 if lossless else 1)
        assert bool((received == received[:1]).all())
        assert result.ledger.dims == 64


def test_chroma_of_a_grey_picture_follows_q(codec):
    """x_s beside the luma: mean x_t_weight x_t, variance beta_tilde, whatever was coded."""
    header = replace(codec.header(torch.zeros(3, 64, 64, dtype=torch.uint8), "mrc", 8, 5))
    assert header.grey
    x_t = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    step = ReverseStep(codec.model, torch.tensor([10]), x_t, None)
    x_s = codec.whole_sample(header, 2, step, 0, 4, np.full(64 * 64, 7.0))
    assert bool((x_s[0] == 7.0).all())
    q = codec.model.schedule.posterior(10, 4)
    z = (x_s[1:] - float(q.x_t_weight) * to_bands(x_t)[0, 1:]) / float(np.sqrt(q.variance))
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-4


def test_constant_rate_is_the_trellis_alone(codec, pictures):
    with pytest.raises(ConfigError, match="trellis"):
        send(codec, pictures[:1], backend="mrc", block_bits=8, rate_bits=20)
    with pytest.raises(ConfigError, match="header holds 0 to 255"):
        send(codec, pictures[:1], block_bits=8, rate_bits=1021)


@pytest.mark.parametrize("lossless", [False, True])
def test_the_ledger_counts_every_bit(codec, pictures, lossless):
    for result in send(codec, pictures[:3], Target(lossless=lossless), "mrc", 8):
        report = result.ledger.as_json()
        steps = report["steps"]
        parts = report["header_bits"] + report["decoder_bits"] + report["checksum_bits"]
        parts += report["padding_bits"]
        parts += sum(step["spent_bits"] + step["side_bits"] for step in steps)
        assert parts == report["total_bits"] == 8 * len(result.stream)
        assert report["file_bytes"] == len(result.stream)
        assert report["overhead"] == pytest.approx(parts / report["ideal_bits"] - 1)
        assert [step["t"] for step in steps] == codec.plan.timesteps[:-1].tolist()
        assert (report["decoder_bits"] > 0) == lossless
        if lossless:
            kl = sum(step["kl_bits"] for step in steps)
            pixel_bits = report["ideal_bits"] - kl
            assert 0 < report["decoder_bits"] < pixel_bits + 64


def test_same_seed_same_bytes(codec, pictures):
    first, again, other = (
        [r.stream for r in send(codec, pictures[:2], None, "orc", 6, seed)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_a_batch_stops_picture_by_picture(codec, pictures):
    full = send(codec, pictures, None, "mrc", 8)
    middle = len(full[0].stream) * 2 // 3
    for result in send(codec, pictures, Target(max_bytes=middle), "mrc", 8):
        assert len(result.stream) <= middle
        received, _ = receive(codec, result.stream)
        assert (received.int() - result.picture.int()).abs().max() <= 1
    psnrs = [result.ledger.steps[-1].psnr_db for result in full]
    wanted = min(psnrs) - 3
    for picture, result in zip(
        pictures, send(codec, pictures, Target(psnr_db=wanted), "mrc", 8), strict=True
    ):
        received, _ = receive(codec, result.stream)
        assert psnr_db(picture, received) >= wanted - 0.05


def test_targets_out_of_reach_are_refused(codec, pictures):
    with pytest.raises(ConfigError, match="out of reach"):
        send(codec, pictures[:1], Target(psnr_db=300.0), "mrc", 8)
    with pytest.raises(ConfigError, match="shortest"):
        send(codec, pictures[:1], Target(max_bytes=10), "mrc", 8)
    with pytest.raises(ConfigError, match="choose one"):
        send(codec, pictures[:1], Target(max_bytes=100, lossless=True), "mrc", 8)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "dithered"])  # 32 bits a word
def test_a_byte_limit_is_filled_with_a_part_of_a_step(source, pictures, backend):
    """The stream goes on where `truncate` cuts one of the whole walk: the same packets, then a part
    of the planned step, coded as one of its own; the receiver stands where the sender did."""
    codec = ProgressiveCodec(replace(source, plan=Plan(np.array([20, 8, 1]), np.zeros(2))))
    block_bits = {"pfr": 3, "trellis": 8}.get(backend, 4)
    [full] = send(codec, pictures[:1], None, backend, block_bits)
    reader, whole, _ = read_stream(full.stream, packet_parser)
    for packet, start, end in ((0, 0, reader.packet_ends[0]), (1, *reader.packet_ends)):
        step, known = full.ledger.steps[packet], whole[:packet]
        limit = 16 + 4 + round((start + 0.85 * (end - start)) / 8)
        [sent] = send(codec, pictures[:1], Target(max_bytes=limit), backend, block_bits)
        assert len(sent.stream) <= limit
        reader, packets, _ = read_stream(sent.stream, packet_parser)
        assert reader.header.last
        assert packets[:packet] == known
        assert len(packets) == packet + 1
        received, seen = receive(codec, sent.stream)
        assert (received.int() - sent.picture.int()).abs().max() <= 1
        assert step.s < seen[-1][0] == sent.ledger.steps[-1].s < step.t
        assert sent.ledger.total_bits == 8 * len(sent.stream)
        cut = truncate(full.stream, limit, packet_parser)
        assert truncate(sent.stream, len(sent.stream) - 1, packet_parser) == cut


def test_a_wanted_psnr_is_reached_by_a_part_of_the_last_step(source, pictures):
    """Whole steps overshoot: the file is shorter than with all of the last one, and its receiver
    has the wanted PSNR."""
    codec = ProgressiveCodec(replace(source, plan=Plan(np.array([20, 8, 1]), np.zeros(2))))
    for seed in range(3):
        picture = pictures[seed]
        [full] = send(codec, picture[None], None, "mrc", 8, seed)
        before, after = (step.psnr_db for step in full.ledger.steps)
        for wanted in (before + 0.1 * (after - before), after - 0.01):
            [sent] = send(codec, picture[None], Target(psnr_db=wanted), "mrc", 8, seed)
            received, seen = receive(codec, sent.stream)
            assert (received.int() - sent.picture.int()).abs().max() <= 1
            assert psnr_db(picture, sent.picture) == sent.ledger.steps[-1].psnr_db >= wanted
            assert sent.ledger.total_bits == 8 * len(sent.stream)
            if wanted < after - 1:
                assert len(sent.stream) < len(full.stream)
                assert 1 < seen[-1][0] < 8
            else:
                assert len(sent.stream) <= len(full.stream)


def test_cut_streams_leave_the_best_picture(codec, pictures):
    [result] = send(codec, pictures[:1], Target(lossless=True), "orc", 8)
    data = result.stream
    ends = read_stream(data, packet_parser)[0].packet_ends
    for n in sorted({0, 5, 15, 16, len(data) // 2, len(data) - 1}):
        receiver = Receiver(codec)
        seen = list(receiver.feed(data[:n]))
        with pytest.raises(Truncated):
            receiver.close()
        whole = sum(15 * 8 + end <= 8 * n for end in ends)
        assert len(seen) == (1 + whole if n >= 15 else 0)


def test_flipped_bits_never_pass(codec, pictures):
    [result] = send(codec, pictures[:1], Target(lossless=True), "orc", 8)
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(result.stream), 30):
        damaged = bytearray(result.stream)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(BitstreamError):
            receive(codec, bytes(damaged), 1 << 20)


def test_another_model_is_named_with_both_hashes(codec, source, pictures):
    [result] = send(codec, pictures[:1], None, "mrc", 8)
    other = replace(source, weights={k: v + 1e-3 for k, v in source.weights.items()})
    with pytest.raises(ModelMismatch) as caught:
        receive(ProgressiveCodec(other), result.stream)
    assert codec.hash.hex() in str(caught.value)
    assert other.hash[:8] in str(caught.value)


def test_an_unknown_coder_is_refused(codec, pictures):
    [result] = send(codec, pictures[:1], None, "mrc", 8)
    header, _, _ = read_stream(result.stream, packet_parser)
    foreign = replace(header.header, backend=9).pack() + result.stream[15:]
    with pytest.raises(Corrupt, match="number 9"):
        receive(codec, foreign)


def test_drift_of_the_network_moves_the_picture_by_a_hair(source, pictures):
    """Noise of 1e-4 in the receiver's network: parsing holds, the picture hardly moves."""
    sender, receiver = ProgressiveCodec(source), ProgressiveCodec(source)
    denoiser, generator = receiver.model.denoiser, torch.Generator().manual_seed(0)

    def noisy(x_t, t):
        prediction, log_variance = denoiser(x_t, t)
        noise = 1e-4 * torch.randn(prediction.shape, generator=generator)
        return type(denoiser(x_t, t))(prediction + noise, log_variance)

    receiver.model = replace(receiver.model, denoiser=noisy)
    [result] = send(sender, pictures[:1], None, "mrc", 8)
    received, _ = receive(receiver, result.stream)
    difference = (received.int() - result.picture.int()).abs()
    assert difference.max() <= 2


def test_a_disagreeing_network_is_an_error_in_lossless(source, pictures):
    sender, receiver = ProgressiveCodec(source), ProgressiveCodec(source)
    denoiser = receiver.exact_model.denoiser

    def other(x_t, t):
        prediction, log_variance = denoiser(x_t, t)
        return type(denoiser(x_t, t))(prediction * 1.01, log_variance)

    receiver.exact_model = replace(receiver.exact_model, denoiser=other)
    [result] = send(sender, pictures[:1], Target(lossless=True), "mrc", 8)
    with pytest.raises(Corrupt):
        receive(receiver, result.stream)


def test_the_ideal_coder_charges_the_kl_and_makes_no_stream(codec, pictures):
    [result] = send(codec, pictures[:1], None, IDEAL)
    report = result.ledger.as_json()
    assert result.stream == b""
    assert report["total_bits"] == round(report["ideal_bits"])
    curve = realised_curve(codec, pictures, IDEAL)
    np.testing.assert_allclose(curve["rate_bpd"], curve["kl_bpd"])
    assert list(curve["t"]) == codec.plan.timesteps[1:].tolist()


def test_realised_bits_of_grey_pictures_are_per_dimension_that_is_coded(codec, pictures):
    """One plane is coded; its bits were once divided by the dimensions of three."""
    grey = pictures[:2, :1].expand(-1, 3, -1, -1)
    ledgers = [result.ledger for result in send(codec, grey, None, IDEAL)]
    expected = np.mean([ledger.as_json()["bpd"] for ledger in ledgers])
    assert ledgers[0].dims == grey[0, 0].numel()
    curve = realised_curve(codec, grey, IDEAL)
    np.testing.assert_allclose(curve["rate_bpd"].iloc[-1], expected, atol=1 / ledgers[0].dims)


def test_every_picture_of_a_call_has_its_own_private_draws(codec, pictures, monkeypatch):
    """Also across batches: equal draws would make standard errors over pictures wrong."""
    monkeypatch.setattr(sending, "BATCH_PIXELS", 2 * pictures[0, 0].numel())
    sent = send(codec, pictures[:1].repeat(4, 1, 1, 1), None, IDEAL)
    assert len({result.ledger.as_json()["ideal_bits"] for result in sent}) == 4


def test_the_ideal_walk_costs_the_bound_of_its_chain(codec, pictures):
    """Walks along the plan against the K-step bound of the same grid: one expectation."""
    grid = codec.plan.timesteps
    many = pictures[:1].repeat(200, 1, 1, 1)
    walked = [s.ledger.ideal_bits for s in send(codec, many, None, IDEAL)]
    generator = torch.Generator().manual_seed(0)
    terms = evaluate(codec.model, many, chain_work(len(many), grid), generator)
    bits = terms.nats.reshape(len(many), -1)[:, :-1].sum(1) / np.log(2)
    error = np.sqrt(np.var(walked, ddof=1) / 200 + bits.var(ddof=1) / 200)
    assert abs(np.mean(walked) - bits.mean()) < 4.5 * error


@pytest.mark.parametrize("backend", range(len(BACKENDS)))
def test_a_hostile_header_costs_no_memory(codec, backend):
    """Sixteen bytes that claim 268 million pixels: refused before anything is laid out."""
    block_bits = {3: 16 + 32, 5: 0}.get(backend, 4)
    header = Header(codec.hash, 16_383, 16_383, backend, block_bits, 6)
    with pytest.raises(Corrupt, match="at most"):
        read_stream(header.pack(), packet_parser)
    with pytest.raises((Corrupt, ConfigError), match="at most"):
        list(Receiver(codec).feed(header.pack()))
