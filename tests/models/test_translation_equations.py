"""Recurrent attention and the Transformer against the papers' equations written out, and torch's own layers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from translators import alone, build, some_pairs

from gradatim.models.layers.alignment import Alignment
from gradatim.models.layers.sinusoids import sinusoids


@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("kind", ["additive", "dot", "general"])
def test_scores_are_those_of_the_papers(kind, coverage):
    generator = torch.Generator().manual_seed(1)
    layer = Alignment(kind, 6, coverage).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    states, encoded = (torch.randn(2, n, 6, dtype=torch.float64, generator=generator) for n in (1, 4))
    had = torch.rand(2, 4, dtype=torch.float64, generator=generator)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    context, weights = layer(states, layer.keys(encoded), encoded, real, had if coverage else None)
    for row in range(2):
        scores = []
        for j in range(4 if row == 0 else 2):
            s, h, c = states[row, 0], encoded[row, j], had[row, j]
            if kind == "additive":
                inner = layer.query.weight @ s + layer.key.weight @ h + layer.key.bias
                scores.append(layer.score @ torch.tanh(inner + (layer.covered * c if coverage else 0.0)))
            else:
                score = s @ h if kind == "dot" else s @ (layer.key.weight @ h)
                scores.append(score + (layer.covered[0] * c if coverage else 0.0))
        a = torch.stack(scores).softmax(0)
        torch.testing.assert_close(weights[row, 0, : len(a)], a)
        assert (weights[row, 0, len(a) :] == 0).all()
        torch.testing.assert_close(context[row, 0], sum(w * h for w, h in zip(a, encoded[row])))


def test_luong_s_decoder_with_input_feeding_and_coverage_step_by_step():
    model = build("general")
    source, ids, _ = some_pairs("general")
    whole = model.read(source, ids)
    for row in range(3):
        encoded, layers = model.encode(alone(source, row))
        fed = torch.zeros(1, 16, dtype=torch.float64)
        covered = torch.zeros(1, encoded.shape[1], dtype=torch.float64)
        state = [tuple(part for part in layer) for layer in layers]
        for step in range(ids.shape[1]):
            x = torch.cat([model.embed.tokens.weight[ids[row, step]][None], fed], 1)
            for place, block in enumerate(model.blocks):
                cell = nn.LSTMCell(x.shape[1], 16).double()
                cell.load_state_dict(dict(block.named_parameters()))
                state[place] = cell(x, state[place])
                x = state[place][0]
            scores = encoded[0] @ model.alignment.key.weight.T @ x[0] + covered[0] * model.alignment.covered
            a = scores.softmax(0)
            covered = covered + a
            fed = torch.tanh(model.combine(torch.cat([a @ encoded[0], x[0]])))[None]
            torch.testing.assert_close(whole[row, step], fed[0])


def test_cho_s_decoder_sees_the_summary_of_the_source_at_every_step():
    model = build("summary")
    source, ids, _ = some_pairs("summary")
    whole = model.read(source, ids)
    for row in range(3):
        _, layers = model.encode(alone(source, row))
        summary = layers[-1][0][0]
        state = [tuple(part for part in layer) for layer in layers]
        for step in range(ids.shape[1]):
            x = torch.cat([model.embed.tokens.weight[ids[row, step]], summary])[None]
            for place, block in enumerate(model.blocks):
                cell = nn.LSTMCell(x.shape[1], 16).double()
                cell.load_state_dict(dict(block.named_parameters()))
                state[place] = cell(x, state[place])
                x = state[place][0]
            torch.testing.assert_close(whole[row, step], model.combine(torch.cat([summary, x[0]])).tanh())


def test_the_encoder_reads_each_source_in_both_directions_to_its_own_ends():
    model = build("additive")
    source, _, _ = some_pairs("additive")
    encoded, layers = model.encode(source)
    for row in range(3):
        one = alone(source, row)
        x = model.source_embed.tokens.weight[one.ids]
        output, ends = model.encoder(x)
        torch.testing.assert_close(encoded[row, : one.ids.shape[1]], output[0])
        assert (encoded[row, one.ids.shape[1] :] == 0).all()
        for layer in range(2):
            last = torch.cat([ends[2 * layer, 0], ends[2 * layer + 1, 0]])
            torch.testing.assert_close(layers[layer][0][row], torch.tanh(model.bridge[layer][0](last)))


def test_a_reversed_source_is_read_from_its_end_and_shown_from_its_beginning():
    model = build("general")
    source, _, _ = some_pairs("general")
    encoded, _ = model.encode(source)
    for row in range(3):
        one = alone(source, row)
        output, _ = model.encoder(model.source_embed.tokens.weight[one.ids.flip(1)])
        torch.testing.assert_close(encoded[row, : one.ids.shape[1]], output[0].flip(0))


def torch_layer(block, kind, post):
    """PyTorch's layer with a block's weights; ours group qkv by head, PyTorch's by q, k and v."""
    layer = kind(16, 4, 64, dropout=0.0, activation="relu", batch_first=True, norm_first=not post).double().eval()

    def by_part(weight, parts):
        return weight.unflatten(0, (4, parts, 4)).transpose(0, 1).flatten(0, 2)

    def fill(attention, q_and_kv, out):
        attention.in_proj_weight.data.copy_(torch.cat([w for w, _ in q_and_kv]))
        attention.in_proj_bias.data.copy_(torch.cat([b for _, b in q_and_kv]))
        attention.out_proj.load_state_dict(dict(out.named_parameters()))

    qkv = block.attention.qkv
    fill(layer.self_attn, [(by_part(qkv.weight, 3), by_part(qkv.bias, 3))], block.attention.out)
    if hasattr(block, "cross"):
        kv = block.cross.kv
        both = [(block.cross.query.weight, block.cross.query.bias), (by_part(kv.weight, 2), by_part(kv.bias, 2))]
        fill(layer.multihead_attn, both, block.cross.out)
        layer.norm3.load_state_dict(dict(block.norm3.named_parameters()))
    for name, own in (
        ("norm1", block.norm1),
        ("norm2", block.norm2),
        ("linear1", block.mlp.up),
        ("linear2", block.mlp.down),
    ):
        getattr(layer, name).load_state_dict(dict(own.named_parameters()))
    return layer


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("name", ["transformer", "pre"])
def test_the_transformer_is_pytorch_s(name):
    from gradatim.config.settings_translators import TransformerConfig
    from gradatim.models import build_model

    post = name == "transformer"
    config = TransformerConfig(d_model=16, n_layers=2, n_heads=4, dropout=0.0, norm_position="post" if post else "pre")
    model = build_model(config, 21, 12).double().eval()
    source, ids, _ = some_pairs("transformer")
    padding = torch.arange(source.ids.shape[1]) >= source.lengths[:, None]
    with torch.no_grad():
        tokens, waves = model.embed.tokens.weight, sinusoids(12, 16)
        x = tokens[source.ids] * 4.0 + waves[:7]
        for block in model.encoder:
            x = torch_layer(block, nn.TransformerEncoderLayer, post)(x, src_key_padding_mask=padding)
        x = x if post else model.encoder_norm(x)
        y = tokens[ids] * 4.0 + waves[:6]
        future = torch.ones(6, 6, dtype=torch.bool).triu(1)
        for block in model.blocks:
            y = torch_layer(block, nn.TransformerDecoderLayer, post)(y, x, future, memory_key_padding_mask=padding)
        torch.testing.assert_close(model.read(source, ids), y)


def test_waves_are_sines_and_cosines():
    waves = sinusoids(5, 4)
    assert waves[3, 0].item() == pytest.approx(torch.tensor(3.0).sin().item())
    assert waves[3, 3].item() == pytest.approx(torch.tensor(3.0 / 100.0).cos().item())
