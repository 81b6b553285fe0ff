"""The order of training samples, as a pure function of (seed, position): nothing to save, nothing to replay.

Epoch e visits every sample once, in an order given by a permutation of 0 … n-1 that can be evaluated at a single
point: a Feistel network over the smallest even number of bits that holds n, repeated until the value falls inside
("cycle walking"; Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002). Seeking to any step costs
as much as taking it, and every number of processes sees the same global batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4  # Luby and Rackoff (1988): four rounds of a pseudo-random function make a strong pseudo-random permutation

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * _MIX1
        values = (values ^ (values >> np.uint64(27))) * _MIX2
        return values ^ (values >> np.uint64(31))


def derive(*parts: int) -> int:
    """A 64-bit seed that depends on every part and their order: ``derive(seed, step, microbatch)``."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(state ^ np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return int(state[0])


def permute(key: NDArray[np.uint64], index: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Where a keyed permutation of 0 … n-1 sends each index; ``key`` may differ from element to element."""
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = index.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():  # the domain is at most four times n, so a few walks suffice
        left, right = values[outside] >> half, values[outside] & mask
        for number in range(ROUNDS):
            turn = mix(key[outside] ^ mix(right ^ (np.uint64(number) << np.uint64(56)))) & mask
            left, right = right, left ^ turn
        values[outside] = (left << half) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def sample_ids(seed: int, step: int, global_batch: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which samples step ``step`` trains on, and in which epoch each of them is: two arrays of ``global_batch``."""
    position = np.arange(global_batch, dtype=np.int64) + np.int64(step) * global_batch
    epoch, index = np.divmod(position, samples)
    keys = mix(epoch.astype(np.uint64) ^ np.uint64(derive(seed, 0x6F72646572)))
    return permute(keys, index, samples), epoch
