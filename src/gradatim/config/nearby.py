"""The numbers next to a wrong one that would have done: every refusal proposes some."""

from __future__ import annotations

import math
from collections.abc import Iterable


def divisors(number: int, near: int) -> list[int]:
    """The divisors of ``number`` next below and above ``near``, the closer first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    found = {*small, *(number // d for d in small)}
    around = {max(d for d in found if d <= near), min((d for d in found if d >= near), default=number)}
    return sorted(around, key=lambda d: abs(d - near))


def multiples(factor: int, near: int) -> list[int]:
    """The positive multiples of ``factor`` around ``near``."""
    below = near // factor * factor
    return [m for m in (below, below + factor) if m > 0]


def closest(numbers: Iterable[int], near: int) -> int:
    """The number nearest to ``near``."""
    return min(numbers, key=lambda number: abs(number - near))


def either(numbers: Iterable[int]) -> str:
    """``2 or 4``."""
    return " or ".join(map(str, sorted(set(numbers))))
