"""BERT against the library whose weights it is to share, and what it promises about padding, segments and its start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.config.settings import BertConfig
from gradatim.models import build_model
from gradatim.models.bert import BERT

VOCAB, CONTEXT = 37, 16
SHAPES = [
    BertConfig(d_model=16, n_layers=2, n_heads=4),
    BertConfig(d_model=24, n_layers=1, n_heads=2, d_ff=20, activation="gelu", vocab_multiple=1),
    BertConfig(d_model=32, n_layers=3, n_heads=8, norm_eps=1e-5, vocab_multiple=16),
]


def build(config: BertConfig, seed: int = 0) -> BERT:
    """A model whose every weight is random: biases and norms at their initial values would hide mistakes."""
    model = build_model(config, VOCAB, CONTEXT, seed).double().eval()
    assert isinstance(model, BERT)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, segments, lengths of three padded pairs."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (3, CONTEXT), generator=generator)
    lengths = torch.tensor([CONTEXT, 9, 4])
    segments = (torch.arange(CONTEXT) >= torch.tensor([[7], [5], [2]])).long()
    return ids, segments, lengths


def theirs(ours: BERT) -> Any:
    """The library's model with the same weights, named here one by one."""
    transformers = pytest.importorskip("transformers", reason="transformers is optional: pip install 'gradatim[hf]'")
    config, model = ours.config, dict(ours.named_parameters())
    d = config.d_model
    other = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=d, num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            intermediate_size=config.d_ff or 4 * d, max_position_embeddings=CONTEXT, layer_norm_eps=config.norm_eps,
            hidden_act="gelu" if config.activation == "gelu-erf" else "gelu_new", attn_implementation="eager",
        )
    )  # fmt: skip
    tensors = {
        "bert.embeddings.word_embeddings.weight": model["embed.tokens.weight"][:VOCAB],
        "bert.embeddings.position_embeddings.weight": model["embed.positions.weight"],
        "bert.embeddings.token_type_embeddings.weight": model["embed.segments.weight"],
        "cls.predictions.bias": model["head.output.bias"][:VOCAB],
    }
    pairs = {
        "bert.embeddings.LayerNorm": "embed.norm", "bert.pooler.dense": "head.pooler",
        "cls.seq_relationship": "head.pair", "cls.predictions.transform.dense": "head.transform",
        "cls.predictions.transform.LayerNorm": "head.norm",
    }  # fmt: skip
    for i in range(config.n_layers):
        layer, block = f"bert.encoder.layer.{i}", f"blocks.{i}"
        for end in ("weight", "bias"):
            rows = model[f"{block}.attention.qkv.{end}"]
            parts = rows.view(config.n_heads, 3, d // config.n_heads, *rows.shape[1:]).unbind(1)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                tensors[f"{layer}.attention.self.{name}.{end}"] = part.reshape(d, *rows.shape[1:])
        pairs |= {
            f"{layer}.attention.output.dense": f"{block}.attention.out",
            f"{layer}.attention.output.LayerNorm": f"{block}.norm1",
            f"{layer}.intermediate.dense": f"{block}.mlp.up",
            f"{layer}.output.dense": f"{block}.mlp.down",
            f"{layer}.output.LayerNorm": f"{block}.norm2",
        }
    for name, own in pairs.items():
        tensors |= {f"{name}.{end}": model[f"{own}.{end}"] for end in ("weight", "bias")}
    left = other.double().eval().load_state_dict({k: v.detach() for k, v in tensors.items()}, strict=False)
    assert not left.unexpected_keys
    assert all("decoder" in name for name in left.missing_keys)
    return other


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_logits_are_the_librarys(config: BertConfig) -> None:
    model = build(config)
    other = theirs(model)
    ids, segments, lengths = inputs()
    mask = (torch.arange(CONTEXT) < lengths[:, None]).long()
    for dtype, apart in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model.to(dtype), other.to(dtype)
        with torch.no_grad():
            words, pair = model(ids, segments, lengths)
            expected = other(input_ids=ids, token_type_ids=segments, attention_mask=mask)
        real = mask.bool()
        assert (words - expected.prediction_logits)[real].abs().max() <= apart
        assert (pair - expected.seq_relationship_logits).abs().max() <= apart


def test_losses_are_the_table_s_entries() -> None:
    model = build(SHAPES[0])
    ids, segments, lengths = inputs()
    positions = torch.tensor([[1, 5, 15], [2, 8, 0], [3, 0, 0]])
    targets = torch.tensor([[4, 9, 30], [11, 2, -100], [7, -100, -100]])
    labels = torch.tensor([0, 1, -100])
    words, pair = model(ids, segments, lengths)
    table = words.log_softmax(-1)
    expected = -sum(
        table[b, p, y] for b, row in enumerate(positions) for p, y in zip(row, targets[b], strict=True) if y >= 0
    )
    hidden = model.hidden(ids, segments, lengths)
    torch.testing.assert_close(model.masked_nll(hidden, positions, targets), expected)
    verdict = pair.log_softmax(-1)
    torch.testing.assert_close(model.pair_nll(hidden, labels), -verdict[0, 0] - verdict[1, 1])
    (model.masked_nll(hidden, positions, targets) + model.pair_nll(hidden, labels)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.embed.tokens.weight.grad[VOCAB:].any()  # type: ignore[index]  # padding learns nothing


def test_padding_is_seen_by_nobody_and_every_word_by_all() -> None:
    model = build(SHAPES[0])
    ids, segments, lengths = inputs()
    other = ids.clone()
    other[1, 9:] = (other[1, 9:] + 1) % VOCAB
    before, after = (model.hidden(x, segments, lengths) for x in (ids, other))
    torch.testing.assert_close(before[1, :9], after[1, :9], rtol=0, atol=0)
    other = ids.clone()
    other[1, 8] = (other[1, 8] + 1) % VOCAB
    after = model.hidden(other, segments, lengths)
    assert bool((before[1, :9] != after[1, :9]).any(-1).all())
    assert torch.equal(before[0], after[0])
    assert not torch.equal(model.hidden(ids, 1 - segments, lengths)[0], before[0])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_nothing(recompute: Any) -> None:
    ids, segments, lengths = inputs()
    found = []
    for what in ("none", recompute):
        model = build(SHAPES[0])
        model.set_recompute(what)
        hidden = model.hidden(ids, segments, lengths)
        model.pair_nll(hidden, torch.tensor([0, 1, 1])).backward()
        found.append([p.grad for p in model.parameters()])
    pairs = list(zip(*found, strict=True))
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def test_initial_weights_are_bert_s() -> None:
    model = build_model(BertConfig(d_model=128, n_layers=2, n_heads=4), 500, 64)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        elif parameter.dim() == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name


def test_what_does_not_fit_is_refused() -> None:
    model = build(SHAPES[0])
    with pytest.raises(ValueError, match="do not fit the context"):
        model.hidden(torch.zeros(1, CONTEXT + 1, dtype=torch.int64))
