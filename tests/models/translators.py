"""Translators of every kind, tiny, for several test files."""

from __future__ import annotations

import torch

from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.models import build_model
from gradatim.text.batches import Source

VOCAB, SOURCE_VOCAB, CONTEXT = 21, 17, 12
LM, TF = (
    {"d_model": 16, "n_layers": 2},
    {"d_model": 16, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "vocab_multiple": 8},
)
CONFIGS = {
    "lm-lstm": TranslateLmConfig(body="lstm", **LM),
    "lm-gru-all": TranslateLmConfig(body="gru", loss_on="all", **LM),
    "lm-gpt": TranslateLmConfig(body="gpt", label_smoothing=0.1, **LM),
    "lm-gpt-prefix": TranslateLmConfig(body="gpt", mask="prefix", loss_on="all", **LM),
    "plain": Seq2SeqConfig(d_model=16),
    "reversed": Seq2SeqConfig(
        cell="gru", d_model=16, d_embedding=8, n_layers=2, bidirectional=False, reversed_source=True
    ),
    "summary": Seq2SeqConfig(d_model=16, d_embedding=8, n_layers=2, summary_feeding=True),
    "additive": Seq2SeqConfig(
        cell="gru", d_model=16, n_layers=2, attention="additive", tied=False, label_smoothing=0.1
    ),
    "general": Seq2SeqConfig(
        d_model=16, d_embedding=8, n_layers=2, attention="general", input_feeding=True, coverage=True,
        reversed_source=True,
    ),
    "dot": Seq2SeqConfig(d_model=16, attention="dot", input_feeding=True, shared=True),
    "covered": Seq2SeqConfig(cell="gru", d_model=16, attention="additive", coverage=True),
    "transformer": TransformerConfig(norm_position="post", **TF),
    "learned": TransformerConfig(
        n_encoder_layers=1, embeddings="tied", positions="learned", activation="gelu", **TF
    ),
    "rotary": TransformerConfig(
        n_encoder_layers=3, embeddings="separate", positions="rotary", norm="rms", activation="swiglu", bias=False, **TF
    ),
}  # fmt: skip


def source_vocabulary(name):
    config = CONFIGS[name]
    one = isinstance(config, TranslateLmConfig) or getattr(config, "shared", False)
    return VOCAB if one or getattr(config, "embeddings", "") == "shared" else SOURCE_VOCAB


def build(name, dtype=torch.float64, sharp=False):
    """A translator in evaluation mode; ``sharp``: with weights large enough to be sure of itself."""
    model = build_model(CONFIGS[name], VOCAB, CONTEXT, source_vocab_size=source_vocabulary(name)).to(dtype).eval()
    if sharp:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.7, generator=generator)
    return model


def some_pairs(name, lengths=(5, 3, 7), t=6, seed=0):
    """Sources of unequal length with rubbish behind their ends, target ids, and targets some of which do not count."""
    generator = torch.Generator().manual_seed(seed)
    long = torch.tensor(lengths)
    ids = torch.randint(1, source_vocabulary(name), (len(lengths), max(lengths)), generator=generator)
    ids[torch.arange(len(lengths)), long - 1] = 0
    read = torch.randint(1, VOCAB, (len(lengths), t), generator=generator)
    read[:, 0] = 0
    targets = torch.randint(0, VOCAB, (len(lengths), t), generator=generator)
    targets[1, t - 2 :] = -100
    return Source(ids, long), read, targets


def alone(source, row):
    """One of the sources, without padding."""
    return Source(source.ids[row : row + 1, : source.lengths[row]], source.lengths[row : row + 1])
