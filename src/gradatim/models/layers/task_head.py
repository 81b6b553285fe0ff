"""The head of a Transformer that is fine-tuned: one linear layer over the vectors of the last block.

a row, GPT     W norm(h_last)                          Radford et al. 2018, equation 3; last is the closing token
a row, BERT    W tanh(Q h_0 + q) + w                   Devlin et al. 2018, section 4; h_0 stands at [CLS]
  or, of both  W norm(Σ h_i / n)  (BERT: W Σ h_i / n + w)    n tokens, marks included (Reimers and Gurevych 2019)
each token     W norm(h_i) + w  (BERT: W h_i + w)      labels of words; the ends of a span (two rows of W)

Where words are predicted besides, the model's output matrix stays: a GPT's reads norm(h_i), a BERT's, at blanks,
norm(gelu(T h_i + t)) (``layers/masked_head.py``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.embedding import WholeSequence
from gradatim.models.layers.linear import Linear
from gradatim.models.layers.masked_head import MaskedHead, at, words
from gradatim.models.layers.output import Output


class TaskHead(nn.Module):
    """Norm (GPT) or pooler (BERT, of rows), dropout, linear layer; and the output matrix of an auxiliary loss.

    Args:
        width: of the vectors.
        outputs: numbers for each row or token.
        of_rows: whether it speaks of rows, else of tokens.
        pooler: whether a row's vector is BERT's, from the first position; else it is the last one's,
        mean: or that of all of the row.
        bias: of the linear layer.
        dropout: before the linear layer.
        norm: GPT's last one.
        blanks: of a BERT that fills in blanks as well, their head, whose parts become parts of this one.
        output: the output matrix, where next tokens are predicted as well.
    """

    def __init__(
        self, width: int, outputs: int, *, of_rows: bool, pooler: bool, bias: bool, dropout: float, mean: bool = False,
        norm: nn.Module | None = None, blanks: MaskedHead | None = None, output: Output | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.whole = WholeSequence()
        self.pooler = Linear(width, width) if pooler else None
        self.transform = None if blanks is None else blanks.transform
        self.norm = norm if blanks is None else blanks.norm
        self.approximate = "none" if blanks is None else blanks.approximate
        self.classifier = Linear(width, outputs, bias=bias)
        self.output = output if blanks is None else blanks.output
        self.of_rows, self.mean, self.dropout = of_rows, mean, dropout

    def forward(self, hidden: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b *t o"]:
        """Scores of whole rows, ``[b o]``, or of their tokens, ``[b t o]``; ``lengths`` counts each row's tokens."""
        x = hidden
        if self.pooler is not None:
            x = torch.tanh(self.pooler(hidden[:, 0]))
        elif self.mean:
            text = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
            x = (hidden * text[..., None]).sum(1) / lengths.clamp(min=1)[:, None]
        elif self.of_rows:
            x = hidden[torch.arange(len(hidden), device=hidden.device), (lengths - 1).clamp(min=0)]
        if self.norm is not None and self.transform is None:  # a BERT's is of its words at blanks
            x = self.norm(x)
        y: Tensor = self.classifier(dropout(x, self.dropout, self.training))
        return y

    def next_token_nll(self, hidden: Float[Tensor, "b t d"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Sum of -log p(target) in nats over the targets that are not -100."""
        assert self.output is not None and self.norm is not None
        return self.output.nll(self.norm(hidden), targets)

    def masked_nll(
        self, hidden: Float[Tensor, "b t d"], positions: Int[Tensor, "b p"], targets: Int[Tensor, "b p"]
    ) -> Float[Tensor, ""]:
        """Sum of -log p(word) in nats at some positions of whole rows; targets of -100 are left out."""
        assert self.output is not None and self.norm is not None and self.transform is not None
        return self.output.nll(words(at(hidden, positions), self.transform, self.norm, self.approximate), targets)
