"""How layouts and counts of a plan are said. No torch."""

from __future__ import annotations

from gradatim.config.settings import LayoutConfig

GIB = 2**30
"""Bytes of a gibibyte, in which memory is told."""


def device_text(count: int) -> str:
    """``1 device``, ``1,024 devices``."""
    return f"{count:,} device{'s' if count != 1 else ''}"


def layout_text(layout: LayoutConfig) -> str:
    """``tp 8, pp 12, dp 4, interleaved in 4 chunks, microbatch 1``: what differs from the plain is said."""
    parts = [f"tp {layout.tp}", f"pp {layout.pp}", f"dp {layout.dp}"]
    if layout.pp > 1:
        parts.append(layout.schedule + (f" in {layout.chunks} chunks" if layout.chunks > 1 else ""))
    parts.append(f"microbatch {layout.microbatch}")
    if layout.sequence_parallel:
        parts.append("sequence parallel")
    if layout.recompute != "none":
        parts.append(f"{layout.recompute} recomputation")
    if layout.zero:
        parts.append(f"ZeRO-{layout.zero}")
    return ", ".join(parts)
