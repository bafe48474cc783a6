"""loratune's counter-based randomness, in numpy: the same words as crates/engine/src/rng.rs.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under keys that are
derived from a seed by names and numbers. Dropout and noise in the goldens are drawn from here, so that a run of
PEFT and one of loratune can be compared number for number.
"""

import numpy as np

_M64 = (1 << 64) - 1
_M32 = np.uint64(0xFFFF_FFFF)
_32 = np.uint64(32)


def _mix(z: int) -> int:
    """SplitMix64's finaliser."""
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _M64
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _M64
    return z ^ (z >> 31)


class Key:
    """What a draw is for; `with_` and `named` give independent streams under the same seed."""

    def __init__(self, seed: int, stream: int = 0):
        self.seed, self.stream = seed & _M64, stream & _M64

    def with_(self, number: int) -> "Key":
        return Key(self.seed, _mix(((self.stream + 0x9E37_79B9_7F4A_7C15) & _M64) ^ _mix(number)))

    def named(self, name: str) -> "Key":
        digest = 0xCBF2_9CE4_8422_2325  # FNV-1a
        for byte in name.encode():
            digest = ((digest ^ byte) * 0x100_0000_01B3) & _M64
        return self.with_(digest)

    def words(self, first: int, count: int) -> np.ndarray:
        """The 32-bit words of elements first..first+count, as uint64 `[count]`."""
        start, end = first // 4, (first + count + 3) // 4
        counter = np.arange(start, end, dtype=np.uint64)

        def constant(value):
            return np.full_like(counter, value & 0xFFFF_FFFF)

        c = [counter & _M32, counter >> _32, constant(self.stream), constant(self.stream >> 32)]
        k = [self.seed & 0xFFFF_FFFF, self.seed >> 32]
        for _ in range(10):
            p0, p1 = np.uint64(0xD251_1F53) * c[0], np.uint64(0xCD9E_8D57) * c[2]
            k0, k1 = np.uint64(k[0]), np.uint64(k[1])
            c = [(p1 >> _32) ^ c[1] ^ k0, p1 & _M32, (p0 >> _32) ^ c[3] ^ k1, p0 & _M32]
            k = [(k[0] + 0x9E37_79B9) & 0xFFFF_FFFF, (k[1] + 0xBB67_AE85) & 0xFFFF_FFFF]
        words = np.stack(c, axis=1).reshape(-1)
        return words[first - 4 * start :][:count]

    def uniform(self, first: int, count: int) -> np.ndarray:
        """Uniform in [0, 1) with 24 bits, float64 `[count]`."""
        return (self.words(first, count) >> np.uint64(8)).astype(np.float64) / 16_777_216.0

    def normal(self, first: int, count: int) -> np.ndarray:
        """Standard normal, float64 `[count]`: Box-Muller, where element 2k takes the cosine and 2k+1 the sine of block k."""
        k = np.arange(first // 2, (first + count + 1) // 2)
        w = self.words(4 * int(k[0]), 4 * len(k)).reshape(-1, 4)
        high, low = (w[:, 0::2] << np.uint64(21)), (w[:, 1::2] >> np.uint64(11))
        u, v = ((high | low).astype(np.float64)).T
        r = np.sqrt(-2.0 * np.log((u + 0.5) / 2.0**53))
        angle = 2.0 * np.pi * (v / 2.0**53)
        pairs = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1).reshape(-1)
        return pairs[first - 2 * int(k[0]) :][:count]

    def dropout(self, p: float, first: int, count: int) -> np.ndarray:
        """A dropout mask of 0 and 1/(1-p), float64 `[count]`: an element is kept if its word >= floor(p * 2^32)."""
        return np.where(self.words(first, count) >= np.uint64(int(p * 2**32)), 1.0 / (1.0 - p), 0.0)


def self_check() -> None:
    """Random123's known answers; crates/train/tests/methods.rs has the numbers of a derived key."""
    assert [hex(w) for w in Key(0, 0).words(0, 4)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    key = Key(0x1234_5678_9ABC_DEF0).named("train").with_(3).with_(1).with_(2)
    assert list(key.words(4, 8)) == list(key.words(0, 12)[4:]) and list(key.words(5, 2)) == list(key.words(4, 4)[1:3])


if __name__ == "__main__":
    self_check()
    key = Key(0x1234_5678_9ABC_DEF0).named("train").with_(3).with_(1).with_(2)
    print([int(w) for w in key.words(5, 6)], key.uniform(1 << 34, 2).tolist())
