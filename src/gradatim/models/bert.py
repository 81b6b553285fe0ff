"""BERT: a Transformer encoder that reads both sides of every word (Devlin et al. 2018, arXiv:1810.04805).

x = norm(tokens + positions + segments)
x = norm(x + attention(x))                     each position sees all others of its row
x = norm(x + feed_forward(x))                  norms stand after the sums, as in Vaswani et al. 2017
words at the blanks, and a verdict on the pair: ``layers/masked_head.py``
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.config.settings import BertConfig
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.embedding import Embedding, Segments
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.init import Init
from gradatim.models.layers.masked_head import MaskedHead
from gradatim.models.layers.norm import norm_layer
from gradatim.models.layers.output import Output, at_least_fp32
from gradatim.models.neural import NeuralModel, Recompute
from gradatim.shapes.bert import SEGMENTS
from gradatim.shapes.gpt import feed_forward_width, padded_vocabulary


class BertEmbedding(Embedding):
    """Tokens, positions and segments, summed and normed."""

    def __init__(self, config: BertConfig, rows: int, context: int) -> None:
        super().__init__(rows, config.d_model, context)
        self.segments = Segments(SEGMENTS, config.d_model)
        self.norm = norm_layer("layer", config.d_model, config.norm_eps, bias=True)
        self.dropout = config.dropout

    def forward(
        self, ids: Int[Tensor, "b t"], first: int = 0, segments: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Vectors of tokens; without ``segments`` all are of the first one."""
        assert self.positions is not None
        x = at_least_fp32(self.tokens(ids)) + self.positions(first, ids.shape[1])
        x = self.norm(x + self.segments(torch.zeros_like(ids) if segments is None else segments))
        return dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and then normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d, heads, dropout = config.d_model, config.n_heads, config.dropout
        self.attention = SelfAttention(d, heads, heads, bias=True, dropout=dropout, causal=False)
        self.norm1 = norm_layer("layer", d, config.norm_eps, bias=True)
        self.mlp = FeedForward(d, feed_forward_width(config), config.activation, bias=True, dropout=dropout)
        self.norm2 = norm_layer("layer", d, config.norm_eps, bias=True)

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 all"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """One layer; the mask is true at the keys that are text."""
        x = self.norm1(x + self.attention(x, mask=mask))
        y: Tensor = self.norm2(x + self.mlp(x))
        return y


class BERT(NeuralModel):
    """Embedding, blocks, and the head for blanks and pairs."""

    embed: BertEmbedding
    head: MaskedHead
    context: int

    def __init__(self, config: BertConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context = config, vocab_size, context
        rows = padded_vocabulary(vocab_size, config.vocab_multiple)
        self.embed = BertEmbedding(config, rows, context)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        output = Output(self.embed.tokens.weight, vocab_size, bias=rows)
        norm = norm_layer("layer", config.d_model, config.norm_eps, bias=True)
        self.head = MaskedHead(output, config.d_model, norm, config.activation, pairs=config.pairs != "none")

    def initial(self, name: str) -> Init:
        """N(0, 0.02²), biases 0, norm weights 1; vectors of positions, queries and keys as the config says."""
        if name == "embed.positions.weight" and self.config.position_vectors == "sinusoidal":
            return Init("sinusoidal", self.config.d_model**-0.5)
        if name.endswith("qkv.weight") and self.config.queries_and_keys == "alike":
            return Init("normal", 0.02, alike=self.config.d_model // self.config.n_heads)
        if name.endswith("bias"):
            return Init("constant", 0.0)
        return Init("constant", 1.0) if ".norm" in name else Init("normal", 0.02)

    def enter(self, ids: Int[Tensor, "b t"], segments: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b t d"]:
        """Token, position and segment vectors, normed."""
        if ids.shape[1] > self.context:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the context of {self.context}")
        x: Tensor = self.embed(ids, segments=segments)
        return x

    def run(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 all"] | None = None) -> Float[Tensor, "b t d"]:
        """The blocks held; ``full`` recomputation stores the input of each alone."""
        again = self.recompute == "full" and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        return x

    def set_recompute(self, what: Recompute) -> None:
        """Choose what the backward pass computes again."""
        self.recompute = what
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.recompute = what == "selective"

    def hidden(
        self,
        ids: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Vectors after the last block; positions from ``lengths`` on are padding, which nobody sees."""
        return self.run(self.enter(ids, segments), padding_mask(lengths, ids.shape[1]))

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b t v"], Float[Tensor, "b two"] | None]:
        """Logits of the word at every position, and, where pairs are judged, of the pair: 0 for B following A, 1 for
        not.
        """
        hidden = self.head.whole(self.hidden(ids, segments, lengths))
        pair = None if self.head.pair is None else self.head.pair_logits(hidden)
        return self.head.output.logits(self.head(hidden)), pair

    def masked_nll(
        self, hidden: Float[Tensor, "b t d"], positions: Int[Tensor, "b p"], targets: Int[Tensor, "b p"]
    ) -> Float[Tensor, ""]:
        """Sum of -log p(word) in nats at some positions of whole rows; targets of -100 are left out."""
        return self.head.output.nll(self.head.words_at(hidden, positions), targets)

    def pair_nll(self, hidden: Float[Tensor, "b t d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Sum of -log p(label) in nats of whole rows; labels of -100 are left out."""
        logits = self.head.pair_logits(hidden)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="sum")


def padding_mask(lengths: Int[Tensor, " b"] | None, t: int) -> Bool[Tensor, "b 1 1 t"] | None:
    """True at each row's first ``lengths`` keys, for attention; None where there is no padding."""
    if lengths is None:
        return None
    return (torch.arange(t, device=lengths.device) < lengths[:, None])[:, None, None]
