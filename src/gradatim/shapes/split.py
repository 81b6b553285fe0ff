"""Which layers each chunk of a pipeline holds: as even as can be, by cost, or as the config lists them. No torch.

Chunks are numbered in the order of the forward pass, so chunk c is on rank c mod stages. Embedding goes with the first,
the output matrix with the last; the latter costs as much as some layers where the vocabulary is large and the model
narrow (V / 12 h of one, Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, appendix).
"""

from __future__ import annotations

import heapq
from fractions import Fraction

from gradatim.config.settings import ModelConfig, NgramConfig, RunConfig, WindowConfig
from gradatim.shapes import matmuls


def layers_of_chunks(config: RunConfig, vocab_size: int) -> list[range]:
    """The layers of every chunk, first to last: each layer in exactly one, none empty.

    The config keeps the rules of ``gradatim check`` (at least one layer a chunk, a list that adds up).
    """
    layout, layers = config.layout, _layers(config.model)
    chunks = layout.pp * layout.chunks
    if isinstance(layout.split, tuple):
        counts = list(layout.split)
    elif layout.split == "uniform":
        counts = even_counts(layers, chunks)
    else:
        counts = counts_by_cost(layers, chunks, head_cost(config.model, vocab_size, config.context))
    assert len(counts) == chunks and sum(counts) == layers and min(counts) > 0
    starts = [sum(counts[:chunk]) for chunk in range(chunks)]
    return [range(start, start + count) for start, count in zip(starts, counts)]


def head_cost(model: ModelConfig, vocab_size: int, context: int) -> Fraction:
    """FLOPs of the output matrix, in layers."""
    products = matmuls(model, vocab_size, context)
    head = sum(product.flops for product in products if product.name.startswith("head."))
    blocks = sum(product.flops for product in products if not product.name.startswith("head."))
    return Fraction(head * _layers(model), blocks)


def _layers(model: ModelConfig) -> int:
    return 1 if isinstance(model, (NgramConfig, WindowConfig)) else model.n_layers


def even_counts(layers: int, chunks: int) -> list[int]:
    """Counts that differ by one at most; the ends, which embed and predict besides, come last at getting one more."""
    fewest, more = divmod(layers, chunks)
    order = [*range(1, chunks - 1), 0, chunks - 1]
    favoured = set(order[:more])
    return [fewest + (chunk in favoured) for chunk in range(chunks)]


def counts_by_cost(layers: int, chunks: int, head: Fraction) -> list[int]:
    """Counts under which the costliest chunk is cheapest: each layer goes to the chunk that is cheapest with it.

    Layers are alike and an embedding looks up, so only the head's cost counts besides.
    """
    counts = [1] * chunks
    costs = [(Fraction(2) + (head if chunk == chunks - 1 else 0), chunk) for chunk in range(chunks)]
    heapq.heapify(costs)
    for _ in range(layers - chunks):
        cost, chunk = costs[0]
        counts[chunk] += 1
        heapq.heapreplace(costs, (cost + 1, chunk))
    return counts
