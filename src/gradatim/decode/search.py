"""Beam search over many texts at once: the likeliest continuations of each, with a stop that is provably right.

A finished hypothesis of n tokens and log-probability s is worth s / n^α (length normalisation; α = 0 compares sums,
α = 1 means). A beam that ends gives up its place, so one beam is greedy decoding and the search ends when all have.
It may end sooner: a live hypothesis can only lose, since its sum never rises and dividing it by the largest length
L it may reach (α < 0: the smallest) is the best that can happen to a negative number. Once the wanted number of
hypotheses is finished and the worst of them is worth at least s / L^α for the best live s, no live one can enter.
(Stopping when the likeliest beam ends, as is often done, is wrong for α > 0.)

Texts do not see each other: what is found for one does not depend on the others, up to the rounding of matrix products.
All live texts have equally many rows side by side, the live beams first; a text that has fewer left carries dead rows
of probability zero, and one that is settled leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.decode.prompt import Reader

BLOCK = 128
"""Words looked at together in search of the largest numbers of a row."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished continuation."""

    worth: float
    """log-probability / length^α: what it is ranked by."""
    log_probability: float
    """Sum over its tokens, in nats."""
    tokens: list[int]
    """The closing boundary included where it was reached."""
    ended: bool
    """Whether by the boundary, and not by the limit."""
    attention: Float[Tensor, "names t s"] | None = None
    """Where the model looked for each of its tokens, where that was asked for."""


@dataclass(slots=True)
class Finished:
    """The best finished hypotheses of one text."""

    most: int
    alpha: float
    found: list[Hypothesis] = field(default_factory=list)
    """Best first."""

    def add(self, total: float, tokens: list[int], ended: bool, attention: Tensor | None = None) -> None:
        """Consider a finished hypothesis."""
        self.found.append(Hypothesis(worth(total, len(tokens), self.alpha), total, tokens, ended, attention))
        self.found.sort(key=lambda item: (-item.worth, item.tokens))
        del self.found[self.most :]

    def settled(self, best_live: float, length: int) -> bool:
        """Whether no live hypothesis can enter any more."""
        return len(self.found) == self.most and self.found[-1].worth >= worth(best_live, length, self.alpha)


def worth(total: float, length: int, alpha: float) -> float:
    """A log-probability normalised by length."""
    return float(total / max(1, length) ** alpha)


@torch.inference_mode()
def search(
    reader: Reader,
    log_probs: Float[Tensor, "n v"],
    limits: Sequence[int],
    *,
    boundary: int,
    beams: int = 4,
    n_best: int | None = None,
    alpha: float = 1.0,
    attention: bool = False,
) -> list[list[Hypothesis]]:
    """The ``n_best`` (default ``beams``) likeliest continuations of each text, best first.

    Args:
        reader: has read the texts, one a row; it is used up.
        log_probs: of what follows each.
        limits: most tokens of each continuation; one that reaches it ends without the boundary.
        boundary: the id that ends a text.
        beams: hypotheses followed at a time; with as many as there are texts of that length the search is exhaustive.
        n_best: continuations wanted, at most ``beams``.
        alpha: of the length normalisation.
        attention: whether to keep where the model looked, along each hypothesis; its states must show it.
    """
    where, prefix = log_probs.device, reader.ids.shape[1]
    finished = [Finished(min(n_best or beams, beams), alpha) for _ in limits]
    active = list(range(len(limits)))
    totals = log_probs.new_zeros(len(active), 1, dtype=torch.float64)
    places = torch.full((len(active),), beams, device=where)
    most = torch.tensor(list(limits), device=where)
    looks: Tensor | None = reader.state.attention[:, :, -1:] if attention else None
    position = 0
    while active:
        position += 1
        width = totals.shape[1]
        values, parents, tokens = candidates(totals, log_probs, beams)
        rank = torch.arange(values.shape[1], device=where)
        admitted = (rank < places[:, None]) & (values > -torch.inf)
        ends = tokens == boundary
        final = ends | (most == position)[:, None]
        done = (admitted & final).nonzero()
        if len(done):
            text, place = done.unbind(1)
            rows = text * width + parents[text, place]
            histories = reader.ids[rows, prefix:].tolist()
            facts = zip(text.tolist(), histories, tokens[text, place].tolist(), values[text, place].tolist(), rows)
            for number, history, token, value, row in facts:
                shown = None if looks is None else looks[row].clone()
                finished[active[number]].add(value, [*history, token], token == boundary, shown)
        places = places - (admitted & ends).sum(1)
        going = admitted & ~final
        best = values.masked_fill(~going, -torch.inf).amax(1).tolist()
        kept = [
            place
            for place, (number, live) in enumerate(zip(active, best, strict=True))
            if live > -torch.inf and not finished[number].settled(live, limits[number] if alpha > 0 else position + 1)
        ]
        if not kept:
            break
        keep = torch.tensor(kept, device=where)
        going = going[keep]
        order = (~going).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(going.sum(1).max())]
        alive = going.gather(1, order)
        totals = values[keep].gather(1, order).masked_fill(~alive, -torch.inf)
        rows = (keep[:, None] * width + parents[keep].gather(1, order).masked_fill(~alive, 0)).flatten()
        chosen = tokens[keep].gather(1, order).masked_fill(~alive, boundary).flatten()
        if len(rows) != len(reader.ids) or width > 1:
            reader.select(rows)
        log_probs = reader.push(chosen)
        if looks is not None:
            looks = torch.cat([looks[rows], reader.state.attention[:, :, -1:]], 2)
        active = [active[place] for place in kept]
        places, most = places[keep], most[keep]
    return [each.found for each in finished]


def candidates(
    totals: Float[Tensor, "n w"], log_probs: Float[Tensor, "rows v"], most: int
) -> tuple[Float[Tensor, "n c"], Int[Tensor, "n c"], Int[Tensor, "n c"]]:
    """Of each text the ``most`` likeliest ways to go on: their sums, the beam each goes on from, the token.

    Equals are in the order of beam and token, so that which are taken does not depend on how a sort breaks ties.
    """
    (n, width), v = totals.shape, log_probs.shape[1]
    if most >= width * v:
        sums, places = ways(totals, log_probs).sort(dim=1, descending=True, stable=True)
        return sums, places // v, places % v
    sums, places = largest(totals, log_probs, most + 1)
    edge = sums[:, most - 1]
    tied = (edge == sums[:, most]) & (edge > -torch.inf)
    places, order = places[:, :most].sort(dim=1)
    sums, order = sums[:, :most].gather(1, order).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    if bool(tied.any()):  # which of the equals at the edge are in is not topk's to say
        rows = log_probs.view(n, width, v)[tied].flatten(0, 1)
        sorted_sums, sorted_places = ways(totals[tied], rows).sort(dim=1, descending=True, stable=True)
        sums[tied], places[tied] = sorted_sums[:, :most], sorted_places[:, :most]
    return sums, places // v, places % v


def ways(totals: Float[Tensor, "n w"], log_probs: Float[Tensor, "rows v"]) -> Float[Tensor, "n wv"]:
    """The sum of each way to go on, beam after beam."""
    return (totals[:, :, None] + log_probs.double().view(*totals.shape, -1)).flatten(1)


def largest(
    totals: Float[Tensor, "n w"], log_probs: Float[Tensor, "rows v"], most: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Of each text the ``most`` largest of ``ways``, largest first, and where: ``topk``, faster where rows are long.

    The k largest lie in the k blocks of words whose maxima are largest, whichever beams those are of, since a block
    left out has k numbers before it that are no less. A maximum of each block is one pass over the table; what is left
    to sort is small.
    """
    (n, width), v = totals.shape, log_probs.shape[1]
    count = v // BLOCK
    if count * width < 2 * most:
        sums, places = ways(totals, log_probs).topk(most, dim=1)
        return sums, places
    table = log_probs.view(n, width, v)
    maxima = torch.unflatten(table[:, :, : count * BLOCK], 2, (count, BLOCK)).amax(3)
    chosen = ways(totals, maxima.flatten(0, 1)).topk(most, dim=1).indices
    first = chosen // count * v + chosen % count * BLOCK
    places = (first[:, :, None] + torch.arange(BLOCK, device=table.device)).flatten(1)
    if v > count * BLOCK:  # words behind the last whole block
        rest = torch.arange(width * v, device=table.device).view(width, v)[:, count * BLOCK :].reshape(1, -1)
        places = torch.cat([places, rest.expand(n, -1)], 1)
    sums = totals.gather(1, places // v) + table.flatten(1).gather(1, places)
    sums, order = sums.topk(most, dim=1)
    return sums, places.gather(1, order)
