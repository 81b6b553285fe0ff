"""What a pipeline does, as data: actions, their text, and a schedule of them per rank.

An action is a model chunk, a kind and a microbatch, written together: ``2F0`` is chunk 2, forward, microbatch 0.
The notation is that of torch.distributed.pipelining; I and W, the halves of a backward pass, are those of Qi et al.,
"Zero Bubble Pipeline Parallelism" (2023), https://arxiv.org/abs/2401.10241, section 2 (which calls I "B").

A model is cut into ``stages * chunks`` chunks, numbered along the forward pass. ``placement[c]`` is the rank that holds
chunk c; dealt out in turns (``looped``) it is c % stages, as in Narayanan et al., "Efficient Large-Scale Language Model
Training on GPU Clusters Using Megatron-LM" (2021), https://arxiv.org/abs/2104.04473, section 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

from gradatim.errors import ConfigError, Problem

Kind = Literal["F", "B", "I", "W", "SEND_F", "RECV_F", "SEND_B", "RECV_B"]
"""F forward; B full backward, or I its input half and W its weight half; SEND and RECV of activations (F) and
gradients (B). A send bears the number of the chunk that sends, a receive that of the chunk that receives."""

KINDS: tuple[Kind, ...] = get_args(Kind)
COMPUTE: tuple[Kind, ...] = ("F", "B", "I", "W")

Result = tuple[Literal["F", "B"], int, int]
"""What an action leaves for others: (F: activations | B: gradient of its input, chunk, microbatch)."""

_TEXT = re.compile(r"(\d+)([A-Z][A-Z_]*)(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """One thing a rank does: ``Action(2, "F", 0)`` is ``2F0``."""

    chunk: int
    """Model chunk, counted over all ranks along the forward pass: 0 … stages·chunks − 1."""
    kind: Kind
    """What is done; see ``Kind``."""
    microbatch: int
    """Microbatch, from 0."""

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read ``2F0`` or ``3RECV_B1``. Raises ConfigError saying what is wrong with the text."""
        found = _TEXT.fullmatch(text.strip())
        if found and found[2] in KINDS:
            return cls(int(found[1]), cast(Kind, found[2]), int(found[3]))
        from gradatim.config.decode import nearest

        letters = re.sub(r"[\d\s]", "", text).upper()
        kind = letters if letters in KINDS else nearest(letters, KINDS) or "F"
        numbers = [*re.findall(r"\d+", text), "0", "0"]
        raise ConfigError(
            Problem(
                where="action",
                what="there is no such kind of action" if found else "an action reads chunk, kind, microbatch",
                got=text,
                allowed=", ".join(KINDS) if found else "such as 2F0, 0B3, 1SEND_F2",
                attempt=f"{numbers[0]}{kind}{numbers[1]}",
            )
        )

    @property
    def computes(self) -> bool:
        """Whether this is work (F, B, I, W) rather than a transfer."""
        return self.kind in COMPUTE

    @property
    def sends(self) -> bool:
        """Whether this sends something to another rank."""
        return self.kind in ("SEND_F", "SEND_B")

    def other_chunk(self) -> int:
        """The chunk at the other end of a send or receive."""
        return self.chunk + (1 if self.kind in ("SEND_F", "RECV_B") else -1)

    def counterpart(self) -> Action:
        """The receive that belongs to a send, or the send that belongs to a receive."""
        kind: dict[Kind, Kind] = {"SEND_F": "RECV_F", "RECV_F": "SEND_F", "SEND_B": "RECV_B", "RECV_B": "SEND_B"}
        return Action(self.other_chunk(), kind[self.kind], self.microbatch)

    def carried(self) -> Result:
        """What a send or receive moves: the producing chunk's result."""
        producer = self.chunk if self.sends else self.other_chunk()
        return ("F" if self.kind in ("SEND_F", "RECV_F") else "B", producer, self.microbatch)

    def produces(self) -> Result | None:
        """What others may wait for: F its activations, B and I the gradient of the chunk's input; W nothing."""
        if self.kind == "F":
            return ("F", self.chunk, self.microbatch)
        return ("B", self.chunk, self.microbatch) if self.kind in ("B", "I") else None

    def needs(self, last_chunk: int) -> list[Result]:
        """The results an action that computes waits for, in a model whose last chunk is ``last_chunk``."""
        chunk, microbatch = self.chunk, self.microbatch
        if self.kind == "F":
            return [("F", chunk - 1, microbatch)] if chunk else []
        if self.kind == "W":
            return [("B", chunk, microbatch)]
        own: Result = ("F", chunk, microbatch)
        return [own] if chunk == last_chunk else [own, ("B", chunk + 1, microbatch)]


Placement = Callable[[int], int]
"""From a chunk to the rank that holds it."""


def looped(stages: int) -> Placement:
    """Chunks dealt out in turns: rank c % stages."""
    return lambda chunk: chunk % stages


def v_shaped(stages: int) -> Placement:
    """Chunks dealt out forwards and back again, so that with two per rank the first rank has both ends."""

    def rank(chunk: int) -> int:
        turn, place = divmod(chunk, stages)
        return stages - 1 - place if turn % 2 else place

    return rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What every rank of a pipeline does, in order; with transfers once ``lower`` has added them."""

    name: str
    """The schedule's name: gpipe, 1f1b, …"""
    stages: int
    """Ranks in the pipeline (p)."""
    chunks: int
    """Model chunks per rank (v)."""
    microbatches: int
    """Microbatches per step (m)."""
    placement: tuple[int, ...]
    """Rank of each chunk, stages·chunks entries."""
    ranks: tuple[tuple[Action, ...], ...]
    """The actions of each rank, in the order in which it begins them."""
    groups: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """None before ``lower``. Then for each rank the slices (start, stop) of its actions that are transfers in opposite
    directions with one peer, to be given to the network together."""

    @property
    def last_chunk(self) -> int:
        """The chunk that computes the loss."""
        return self.stages * self.chunks - 1

    @property
    def lowered(self) -> bool:
        """Whether sends and receives stand in it."""
        return self.groups is not None

    def peer(self, action: Action) -> int:
        """The rank at the other end of a send or receive."""
        return self.placement[action.other_chunk()]

    def compute(self) -> Schedule:
        """The same schedule without transfers."""
        ranks = tuple(tuple(action for action in rank if action.computes) for rank in self.ranks)
        return Schedule(
            name=self.name,
            stages=self.stages,
            chunks=self.chunks,
            microbatches=self.microbatches,
            placement=self.placement,
            ranks=ranks,
        )

    def batches(self, rank: int) -> Iterator[tuple[Action, ...]]:
        """The rank's actions as they are to be issued: one at a time, grouped transfers together."""
        actions, position = self.ranks[rank], 0
        for start, stop in (self.groups or ((),) * self.stages)[rank]:
            yield from ((action,) for action in actions[position:start])
            yield actions[start:stop]
            position = stop
        yield from ((action,) for action in actions[position:])

    def text(self) -> list[list[str]]:
        """The actions of each rank as text, ``[["0F0", …], …]``."""
        return [[str(action) for action in rank] for rank in self.ranks]


def peak_in_flight(schedule: Schedule) -> list[int]:
    """The most chunk-microbatches whose activations a rank holds at once, per rank: from F until B or W."""
    peaks = []
    for rank in schedule.ranks:
        held = peak = 0
        for action in rank:
            held += {"F": 1, "B": -1, "W": -1}.get(action.kind, 0)
            peak = max(peak, held)
        peaks.append(peak)
    return peaks
