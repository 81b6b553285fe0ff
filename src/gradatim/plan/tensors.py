"""Bytes that our own layers keep from forward to backward pass, and need at their worst moment. No torch.

The operations of ``models/`` and ``parallel/`` are gone through as autograd meets them: each makes a tensor, saves
some, lets go of others. So a plan says what ``gradatim rehearse`` counts. Weights, gradients and the residual stream
are fp32, matrix products bf16, or fp32 too; then nothing is turned into another type, and a layer reads the norm's
output itself. Between layers stand n = b·s/t positions where the sequence is split (Korthikanti et al. 2022,
arXiv:2205.05198, section 4), within them all N = b·s.

Under bf16 each matrix has one copy, made when a step first needs it and there until its passes are over
(``models/layers/working``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from gradatim.plan.architecture import Architecture

FULL, LOW = 4.0, 2.0
"""Bytes of an fp32 and of a bf16 number."""
SOFTMAX, SCORES = 4.0, 12.0
"""Bytes of a score, and what attention keeps of each where no fused kernel drops weights: the softmax, what is dropped
and what is left, all in fp32."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a block or an end of the model, for one microbatch on one rank."""

    kept: float = 0.0
    """From its forward to its backward pass; its input is among it."""
    forward: float = 0.0
    """Besides, at the worst moment of its forward pass."""
    backward: float = 0.0
    """Besides, at the worst moment of its backward pass."""
    copies: float = 0.0
    """Its matrices as bf16, through the step and for all microbatches at once."""
    deferred: float = 0.0
    """In place of ``kept``, while weight gradients wait."""
    products: float = 0.0
    """Besides, while those are computed."""


@dataclass(frozen=True, slots=True)
class Case:
    """What decides how large a microbatch's tensors are."""

    model: Architecture
    sequences: int
    tp: int
    sequence_parallel: bool
    recompute: str = "none"
    waits: bool = False
    """Weight gradients wait, as zero-bubble schedules ask."""
    exact: bool = False
    """Products are fp32."""
    scores: bool = False
    """Attention drops weights without a fused kernel, as on a CPU, and keeps its scores."""

    @property
    def element(self) -> float:
        """Bytes of a number that products read and give."""
        return FULL if self.exact else LOW

    @property
    def split(self) -> bool:
        """Ranks hold parts of the sequence between layers."""
        return self.sequence_parallel and self.tp > 1

    @property
    def cut(self) -> bool:
        """Layers are those of ``parallel/linear``."""
        return self.tp > 1 or self.waits

    @property
    def tokens(self) -> float:
        """Positions of the microbatch: N."""
        return float(self.sequences * self.model.context)

    @property
    def share(self) -> float:
        """Positions that a rank has between layers: the small n."""
        return self.tokens / (self.tp if self.split else 1)

    @property
    def queries(self) -> float:
        """Width of the queries on a rank."""
        return self.model.width / self.tp

    @property
    def rows(self) -> float:
        """Width of queries, keys and values on a rank."""
        return self.queries + 2.0 * self.model.kv_heads * self.model.head_dim / self.tp

    @property
    def inner(self) -> float:
        """Width inside the feed-forward layer on a rank."""
        return self.model.feed_forward / self.tp

    @property
    def rms(self) -> bool:
        """Norms are RMSNorm, which torch composes of simpler operations."""
        return self.model.norm == "rms"

    @property
    def relu(self) -> bool:
        """The non-linearity's result is all that its backward pass reads."""
        return self.model.config.activation == "relu"

    @property
    def rotary(self) -> bool:
        """Queries and keys are turned."""
        return self.model.positions == "rotary"


class Ledger:
    """What is held, and the most that was."""

    def __init__(self, held: float = 0.0) -> None:
        self.held = self.peak = held

    def take(self, *tensors: float) -> None:
        """Tensors are made."""
        self.held += sum(tensors)
        self.peak = max(self.peak, self.held)

    def free(self, *tensors: float) -> None:
        """Tensors are let go."""
        self.held -= sum(tensors)

    def pass_by(self, *tensors: float) -> None:
        """Tensors are made and let go."""
        self.take(*tensors)
        self.free(*tensors)


class Walk:
    """Through a block's operations.

    Args:
        case: whose sizes count.
        saves: whether autograd saves what a backward pass needs; the first pass under full recomputation does not.
    """

    def __init__(self, case: Case, saves: bool = True) -> None:
        model = case.model
        self.case, self.saves = case, saves
        self.stream, self.low = FULL * case.share * model.width, case.element * case.share * model.width
        self.whole = case.element * case.tokens * model.width
        self.per_row = case.element * case.tokens
        self.ledger = Ledger()
        self.copies = 0.0
        self.names: list[float] = []

    def save(self, *tensors: float) -> None:
        """Make tensors that autograd saves; where it does not, they live until their layer returns."""
        self.ledger.take(*tensors)
        if not self.saves:
            self.names += tensors

    def returns(self) -> None:
        """A layer's names are gone."""
        self.ledger.free(*self.names)
        self.names.clear()

    # ------------------------------------------------------------------ forward

    def forward(self) -> None:
        """From the block's input, which is there, to its output; the input and all that is saved stay."""
        case = self.case
        gates = 2 if case.model.gated else 1
        self.norm()
        self.column(case.rows, 1)
        if case.rotary:
            self.save(self.per_row * (case.queries + case.rows) / 2, 2 * self.table)
        elif case.model.kv_heads != case.model.heads:
            self.save(self.per_row * case.queries)  # of each key's heads, out of the rows
        self.core()
        self.row(case.queries)
        self.norm()
        self.column(case.inner, gates)
        if case.relu:  # whose backward pass reads its result, which the next matrix keeps anyway
            self.ledger.pass_by(self.per_row * case.inner)
        else:
            self.save(self.per_row * case.inner)  # through the function
        if case.model.gated:
            self.save(self.per_row * case.inner)  # the product
        self.row(case.inner)

    def core(self) -> None:
        """Attention itself, from queries, keys and values, which are saved."""
        case = self.case
        self.save(self.per_row * case.queries)
        if case.recompute != "selective" and (self.saves or not case.scores):
            self.save(self.attended)
        elif case.scores:
            self.ledger.pass_by(self.attended)

    @property
    def table(self) -> float:
        """Rotations as products read them."""
        return self.case.element * self.case.model.context * self.case.model.head_dim

    @property
    def squares(self) -> float:
        """Scores."""
        return self.case.tokens * self.case.model.context * self.case.model.heads / self.case.tp

    @property
    def attended(self) -> float:
        """What attention itself keeps: logarithms of the softmax's sums; or scores, and scaled queries and keys."""
        case = self.case
        if not case.scores:
            return FULL * case.tokens * case.model.heads / case.tp
        grouped = case.model.kv_heads != case.model.heads
        copies = 2 + (grouped or not case.exact)  # values too, for each head or in fp32
        return SCORES * self.squares + copies * FULL * case.tokens * case.queries

    @property
    def masks(self) -> float:
        """Of dropout, a byte each."""
        return self.case.share * self.case.model.width if self.case.model.config.dropout else 0.0

    def norm(self) -> None:
        """Its output is named until the layer behind it returns."""
        number = FULL * self.case.share
        if self.case.rms:
            self.ledger.pass_by(self.stream)  # squares
            self.save(number, self.stream)  # factors; normed, not scaled
        else:
            self.save(2 * number)  # means and factors
        if self.case.exact:
            self.save(self.stream)  # which the layer reads as it is
        else:
            self.ledger.take(self.stream)

    def column(self, width: float, layers: int) -> None:
        """``ColumnLinear``, or as many whole layers of one input."""
        if not self.case.exact:
            self.copies += LOW * self.case.model.width * width * layers
            self.save(self.low * (layers if self.saves and not self.case.cut else 1))
        if not self.case.cut:
            self.save(self.per_row * width * layers)
            return
        if self.case.split:
            self.ledger.take(2 * self.whole)  # the parts, and put together
            self.ledger.free(self.whole)
        self.save(self.per_row * width * layers)
        self.ledger.free(self.whole if self.case.split else 0.0)

    def row(self, width: float) -> None:
        """``RowLinear``; then its output is added to the residual stream."""
        if not self.case.exact:
            self.copies += LOW * self.case.model.width * width
        if self.case.cut:
            self.ledger.take(self.whole)
            if self.case.split:
                self.ledger.take(self.whole, self.low)  # parts in order, and the sum of one
                self.ledger.free(2 * self.whole)
        else:
            self.ledger.take(self.low)
        self.save(self.masks)
        self.ledger.free(0.0 if self.case.exact else self.stream)  # the norm's output
        self.returns()
        self.ledger.take(self.stream)
        self.ledger.free(self.low)

    # ------------------------------------------------------------------ backward

    def backward(self) -> float:
        """From the gradient of the output, which is there, to that of the input; what was saved goes.

        Returns the bytes that wait with weight gradients.
        """
        case, ledger = self.case, self.ledger
        gates = 2 if case.model.gated else 1
        inner, queries, rows = (self.per_row * width for width in (case.inner, case.queries, case.rows))
        waiting = self.row_back(case.inner, 0.0 if case.relu else inner)
        if case.model.gated:
            ledger.take(2 * inner)  # of both factors; the gradient they came from goes, and so do the factors
            ledger.free(3 * inner)
        ledger.take(inner)
        ledger.free(2 * inner)
        waiting += self.column_back(case.inner, gates)
        self.norm_back()
        waiting += self.row_back(case.queries, 0.0)
        kept = self.attended
        if case.recompute == "selective":
            ledger.take(queries, kept)
            ledger.free(queries)
        if case.scores:
            ledger.pass_by(SOFTMAX * self.squares)  # their gradient; then they go, one after the other
            ledger.free(kept)
            kept = 0.0
        ledger.take(rows)  # gradients of queries, keys and values; then what attention saved goes
        ledger.free(queries, kept, 0.0 if case.waits else queries)
        if case.rotary:
            ledger.pass_by(rows)
            ledger.free((rows + queries) / 2, 2 * self.table)
        elif case.model.kv_heads != case.model.heads:
            ledger.free(queries)
        ledger.take(rows)  # put together
        ledger.free(2 * rows)
        waiting += self.column_back(case.rows, 1)
        self.norm_back()
        return waiting

    def gradient(self, weight: float) -> None:
        """A weight's gradient as the product gives it, then as fp32, until it is added to what is there."""
        if self.case.exact:
            self.ledger.take(FULL * weight)
            return
        self.ledger.take(LOW * weight)
        self.ledger.take(FULL * weight)
        self.ledger.free(LOW * weight)

    def row_back(self, width: float, x: float) -> float:
        """From the stream's gradient to that of the layer's input; ``x`` goes with the layer if it is its alone."""
        case, ledger, numbers = self.case, self.ledger, self.case.model.width * width
        part, low = self.whole if case.split else 0.0, 0.0 if case.exact else self.low
        ledger.free(self.masks)
        ledger.take(low)
        if not case.cut:
            ledger.take(self.per_row * width)
            self.gradient(numbers)
            ledger.free(low, x, FULL * numbers)
            return 0.0
        ledger.take(part, part)  # the parts, and put together
        ledger.take(self.per_row * width)
        if case.waits:  # with the gradient of the output and the input
            held = self.whole if case.exact and not case.split else 0.0  # the gradient of the stream stays besides
            ledger.take(held)
            ledger.free(part, low if case.split else 0.0)
            return self.whole + self.per_row * width
        self.gradient(numbers)
        ledger.free(2 * part, low, x, FULL * numbers)
        return 0.0

    def column_back(self, width: float, layers: int) -> float:
        """From the gradients of the layers' outputs to that of the stream, as bf16."""
        case, ledger, numbers = self.case, self.ledger, self.case.model.width * width
        outputs, part = self.per_row * width * layers, self.whole if case.split else 0.0
        if not case.cut:
            for layer in range(layers):
                ledger.take(self.low)
                self.gradient(numbers)
                own = not case.exact or layer == layers - 1  # the input, which is one of all in fp32
                ledger.free(outputs / layers, self.low if own else 0.0, FULL * numbers)
            if layers > 1:  # summed
                ledger.take(self.low)
                ledger.free(self.low * layers)
            return 0.0
        again = 0.0 if case.waits else part
        ledger.take(again, self.whole)
        if case.split:
            ledger.take(self.low)
            ledger.pass_by(self.whole)
        if case.waits:
            ledger.free(part)
            return outputs + self.low
        ledger.take(again)
        for _ in range(layers):
            self.gradient(numbers)
        ledger.free(2 * again, part, outputs, self.low, FULL * numbers * layers)
        return 0.0

    def norm_back(self) -> None:
        """From bf16 to the stream's gradient before the norm, added to that which went past the layer."""
        ledger, number = self.ledger, FULL * self.case.share
        if not self.case.exact:
            ledger.take(self.stream)
            ledger.free(self.low)
        ledger.take(self.stream)  # times the scale, or before the norm
        ledger.free(self.stream)
        if self.case.rms:
            ledger.free(self.stream)  # normed
            ledger.pass_by(4 * self.stream)
            ledger.free(number)
        else:
            ledger.free(2 * number)
        ledger.free(self.stream)  # the norm's input
        ledger.take(self.stream)
        ledger.free(2 * self.stream)


@lru_cache(maxsize=4096)
def block_part(case: Case) -> Part:
    """A block."""
    there, back = Walk(case), Walk(case)
    stream = there.stream
    there.ledger = Ledger(stream)
    there.forward()
    kept = there.ledger.held - stream  # its output is what the next block keeps
    back.ledger = Ledger(kept + stream)
    forward = there.ledger.peak - kept
    if case.recompute == "full":  # the pass above comes when the gradient is there already, also as bf16
        back.ledger.peak = there.ledger.peak + stream + (0.0 if case.exact else there.low)
        first = Walk(case, saves=False)
        first.ledger = Ledger(stream)
        first.forward()
        kept, forward = stream, first.ledger.peak - stream
    deferred, products = back.backward(), 0.0
    if case.waits:
        largest = case.model.width * max(case.rows, case.inner)
        products = (FULL if case.exact else LOW + FULL) * largest + (3 * there.whole if case.split else 0.0)
    return Part(kept, forward, back.ledger.peak - kept, there.copies, deferred, products)


@lru_cache(maxsize=4096)
def cross_part(case: Case) -> Part:
    """What attention to the source adds to a decoder's block; its backward pass needs less than that of the rest."""
    walk = Walk(case)
    walk.ledger = Ledger(walk.stream)
    walk.norm()
    walk.column(case.queries, 1)
    walk.column(2 * case.queries, 1)  # keys and values, of the encoder's output
    walk.core()
    walk.row(case.queries)
    kept = walk.ledger.held - walk.stream
    forward = walk.ledger.peak - kept
    if case.recompute == "full":
        return Part(0.0, forward, kept, walk.copies)
    return Part(kept, forward, copies=walk.copies)
