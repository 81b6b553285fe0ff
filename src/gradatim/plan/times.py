"""Seconds of passes, by cause. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seconds:
    """A pass, by cause."""

    compute: float = 0.0
    tensor: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.tensor

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.compute + other.compute, self.tensor + other.tensor)

    def __mul__(self, times: float) -> Seconds:
        return Seconds(self.compute * times, self.tensor * times)


@dataclass(frozen=True, slots=True)
class Times:
    """Forward and backward (recomputation with the latter)."""

    forward: Seconds
    backward: Seconds

    def __add__(self, other: Times) -> Times:
        return Times(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Times:
        return Times(self.forward * times, self.backward * times)
