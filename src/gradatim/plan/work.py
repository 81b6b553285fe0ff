"""What a stage of a pipeline has to do for one microbatch: products, passes over memory, collectives. No torch.

The operations are those of a Transformer layer under tensor and sequence parallelism (Shoeybi et al. 2019,
arXiv:1909.08053, figure 3; Korthikanti et al. 2022, arXiv:2205.05198, figure 5), each with the sizes one rank sees.
Bytes count what an operation reads and writes; 16-bit elements unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradatim.plan.architecture import Architecture, EncoderDecoder
from gradatim.plan.cluster import Stack


@dataclass(frozen=True, slots=True)
class Product:
    """``batch`` products ``[rows, inner] · [inner, columns]``."""

    rows: int
    columns: int
    inner: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.columns * self.inner * self.batch


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective of the tensor-parallel group over ``size`` bytes (of the whole tensor)."""

    kind: str
    size: float


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward or backward pass of something, for one microbatch on one rank."""

    products: tuple[Product, ...] = ()
    """Matrix products, in no order."""
    flash: float = 0.0
    """FLOPs inside fused attention."""
    traffic: float = 0.0
    """Bytes that element-wise operations read and write."""
    collectives: tuple[Collective, ...] = ()
    """Communication over the tensor-parallel group."""
    operations: int = 0
    """Operations that the host issues."""

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.products + other.products,
            self.flash + other.flash,
            self.traffic + other.traffic,
            self.collectives + other.collectives,
            self.operations + other.operations,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Both passes, and what is computed again before the backward pass."""

    forward: Pass
    backward: Pass
    again: Pass = Pass()


def backward_of(product: Product) -> tuple[Product, Product]:
    """The two products of a product's backward pass: of its input and of its weight (its other factor)."""
    rows, columns, inner, batch = product.rows, product.columns, product.inner, product.batch
    return Product(rows, inner, columns, batch), Product(inner, columns, rows, batch)


def block_work(
    model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool, recompute: str
) -> Work:
    """A block's work for a microbatch of ``sequences``."""
    tokens, d = sequences * model.context, model.width
    q, kv = model.heads * model.head_dim // tp, 2 * model.kv_heads * model.head_dim // tp
    f = model.feed_forward // tp
    linear = [
        Product(tokens, q + kv, d),
        Product(tokens, d, q),
        *([Product(tokens, f, d)] * (2 if model.gated else 1)),
        Product(tokens, d, f),
    ]
    shard = tp if sequence_parallel else 1
    hidden = 2 * tokens * d / shard  # bytes of a hidden state where norms and dropout see it
    inner = 2 * tokens * f
    mask = 0.5 if stack.dropout else 0.0
    # two norms; two sums with the residual (bias and dropout fused, or passes of their own); the non-linearity
    residual = hidden * (3 + mask if stack.fused else 5 + 3 * mask)
    forward_traffic = 2 * 2 * hidden + 2 * residual + inner * (3 if model.gated else 2 if stack.fused else 4)
    # norms read the gradient, the input and add to the residual's gradient; dropout again; the non-linearity
    backward_traffic = (
        2 * 4 * hidden + 2 * hidden * (2 + mask) + inner * (5 if model.gated else 3 if stack.fused else 5)
    )
    size = 2.0 * tokens * d
    if tp == 1:
        collectives: tuple[Collective, ...] = ()
        collectives_backward: tuple[Collective, ...] = ()
    elif sequence_parallel:
        pair = (Collective("all-gather", size), Collective("reduce-scatter", size))
        collectives = pair * 2
        # backward also gathers again the input that each column-parallel weight's gradient needs, unless it is kept
        gathers = 0 if stack.keeps_gathered else 2
        collectives_backward = (*pair * 2, *[Collective("all-gather", size)] * gathers)
    else:
        collectives = collectives_backward = (Collective("all-reduce", size),) * 2
    core, core_backward = attention_core(model, stack, sequences=sequences, tp=tp)
    forward = Pass(tuple(linear), 0.0, forward_traffic, collectives, stack.operations_forward) + core
    backward = (
        Pass(
            tuple(product for forwards in linear for product in backward_of(forwards)),
            0.0,
            backward_traffic,
            collectives_backward,
            stack.operations_backward,
        )
        + core_backward
    )
    again = {"none": Pass(), "selective": core if stack.selects else Pass(), "full": forward}[recompute]
    return Work(forward, backward, again)


def cross_work(model: EncoderDecoder, stack: Stack, *, sequences: int, tp: int, recompute: str) -> Work:
    """What attention to the source adds to a decoder's block: a norm, four matrices, a core, a sum with the residual.

    Keys and values are computed from the encoder's whole output in every block, whose gradient is summed in every one.
    """
    tokens, d = sequences * model.context, model.width
    share = d // tp
    linear = (Product(tokens, share, d), Product(tokens, 2 * share, d), Product(tokens, d, share))
    hidden = 2.0 * tokens * d
    mask = 0.5 if stack.dropout else 0.0
    forward_traffic = 2 * hidden + hidden * (3 + mask if stack.fused else 5 + 3 * mask)
    backward_traffic = 4 * hidden + hidden * (2 + mask) + 3 * hidden  # the last: added to the source's gradient
    sums = Collective("all-reduce", hidden)
    core, core_backward = attention_core(model.encoder, stack, sequences=sequences, tp=tp)
    shared = tp > 1
    forward = core + Pass(linear, 0.0, forward_traffic, (sums,) * shared, stack.operations_forward // 2)
    backward = core_backward + Pass(
        tuple(product for forwards in linear for product in backward_of(forwards)),
        0.0,
        backward_traffic,
        (sums,) * 2 * shared,
        stack.operations_backward // 2,
    )
    again = {"none": Pass(), "selective": core if stack.selects else Pass(), "full": forward}[recompute]
    return Work(forward, backward, again)


def attention_core(model: Architecture, stack: Stack, *, sequences: int, tp: int) -> tuple[Pass, Pass]:
    """Scores, softmax, dropout and values, forward and backward; their launches count with the block's."""
    s, k, heads = model.context, model.head_dim, sequences * model.heads // tp
    if stack.attention == "flash":
        share = 0.5 if model.causal and stack.causal_skip else 1.0
        flops = share * 4 * heads * s * s * k
        # backward computes the scores again besides its four products (Dao et al. 2022, arXiv:2205.14135, algorithm 4)
        return Pass(flash=flops / stack.flash_forward), Pass(flash=2.5 * flops / stack.flash_backward)
    scores = 2.0 * heads * s * s  # bytes
    products = (Product(s, s, k, heads), Product(s, k, s, heads))
    mask = 0.5 if stack.dropout else 0.0
    softmax = 2 if stack.attention == "fused-softmax" else 7  # scale, mask and softmax (in fp32) as passes of their own
    forward = scores * (softmax + ((2 + mask) if stack.dropout else 0))
    backward = scores * (3 * (1 if stack.attention == "fused-softmax" else 2) + ((2 + mask) if stack.dropout else 0))
    return (
        Pass(products, 0.0, forward),
        Pass(tuple(p for product in products for p in backward_of(product)), 0.0, backward),
    )


def embedding_work(model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool) -> Work:
    """Looking up tokens and positions; backward adds into the rows."""
    size = 2.0 * sequences * model.context * model.width
    collectives = (Collective("reduce-scatter" if sequence_parallel else "all-reduce", size),) if tp > 1 else ()
    gathers = (Collective("all-gather", size),) if tp > 1 and sequence_parallel else ()
    return Work(
        Pass((), 0.0, 4 * size, collectives, 6),
        Pass((), 0.0, 4 * size, gathers, 6),
    )


def head_work(model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool) -> Work:
    """The last norm, the output matrix and the loss over a vocabulary shared out among tensor ranks."""
    tokens, d, words = sequences * model.context, model.width, model.vocabulary // tp
    read = max(1, round(tokens * model.predicted))  # positions whose words are predicted
    product = Product(read, words, d)
    size = 2.0 * tokens * d
    entering: tuple[Collective, ...] = ()
    leaving: tuple[Collective, ...] = ()
    if tp > 1:
        entering = (Collective("all-gather", size),) if sequence_parallel else ()
        leaving = (Collective("reduce-scatter" if sequence_parallel else "all-reduce", size),)
    logits = 4.0 * read * words  # in fp32
    # Step by step, forward: to fp32, the largest, less that, exponential, sum, share; backward: scaled, to 16 bits.
    passes = (3.5, 2.5) if stack.fused_loss else (9.5, 3.5)
    return Work(
        Pass((product,), 0.0, 2 * size + passes[0] * logits, entering, 16),
        Pass(backward_of(product), 0.0, 3 * size + passes[1] * logits, leaving, 16),
    )
