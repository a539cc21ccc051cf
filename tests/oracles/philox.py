"""Philox4x32-10 one word at a time, and what is derived from it, as the definitions read."""

from collections.abc import Sequence

MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Salmon et al. 2011, Section 3.3: ten rounds, the key bumped between rounds."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high_1, low_1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def codeword_entry(
    key: Sequence[int], table: Sequence[int], block: int, candidate: int, dimension: int
) -> int:
    """One dimension of a codeword: the quantiles of a call, with the signs of one Hadamard row."""
    words = philox4x32([dimension // 8, candidate, block, 0], key)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    row = dimension % 8
    return sum((-1) ** bin(row & lane).count("1") * table[h] for lane, h in enumerate(halves))


def long_word(key: Sequence[int], stream: int, block: int, index: int) -> int:
    """64-bit word number `index` of a stream: two words of call index // 2, the low one first."""
    words = philox4x32([index // 2, 0, block, stream], key)
    low, high = words[2 * (index % 2) :][:2]
    return high << 32 | low
