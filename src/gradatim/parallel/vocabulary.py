"""Embedding and output matrix cut by words, and the loss from logits that no rank ever has together.

    log p(y) = h·w_y - logsumexp_i(lse_i)        lse_i = logsumexp over the words of rank i

Each rank computes the logits of its words, chunk by chunk of rows as in ``models/layers/output``. Two numbers per
position are exchanged, its logsumexp and the target's logit if it has that word; the gradient of its logits then
needs nobody (Shoeybi et al. 2019, arXiv:1909.08053, section 3). The vocabulary is padded to a multiple, and padding
learns nothing; the last ranks may hold nothing but padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.output import (
    CHUNK_BYTES,
    IGNORE,
    SLICE_BYTES,
    Output,
    product,
    slices,
)
from gradatim.models.layers.working import autocast_dtype, in_type
from gradatim.parallel.collectives import (
    begin_gather,
    begin_scatter,
    begin_sum,
    collect,
    combine,
    scatter,
    spread,
    stack_of_ranks,
)
from gradatim.parallel.mesh import Axis


class VocabEmbedding(nn.Module):
    """Vectors of tokens, from the rank that has the word: ``[b t]`` to ``[b t d]`` (``[b t/tp d]``)."""

    def __init__(self, whole: nn.Embedding, axis: Axis, *, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.weight = whole.weight
        self.axis, self.sequence_parallel = axis, sequence_parallel and axis.size > 1

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b s d"]:
        """Other ranks' words are zeros here, so a sum over ranks finds each."""
        own = ids - self.axis.index * len(self.weight)
        elsewhere = (own < 0) | (own >= len(self.weight))
        x = F.embedding(own.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere[..., None], 0.0)
        return (scatter if self.sequence_parallel else combine)(x, self.axis)


class PositionsShard(nn.Module):
    """Vectors of the positions that this rank has of the sequence: ``[t/tp d]``, added after the tokens are cut."""

    def __init__(self, whole: nn.Module, axis: Axis) -> None:
        super().__init__()
        self.weight = whole.get_parameter("weight")
        self.axis = axis

    def forward(self, first: int, t: int) -> Float[Tensor, "s d"]:
        """The share of this rank in t positions from ``first`` on."""
        share = t // self.axis.size
        begin = first + self.axis.index * share
        return self.weight[begin : begin + share]


class SegmentsShard(nn.Module):
    """Vectors of the segments of the positions that this rank has: ``[b t]`` to ``[b t/tp d]``."""

    def __init__(self, whole: nn.Module, axis: Axis) -> None:
        super().__init__()
        self.weight = whole.get_parameter("weight")
        self.axis = axis

    def forward(self, segments: Int[Tensor, "b t"]) -> Float[Tensor, "b s d"]:
        """The share of this rank."""
        return F.embedding(segments.chunk(self.axis.size, 1)[self.axis.index], self.weight)


class Gathered(nn.Module):
    """The whole sequence on every rank, for a head that reads single positions of it."""

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b t d"]:
        """All positions."""
        return collect(x, self.axis)


class VocabOutput(Output):
    """The output matrix of some words; losses are those of all words, on every rank.

    Hidden vectors are replicated, or ``[b t/tp d]`` under sequence parallelism; targets are always ``[b t]``.
    """

    def __init__(self, whole: Output, axis: Axis, *, sequence_parallel: bool = False) -> None:
        if whole.bias is not None and len(whole.bias) != len(whole.weight):
            raise ValueError("an output matrix whose bias is shorter than it is not split over tensor-parallel ranks")
        super().__init__(whole.weight, whole.vocab_size)
        self.bias = whole.bias
        self.axis, self.sequence_parallel = axis, sequence_parallel and axis.size > 1

    def words(self) -> int:
        """How many rows of this rank's are words, not padding: all, some, or none."""
        return max(0, min(self.vocab_size - self.axis.index * len(self.weight), len(self.weight)))

    def logits(self, hidden: Float[Tensor, "b s d"]) -> Float[Tensor, "b t v"]:
        """All logits on every rank: for sampling, not for training."""
        whole = begin_gather(hidden, self.axis).wait() if self.sequence_parallel else hidden
        parts = stack_of_ranks(F.linear(whole, self.weight, self.bias), self.axis)
        return torch.cat(parts.unbind(0), -1)[..., : self.vocab_size]

    def log_prob(self, hidden: Float[Tensor, "b s d"], targets: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Log-probability of one word per position, 0 where the target is -100; no gradient."""
        whole = begin_gather(hidden, self.axis).wait() if self.sequence_parallel else hidden
        found, _ = _pass(
            self, whole.flatten(0, -2), self.weight, self.bias, targets.flatten(), autocast_dtype(hidden), (False,) * 3
        )
        return found.view(targets.shape)

    def nll(self, hidden: Float[Tensor, "b s d"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Sum over all positions of -log p(target), those with target -100 left out; differentiable (once)."""
        low = autocast_dtype(hidden)
        loss: Tensor = VocabCrossEntropy.apply(hidden, self.weight, self.bias, targets, self, low)  # type: ignore[no-untyped-call]
        return loss

    def spread(self, hidden: Float[Tensor, "b t d"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """See ``Output.spread``: each rank's words give their part of the targets' logits and of the mean."""
        if self.sequence_parallel:
            raise ValueError("label smoothing reads whole sequences")
        places = (targets.flatten() != IGNORE).nonzero()[:, 0]
        h, own = spread(hidden, self.axis).flatten(0, -2)[places], targets.flatten()[places]
        own, words = own - self.axis.index * len(self.weight), self.words()
        here = (own >= 0) & (own < words)
        picked = F.embedding(own.masked_fill(~here, 0), self.weight).masked_fill(~here[:, None], 0.0)
        return combine((h * (picked - self.weight[:words].sum(0) / self.vocab_size)).sum(), self.axis)


class VocabCrossEntropy(torch.autograd.Function):
    """The loss, with gradients computed going forward, except their sum over ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "b s d"],
        weight: Float[Tensor, "rows_local d"],
        bias: Float[Tensor, " rows_local"] | None,
        targets: Int[Tensor, "b t"],
        output: VocabOutput,
        low: torch.dtype | None,
    ) -> Float[Tensor, ""]:
        """The same bits on every rank; matmuls run in ``low`` where given, sums and the softmax at least in fp32."""
        ctx.output, ctx.low, ctx.needs = output, low, ctx.needs_input_grad[:3]
        ctx.save_for_backward(hidden, weight, bias, targets)
        log_probs, ctx.gradients = _whole_pass(output, hidden, weight, bias, targets, low, ctx.needs)
        return -log_probs.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        """The gradients times that of the sum; whoever goes backward twice has them computed again."""
        (for_hidden, for_weight, for_bias), ctx.gradients = ctx.gradients or (None,) * 3, None
        hidden, weight, bias, targets = ctx.saved_tensors
        if for_hidden is None and for_weight is None and for_bias is None:
            _, (for_hidden, for_weight, for_bias) = _whole_pass(
                ctx.output, hidden, weight, bias, targets, ctx.low, ctx.needs
            )
        axis, sequence = ctx.output.axis, ctx.output.sequence_parallel
        coming = None
        if for_hidden is not None:
            scaled = for_hidden.mul_(grad).view(*targets.shape, -1)
            coming = (begin_scatter if sequence else begin_sum)(scaled, axis)
        for gradient in (for_weight, for_bias):
            if gradient is not None:
                gradient.mul_(grad)
        return None if coming is None else coming.wait(), for_weight, for_bias, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden vectors, weight and bias."""


def _whole_pass(
    output: VocabOutput,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    low: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """``_pass`` of the whole sequence, which travels in the type that matmuls read."""
    if output.sequence_parallel:
        hidden = begin_gather(hidden.to(low or hidden.dtype), output.axis).wait()
    return _pass(output, hidden.flatten(0, -2), weight, bias, targets.flatten(), low, needs)


def _pass(
    output: VocabOutput,
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "rows_local d"],
    bias: Float[Tensor, " rows_local"] | None,
    targets: Int[Tensor, " n"],
    low: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Float[Tensor, " n"], Gradients]:
    """Log-probability of each target, 0 where it is -100; gradients of their negative sum, for hidden only a share."""
    words, axis = output.words(), output.axis
    dtype = low or hidden.dtype
    exact = torch.promote_types(dtype, torch.float32)
    h, w = hidden.to(dtype), in_type(weight, dtype)[:words]
    grad_hidden = torch.zeros_like(hidden) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    if grad_weight is not None:
        grad_weight[0 if len(targets) == 0 else words :] = 0.0  # padding rows learn nothing
    grad_bias = torch.zeros_like(bias) if needs[2] and bias is not None else None
    counted = targets != IGNORE
    own = targets - axis.index * len(weight)
    here = (own >= 0) & (own < words) & counted
    own = own.clamp(0, max(words - 1, 0))[:, None]
    hit = here.to(exact)[:, None]
    found = torch.zeros(len(targets), dtype=exact, device=hidden.device)
    table: Tensor | None = None
    # Chunks are counted by rows of the matrix, padding included, so that all ranks have equally many.
    for rows in slices(len(targets), CHUNK_BYTES // (len(weight) * h.element_size())):
        count = rows.stop - rows.start
        if table is None or len(table) < count:  # memory of this size is costly to ask for: use it again
            table = h.new_empty(count + 1, words)
        logits = torch.mm(h[rows], w.t(), out=table[:count])
        parts = [
            (part, slice(rows.start + part.start, rows.start + part.stop))
            for part in slices(count, SLICE_BYTES // (len(weight) * h.element_size()))
        ]
        mine = torch.zeros(count, 2, dtype=exact, device=hidden.device)
        for part, at in parts:
            scores = logits[part].to(exact)
            if bias is not None:
                scores = scores + bias[:words]
                if dtype == exact:
                    logits[part] = scores
            mine[part, 0] = torch.logsumexp(scores, 1)
            if words:
                mine[part, 1] = (scores.gather(1, own[at]) * hit[at])[:, 0]
        everyone = stack_of_ranks(mine, axis)  # ranks rows 2
        total = torch.logsumexp(everyone[..., 0], 0)
        found[rows] = (everyone[..., 1].sum(0) - total).masked_fill(~counted[rows], 0.0)
        if words == 0 or not any(needs):
            continue
        total = total.masked_fill(~counted[rows], torch.inf)[:, None]  # whose softmax is zero
        for part, at in parts:
            error = logits[part].to(exact)
            if bias is not None and dtype != exact:
                error = error + bias[:words]
            error = error.sub_(total[part]).exp_()  # softmax, made softmax - onehot
            logits[part] = error.scatter_add_(1, own[at], -hit[at])
            if grad_bias is not None:
                grad_bias[:words] += error.sum(0)
        if grad_hidden is not None:
            product(grad_hidden[rows], logits, w, first=True)
        if grad_weight is not None:
            product(grad_weight[:words], logits.t(), h[rows], first=rows.start == 0)
    return found, (grad_hidden, grad_weight, grad_bias)
