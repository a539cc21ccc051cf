"""Bits and integer codes: round trips, exact lengths, Kraft sums, damage."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from ddpm_codec.entropy import (
    BitReader,
    BitWriter,
    Centred,
    EliasGamma,
    Raw,
    Rice,
)
from ddpm_codec.errors import BitstreamError, ConfigError, Corrupt, Truncated
from ddpm_codec.prefix import INDEX_CODES, Nearby, Prefix, half_octave

CODES = {  # code, least, most
    "raw 0": (Raw(0), 0, 0),
    "raw 3": (Raw(3), 0, 7),
    "raw 32": (Raw(32), 0, 2**32 - 1),
    "gamma": (EliasGamma(), 1, 2**32 - 1),
    "rice 0": (Rice(0), 0, 1_024),
    "rice 2": (Rice(2), 0, 4_099),
    "rice 5": (Rice(5), 0, 32_799),
    "centred 0": (Centred(0), 0, 1_024),
    "centred 1": (Centred(1, 1), 0, 2_049),
    "centred 9": (Centred(9, 2), 0, 4_099),
    "nearby 0": (Nearby(0), 0, 255),
    "nearby 100": (Nearby(100), 0, 255),
} | {f"index {c}": (code, 1, 2**25 - 1) for c, code in enumerate(INDEX_CODES)}


def samples(least, most):
    """Everything up to 5000, and what lies around powers of two and the end."""
    near = {2**j + d for j in range(33) for d in (-1, 0, 1)}
    near |= {3 * 2**j + d for j in range(32) for d in (-1, 0)}
    everything = near | set(range(least, min(most, 5_000) + 1)) | {most}
    return sorted(n for n in everything if least <= n <= most)


@pytest.fixture(params=CODES, name="case")
def _case(request):
    return CODES[request.param]


def test_every_code_round_trips_at_its_exact_length(case):
    code, least, most = case
    values = np.random.default_rng(0).permutation(samples(least, most)).tolist()
    writer = BitWriter()
    writer.write(1, 3)  # no code may rely on starting at a byte
    for value in values:
        before = writer.bits
        code.write(writer, value)
        assert writer.bits - before == code.length_bits(value)
    reader = BitReader(writer.getvalue(), writer.bits)
    assert reader.read(3) == 1
    assert [code.read(reader) for _ in values] == values
    assert reader.position == writer.bits


def test_values_outside_of_the_domain_are_refused(case):
    code, least, most = case
    for value in (least - 1, most + 1):
        writer = BitWriter()
        with pytest.raises(ConfigError):
            code.write(writer, value)
        assert writer.bits == 0


def test_a_cut_inside_of_a_codeword_is_truncated(case):
    code, least, most = case
    for value in {least, (least + most) // 3, most}:
        writer = BitWriter()
        code.write(writer, value)
        for bits in range(0, writer.bits, 1 + writer.bits // 40):
            with pytest.raises(Truncated):
                code.read(BitReader(writer.getvalue(), bits))


def test_random_bits_give_values_of_the_domain_or_an_error(case):
    code, least, most = case
    rng = np.random.default_rng(1)
    for data in [bytes(200), b"\xff" * 200, *(rng.bytes(40) for _ in range(50))]:
        reader = BitReader(data)
        try:
            for _ in range(100):
                assert least <= code.read(reader) <= most
        except BitstreamError:
            pass


def kraft(code, values):
    return sum((Fraction(1, 2 ** code.length_bits(n)) for n in values), Fraction(0))


def test_kraft_sums():
    """The codes are complete: what is missing from 1 is exactly the tail that was left out."""
    assert kraft(Raw(6), range(64)) == 1
    assert kraft(EliasGamma(), range(1, 2**10)) == 1 - Fraction(1, 2**10)
    for r in (0, 1, 4):
        assert kraft(Rice(r), range(9 << r)) == 1 - Fraction(1, 2**9)
        assert kraft(Centred(3, r), range(9 << r)) == 1 - Fraction(1, 2**9)


@pytest.mark.parametrize("code", INDEX_CODES)
def test_kraft_sums_of_the_index_codes(code):
    assert sum(Fraction(1, 2**length) for length in code.symbol.lengths) == 1
    by_octave = [range(2**j, 2 ** (j + 1)) for j in range(12)]
    symbols = code.symbol.lengths[:23]
    assert kraft(code, (n for octave in by_octave for n in octave)) == sum(
        Fraction(1, 2**length) for length in symbols
    )


def test_half_octaves():
    halves = [half_octave(n) for n in range(1, 17)]
    assert [half for half, _ in halves] == [0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7]
    assert [low for _, low in halves] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3]


def test_canonical_words_are_those_of_deflate():
    """The example of RFC 1951, Section 3.2.2: lengths of A to H."""
    words = Prefix((3, 3, 3, 3, 3, 2, 4, 4)).words
    assert words == (0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111)


def test_the_ranks_of_centred_go_outwards():
    order = sorted(range(9), key=Centred(2).rank)
    assert order == [2, 3, 1, 4, 0, 5, 6, 7, 8]


# KL (bits), class, bits above KL of the half-octave symbol (as entropy) and raw mantissa in
# `relative-entropy-coding`: 0.03 more for whole bits is allowed, and 4 standard errors.
@pytest.mark.parametrize(
    ("kl_bits", "kl_class", "above"), [(1, 1, 1.96), (2, 2, 2.34), (4, 4, 2.74), (8, 7, 3.12)]
)
def test_index_codes_fit_the_poisson_functional_representation(kl_bits, kl_class, above):
    """Index drawn by its law: the winner's score S ~ Exp(1) and place z ~ q are independent,
    and index - 1 ~ Poisson(S (w P(w' < w) - Q(w' < w)))."""
    rng = np.random.default_rng(2)
    m = np.sqrt(2 * kl_bits * np.log(2))
    z = m + rng.standard_normal(40_000)
    losers = np.exp(m * z - m**2 / 2) * norm.cdf(z) - norm.cdf(z - m)
    index = 1 + rng.poisson(rng.exponential(size=z.size) * np.maximum(losers, 0))
    index = np.minimum(index, 2**25 - 1)
    bits = [[code.length_bits(int(n)) for n in index] for code in INDEX_CODES]
    means = np.mean(bits, axis=1)
    assert means[kl_class] <= kl_bits + above + 0.03 + 4 * np.std(bits[kl_class]) / 200
    assert abs(int(np.argmin(means)) - kl_class) <= 1


def test_writer_and_reader_at_any_width():
    rng = np.random.default_rng(3)
    widths = rng.integers(0, 70, 500).tolist()
    values = [int.from_bytes(rng.bytes(9), "big") >> (72 - width) for width in widths]
    writer, other = BitWriter(), BitWriter()
    for value, width in zip(values, widths, strict=True):
        (writer if writer.bits < 7_000 else other).write(value, width)
    writer.append(other)
    bits = "".join(f"{v:0{w}b}" if w else "" for v, w in zip(values, widths, strict=True))
    padded = bits + "0" * (-len(bits) % 8)
    assert writer.bits == len(bits)
    assert writer.getvalue() == int(padded, 2).to_bytes(len(padded) // 8, "big")
    reader = BitReader(writer.getvalue())
    assert [reader.read(width) for width in widths] == values


def test_the_most_significant_bit_comes_first():
    writer = BitWriter()
    for value, bits in ((1, 1), (0, 2), (5, 3)):
        writer.write(value, bits)
    assert writer.getvalue() == bytes([0b10010100])
    assert writer.bits == 6


def test_appending_at_any_phase():
    for first, second in pairwise(range(20)):
        writer, other = BitWriter(), BitWriter()
        writer.write((1 << first) - 1, first)
        other.write(1, second)
        writer.append(other)
        reader = BitReader(writer.getvalue(), writer.bits)
        assert (reader.read(first), reader.read(second)) == ((1 << first) - 1, 1)


def test_what_doesnt_fit_is_refused():
    for value, bits in ((2, 1), (1, 0), (-1, 8)):
        with pytest.raises(ConfigError, match="fit"):
            BitWriter().write(value, bits)
    with pytest.raises(ConfigError, match="fewer"):
        BitReader(b"a", 9)


def test_damage_is_named():
    with pytest.raises(Corrupt, match="zeros"):
        EliasGamma().read(BitReader(bytes(8)))
    with pytest.raises(Corrupt, match="zeros"):
        Rice(0).read(BitReader(bytes(200)))
    with pytest.raises(Truncated, match="bit 16"):
        BitReader(b"ab").read(17)
