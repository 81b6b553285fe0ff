"""The output layer: a matrix from hidden vectors to logits, and the loss without ever holding all of them.

    loss = Σ_i  logsumexp_v(h_i · W_v) - h_i · W_target(i)          ∂loss/∂logits = softmax - onehot

The gradient of a row of logits needs only that row, so one pass over chunks of rows computes logits, loss and
both gradients, and the ``[rows, vocabulary]`` table lives one chunk at a time. For 2,048 tokens and 50,304 words in fp32 the table
would be 412 MB, and the usual chain (logits, log-softmax, its gradient) moves it through memory about eight times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

IGNORE = -100
CHUNK_ELEMENTS = 1 << 24
"""Logits held at once (64 MB in fp32): large enough for efficient matmuls, small against the whole table."""


class Output(nn.Module):
    """Hidden vectors to log-probabilities of ``vocab_size`` words; further rows of the weight are padding, never read."""

    def __init__(self, weight: nn.Parameter, vocab_size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0])) if bias else None
        self.vocab_size = vocab_size

    def _real(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias without padding."""
        if len(self.weight) == self.vocab_size:  # a slice would copy the gradient once more
            return self.weight, self.bias
        return self.weight[: self.vocab_size], None if self.bias is None else self.bias[: self.vocab_size]

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Unnormalised log-probabilities."""
        return F.linear(hidden, *self._real())

    def log_probs(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Log-probabilities, at least in fp32."""
        logits = self.logits(hidden)
        return F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def log_prob(self, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Log-probability of one word per row, 0 where the target is -100; chunk by chunk, for inference."""
        picked = [
            self.log_probs(rows)
            .gather(1, wanted.clamp(min=0)[:, None])[:, 0]
            .masked_fill(wanted == IGNORE, 0.0)
            for rows, wanted in _chunks(hidden, targets, self.vocab_size)
        ]
        return torch.cat(picked) if picked else hidden.new_zeros(0)

    def nll(self, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Sum over rows of -log p(target), rows with target -100 left out; differentiable."""
        weight, bias = self._real()
        low = (
            torch.get_autocast_dtype(hidden.device.type)
            if torch.is_autocast_enabled(hidden.device.type)
            else None
        )
        loss: Tensor = LinearCrossEntropy.apply(hidden, weight, bias, targets, low)  # type: ignore[no-untyped-call]
        return loss


def _chunks(hidden: Tensor, targets: Tensor, vocab_size: int) -> zip[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    return zip(hidden.split(rows), targets.split(rows), strict=True)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``hidden @ weight.T + bias``, whose gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "v d"],
        bias: Float[Tensor, " v"] | None,
        targets: Int[Tensor, " n"],
        low: torch.dtype | None,
    ) -> Float[Tensor, ""]:
        """The loss; matmuls run in ``low`` where given, sums and the softmax at least in fp32."""
        dtype = low or hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)
        learn = any(ctx.needs_input_grad)
        h, w = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(h) if learn else None
        grad_weight: Tensor | None = None
        grad_bias = (
            torch.zeros(weight.shape[0], dtype=exact, device=hidden.device)
            if learn and bias is not None
            else None
        )
        first = 0
        for rows, wanted in _chunks(h, targets, weight.shape[0]):
            logits = torch.mm(rows, w.t()).to(exact)
            if bias is not None:
                logits += bias
            log_probs = F.log_softmax(logits, -1)
            ignored = wanted == IGNORE
            index = wanted.clamp(min=0)[:, None]
            loss -= log_probs.gather(1, index)[:, 0].masked_fill(ignored, 0.0).sum()
            if grad_hidden is not None:
                error = log_probs.exp_()  # softmax, turned into softmax - onehot
                error.scatter_add_(1, index, error.new_full((), -1.0).expand_as(index))
                if ignored.any():
                    error.masked_fill_(ignored[:, None], 0.0)
                if grad_bias is not None:
                    grad_bias += error.sum(0)
                error = error.to(dtype)
                torch.mm(error, w, out=grad_hidden[first : first + len(rows)])
                if grad_weight is None:
                    grad_weight = torch.mm(error.t(), rows).to(exact)
                elif dtype == exact:
                    grad_weight.addmm_(error.t(), rows)
                else:
                    grad_weight += torch.mm(error.t(), rows)
            first += len(rows)
        if learn:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
            ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The stored gradients times the gradient of the sum."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            (grad_hidden.to(hidden_dtype) * grad.to(hidden_dtype)),
            None if grad_weight is None else grad_weight.to(weight_dtype) * grad.to(weight_dtype),
            None if grad_bias is None else grad_bias.to(weight_dtype) * grad.to(weight_dtype),
            None,
            None,
        )
