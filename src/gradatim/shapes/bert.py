"""What a BERT consists of: parameters with shape and split, matmuls. No torch.

Splits over tensor-parallel ranks are those of Shoeybi et al. 2019 (arXiv:1909.08053). The head reads single positions
(the first token, the blanks), so it works on whole sequences on every rank; only its output matrix is split.
"""

from __future__ import annotations

from gradatim.config.derived import feed_forward_width
from gradatim.config.settings import BertConfig
from gradatim.shapes.gpt import padded_vocabulary
from gradatim.shapes.parameters import COLUMN, REPLICATED, ROW, VOCAB, Matmul, ParameterShape, linear

SEGMENTS = 2
"""Sentence A and sentence B."""
OF_PAIRS = ("head.pooler.", "head.pair.")
"""What only a verdict on pairs makes use of. Models have it where pairs are judged; once they always had, so older
checkpoints may hold what was never trained.
"""


def _norm(name: str, width: int, whole: bool = False) -> list[ParameterShape]:
    return [ParameterShape(f"{name}.{end}", (width,), REPLICATED, whole) for end in ("weight", "bias")]


def _head(name: str, out: int, into: int) -> list[ParameterShape]:
    return [
        ParameterShape(f"{name}.weight", (out, into), REPLICATED, whole=True),
        ParameterShape(f"{name}.bias", (out,), REPLICATED, whole=True),
    ]


def parameters(config: BertConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter in the order of the model; the output matrix is the embedding's, which stands once."""
    d, f = config.d_model, feed_forward_width(config)
    rows = padded_vocabulary(vocab_size, config.vocab_multiple)
    found = [
        ParameterShape("embed.tokens.weight", (rows, d), VOCAB),
        ParameterShape("embed.positions.weight", (context, d), REPLICATED),
        ParameterShape("embed.segments.weight", (SEGMENTS, d), REPLICATED),
        *_norm("embed.norm", d),
    ]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        found += linear(f"{block}.attention.qkv", 3 * d, d, COLUMN, bias=True)
        found += linear(f"{block}.attention.out", d, d, ROW, bias=True)
        found += _norm(f"{block}.norm1", d)
        found += linear(f"{block}.mlp.up", f, d, COLUMN, bias=True)
        found += linear(f"{block}.mlp.down", d, f, ROW, bias=True)
        found += _norm(f"{block}.norm2", d)
    if config.pairs != "none":
        found += _head("head.pooler", d, d)
        found += _head("head.pair", 2, d)
    found += _head("head.transform", d, d)
    found += _norm("head.norm", d, whole=True)
    found.append(ParameterShape("head.output.bias", (rows,), VOCAB))
    return found


def matmuls(config: BertConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token of a sequence of ``context``; words are predicted at the masked positions only."""
    d, f, layers = config.d_model, feed_forward_width(config), config.n_layers
    of_pairs = [
        Matmul("head.pooler", d, d, share=1 / context),
        Matmul("head.pair", 2, d, share=1 / context),
    ]
    return [
        Matmul("attention.qkv", 3 * d, d, layers),
        Matmul("attention.scores", context, d, layers),
        Matmul("attention.values", d, context, layers),
        Matmul("attention.out", d, d, layers),
        Matmul("mlp.up", f, d, layers),
        Matmul("mlp.down", d, f, layers),
        *(of_pairs if config.pairs != "none" else ()),
        Matmul("head.transform", d, d, share=config.masked),
        Matmul("head.output", vocab_size, d, share=config.masked),
    ]
