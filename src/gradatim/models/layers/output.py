"""The head of a language model: hidden vectors to logits, and the loss without ever holding all of them.

    loss = Σ_i  logsumexp_v(h_i · W_v + b_v) - (h_i · W_y(i) + b_y(i))        ∂loss/∂logits_i = softmax_i - onehot_y(i)

The gradient of a row of logits needs only that row, so one pass over chunks of rows computes logits, loss and both
gradients, and the ``[rows, vocabulary]`` table lives one chunk at a time. For 2,048 tokens and 50,304 words in fp32 the
table would be 412 MB, and the usual chain (logits, log-softmax, their gradients) moves it through memory eight times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.linear import linear
from gradatim.models.layers.working import autocast_dtype, in_type

IGNORE = -100
CHUNK_BYTES = 1 << 26
"""Logits held at once: rows enough for efficient matmuls and few sums of weight gradients, small against the table."""
SLICE_BYTES = 1 << 21
"""Logits turned into gradients at once: a slice that stays in a core's cache from the first pass over it on."""


class Output(nn.Module):
    """Hidden vectors to log-probabilities of ``vocab_size`` words; further rows of the weight are padding."""

    def __init__(self, weight: Tensor, vocab_size: int, bias: bool | int = False) -> None:
        """``bias`` may be a number of rows: as many as the weight has, where it is to be cut like it."""
        super().__init__()
        self.weight = weight
        rows = vocab_size if bias is True else int(bias)
        self.bias = nn.Parameter(weight.new_zeros(rows)) if rows else None
        self.vocab_size = vocab_size

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Unnormalised log-probabilities."""
        bias = None if self.bias is None else self.bias[: self.vocab_size]
        return linear(hidden, self.weight[: self.vocab_size], bias)

    def log_probs(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Log-probabilities, at least in fp32."""
        logits = at_least_fp32(self.logits(hidden))
        if torch.is_grad_enabled() or logits.device.type != "cpu":
            return F.log_softmax(logits, -1)
        return torch.log_softmax(logits, -1, out=logits)  # a table of this size is costly to ask for: use it again

    def log_prob(self, hidden: Float[Tensor, "*n d"], targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Log-probability of one word per position, 0 where the target is -100; chunk by chunk, for inference.

        Logits are computed only where there is a target: whoever reads a prompt for the state alone asks for none.
        """
        shape, hidden, targets = targets.shape, hidden.flatten(0, -2), targets.flatten()
        picked = hidden.new_zeros(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
        places = (targets != IGNORE).nonzero()[:, 0]
        for part in slices(len(places), CHUNK_BYTES // (self.vocab_size * hidden.element_size())):
            rows = places[part]
            picked[rows] = self.log_probs(hidden[rows]).gather(1, targets[rows, None])[:, 0]
        return picked.view(shape)

    def nll(self, hidden: Float[Tensor, "*n d"], targets: Int[Tensor, "*n"]) -> Float[Tensor, ""]:
        """Sum over positions of -log p(target), those with target -100 left out; differentiable (once)."""
        rows, wanted, low = hidden.flatten(0, -2), targets.flatten(), autocast_dtype(hidden)
        apply = LinearCrossEntropy.apply
        loss: Tensor = apply(rows, self.weight, self.bias, wanted, self.vocab_size, low)  # type: ignore[no-untyped-call]
        return loss

    def spread(self, hidden: Float[Tensor, "*n d"], targets: Int[Tensor, "*n"]) -> Float[Tensor, ""]:
        """What label smoothing adds per unit of its share ε: the sum of (logit of the target - mean logit).

        Spreading ε evenly over the v words (Szegedy et al. 2016) makes the loss
        (1 - ε) · -log p(y) + ε/v Σ_w -log p(w) = -log p(y) + ε (logit_y - mean logit), since -log p(w) is
        logsumexp - logit_w. A mean of logits is the product with the mean row, so no table is made. Positions with
        target -100 and padding words have no part in it.
        """
        places = (targets.flatten() != IGNORE).nonzero()[:, 0]
        h, wanted = hidden.flatten(0, -2)[places], targets.flatten()[places]
        words = self.weight[: self.vocab_size]
        found = (h * (F.embedding(wanted, self.weight) - words.mean(0))).sum()
        if self.bias is not None:
            found = found + (self.bias[wanted] - self.bias.mean()).sum()
        return found


class Head(nn.Module):
    """What follows the blocks: a norm or a narrowing projection where the model has one, then the output matrix."""

    def __init__(self, output: Output, norm: nn.Module | None = None, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.projection = projection
        self.output = output

    def forward(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """The vectors that the output matrix reads."""
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision widened, fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def slices(rows: int, most: int) -> Iterator[slice]:
    """Consecutive slices of nearly equal size, each of at most ``most`` rows (and at least one)."""
    count = -(-rows // max(1, most))
    return (slice(rows * i // count, rows * (i + 1) // count) for i in range(count))


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``hidden @ weight[:vocab_size].T + bias``, with gradients computed going forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "rows d"],
        bias: Float[Tensor, " rows"] | None,
        targets: Int[Tensor, " n"],
        vocab_size: int,
        low: torch.dtype | None,
    ) -> Float[Tensor, ""]:
        """The loss; matmuls run in ``low`` where given, sums and the softmax at least in fp32."""
        ctx.needs = ctx.needs_input_grad[:3]
        loss, ctx.gradients = _loss_and_gradients(hidden, weight, bias, targets, vocab_size, low, ctx.needs)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.vocab_size, ctx.low = vocab_size, low
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        """The gradients times that of the sum.

        They are scaled where they lie and handed over, a copy of the largest matrix less; whoever goes backward a
        second time through one graph has them computed again.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            hidden, weight, bias, targets = ctx.saved_tensors
            _, gradients = _loss_and_gradients(hidden, weight, bias, targets, ctx.vocab_size, ctx.low, ctx.needs)
        return (*(None if g is None else g.mul_(grad) for g in gradients), None, None, None)


def _loss_and_gradients(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "rows d"],
    bias: Float[Tensor, " rows"] | None,
    targets: Int[Tensor, " n"],
    vocab_size: int,
    low: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    dtype = low or hidden.dtype
    exact = torch.promote_types(dtype, torch.float32)
    h, w = hidden.to(dtype), in_type(weight, dtype)[:vocab_size]
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    grad_bias = torch.zeros_like(bias) if needs[2] and bias is not None else None
    if grad_weight is not None:
        grad_weight[0 if len(targets) == 0 else vocab_size :] = 0.0  # padding rows learn nothing
    wanted = targets.clamp(min=0)[:, None]
    ignored = (targets == IGNORE)[:, None]
    any_ignored = bool(ignored.any())
    table: Tensor | None = None
    for rows in slices(len(targets), CHUNK_BYTES // (vocab_size * h.element_size())):
        count = rows.stop - rows.start
        if table is None or len(table) < count:  # memory of this size is costly to ask for: use it again
            table = h.new_empty(count + 1, vocab_size)
        logits = torch.mm(h[rows], w.t(), out=table[:count])
        for part in slices(count, SLICE_BYTES // (vocab_size * h.element_size())):
            at = slice(rows.start + part.start, rows.start + part.stop)
            scores = logits[part].to(exact)
            if bias is not None:
                scores = scores + bias[:vocab_size]
            log_probs = F.log_softmax(scores, -1)
            picked = log_probs.gather(1, wanted[at])
            loss -= (picked.masked_fill(ignored[at], 0.0) if any_ignored else picked).sum()
            error = log_probs.exp_()  # softmax, made softmax - onehot
            error.scatter_add_(1, wanted[at], error.new_full((), -1.0).expand(len(error), 1))
            if any_ignored:
                error.masked_fill_(ignored[at], 0.0)
            if grad_bias is not None:
                grad_bias[:vocab_size] += error.sum(0)
            logits[part] = error
        if grad_hidden is not None:
            product(grad_hidden[rows], logits, w, first=True)
        if grad_weight is not None:
            product(grad_weight[:vocab_size], logits.t(), h[rows], first=rows.start == 0)
    return loss, (grad_hidden, grad_weight, grad_bias)


def product(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``out = a b``, or ``out += a b`` after the first; sums over chunks are kept in out's type, the wider one."""
    if out.dtype != a.dtype:
        product = torch.mm(a, b)
        out.copy_(product) if first else out.add_(product)
    elif first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)
