"""What every translator promises: reading at once or word by word, alone or beside others, is the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from translators import CONFIGS, CONTEXT, VOCAB, alone, build, some_pairs, source_vocabulary

from gradatim.models import build_model
from gradatim.models.protocol import LanguageModel
from gradatim.objectives.translation import Translation
from gradatim.shapes import matmuls, parameter_count, parameters
from gradatim.text.batches import Batch, Source

every = pytest.mark.parametrize("name", CONFIGS)
joined = pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("lm")])


def table_of(model, source, ids):
    with torch.no_grad():
        return model.head.output.log_probs(model.head(model.read(source, ids)))


@every
def test_it_has_the_parameters_of_its_shape(name):
    words = source_vocabulary(name)
    with torch.device("meta"):
        from gradatim.models import new_model

        model = new_model(CONFIGS[name], VOCAB, CONTEXT, words)
    expected = [(shape.name, shape.shape) for shape in parameters(CONFIGS[name], VOCAB, CONTEXT, words)]
    assert [(own, tuple(parameter.shape)) for own, parameter in model.named_parameters()] == expected
    assert model.parameter_count() == parameter_count(CONFIGS[name], VOCAB, CONTEXT, words)


@every
def test_its_products_are_those_of_its_matrices(name):
    config, words = CONFIGS[name], source_vocabulary(name)
    shapes = parameters(config, 64, 12, 64 if words == VOCAB else words)
    inner = [s for s in shapes if len(s.shape) == 2 and "embed" not in s.name and s.name != "head.output.weight"]
    products = [m for m in matmuls(config, 64, 12) if m.name not in ("attention.scores", "attention.values")]
    bridges = sum(s.size for s in inner if s.name.startswith("bridge"))  # once a sentence
    expected = sum(s.size for s in inner) - bridges
    assert sum(m.flops for m in products if m.name != "head.output") == 2 * expected


@every
def test_reading_word_by_word_equals_reading_at_once(name):
    model = build(name)
    assert isinstance(model, LanguageModel)
    source, ids, _ = some_pairs(name)
    table = table_of(model, source, ids)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(3, 6, dtype=torch.float64))
    for row in range(3):
        for cuts in [(1,) * 6, (2, 4), (6,)]:
            state, pieces = model.start(1, alone(source, row)), []
            for piece in ids[row : row + 1].split(cuts, dim=1):
                found, state = model(piece, state)
                pieces.append(found)
            torch.testing.assert_close(torch.cat(pieces, 1)[0], table[row])


@every
def test_neither_the_future_nor_padding_is_seen_and_the_source_is(name):
    model = build(name)
    source, ids, _ = some_pairs(name)
    table = table_of(model, source, ids)
    later = ids.clone()
    later[:, 4:] = later[:, 4:] % (VOCAB - 1) + 1
    torch.testing.assert_close(table_of(model, source, later)[:, :4], table[:, :4])
    padded = source.ids.clone()
    padded[1, 3:] = 0
    torch.testing.assert_close(table_of(model, Source(padded, source.lengths), ids), table)
    other = source.ids.clone()
    other[:, 0] = other[:, 0] % (source_vocabulary(name) - 1) + 1
    assert (table_of(model, Source(other, source.lengths), ids) != table).any(-1).all()


@joined
def test_rows_can_be_selected_and_joined(name):
    """Beams share their source's memory as long as each has equally many; any other choice is right as well."""
    model = build(name)
    source, ids, _ = some_pairs(name)
    table = table_of(model, source, ids)
    _, state = model(ids[:, :2], model.start(3, source))
    for first, second in [
        ([2, 2, 0, 0], [1, 0, 3, 2]),
        ([0, 1, 1, 2], [3, 0]),
        ([1, 1, 1], [2, 0]),
        ([2, 0], [0, 1, 1]),
    ]:
        rows = torch.tensor(first)[torch.tensor(second)]
        picked, _ = model(ids[rows, 2:], state.select(torch.tensor(first)).select(torch.tensor(second)))
        torch.testing.assert_close(picked, table[rows, 2:])
    parts = [model(ids[row : row + 1, :2], model.start(1, alone(source, row)))[1] for row in range(3)]
    found, _ = model(ids[:, 2:], type(state).join(parts))
    torch.testing.assert_close(found, table[:, 2:])
    again, _ = model(ids[:, 2:], state)  # what was done with it has not changed it
    torch.testing.assert_close(again, table[:, 2:])


@pytest.mark.parametrize("name", ["lm-lstm", "lm-gpt", "lm-gpt-prefix"])
def test_one_model_reads_sources_of_one_length_at_a_time(name):
    model = build(name)
    source, ids, _ = some_pairs(name, lengths=(5, 5, 5))
    table = table_of(model, source, ids)
    _, state = model(ids[:, :2], model.start(3, source))
    rows = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(model(ids[rows, 2:], state.select(rows))[0], table[rows, 2:])
    with pytest.raises(ValueError, match="one length"):
        model.start(3, some_pairs(name)[0])


@every
def test_the_loss_is_smoothed_over_words_and_padding_has_no_part(name):
    model = build(name)
    source, ids, targets = some_pairs(name)
    loss = model.terms(source, ids, targets)
    batch, table, counted = Batch(ids, targets, source=source), table_of(model, source, ids), targets != -100
    share = model.label_smoothing
    picked = table.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    expected = -((1 - share) * picked + share * table.mean(-1))[counted].sum()
    if getattr(CONFIGS[name], "loss_on", "target") == "all":
        # The source's own words come on top, each given those before it or, under a prefix mask, all of them.
        assert Translation(True).counts(batch) == {"nll": int(counted.sum()) + int(source.lengths.sum())}
        assert loss > expected
    else:
        assert Translation(False).counts(batch) == {"nll": int(counted.sum())}
        torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_loss_on_all_is_that_of_the_whole_text():
    """Without a prefix mask it is the language model's loss of source, boundary, target."""
    model = build("lm-gru-all")
    source, ids, targets = some_pairs("lm-gru-all")
    loss = model.terms(source, ids, targets)
    total = 0.0
    for row in range(3):
        n, t = int(source.lengths[row]), int((targets[row] != -100).sum())
        read = torch.cat([torch.zeros(1, dtype=torch.int64), source.ids[row, : n - 1], ids[row, :t]])[None]
        wanted = torch.cat([source.ids[row, :n], targets[row, :t]])[None]
        total += float(model.body.log_prob(read, wanted, model.body.start(1))[0].sum())
    assert loss.item() == pytest.approx(-total)


@pytest.mark.parametrize("name", ["additive", "general", "dot", "covered", "transformer", "learned", "rotary"])
def test_attention_is_shown_and_is_on_the_source_alone(name):
    model = build(name)
    source, ids, _ = some_pairs(name)
    whole, after = model(ids, model.start(3, source, attention=True))
    torch.testing.assert_close(whole, table_of(model, source, ids))  # looking changes nothing
    shown = after.attention
    assert shown.shape == (3, len(model.attention_names), 6, 7)
    torch.testing.assert_close(shown.sum(-1), torch.ones(3, len(model.attention_names), 6, dtype=torch.float64))
    assert (shown[0, :, :, 5:] == 0).all() and (shown[1, :, :, 3:] == 0).all()
    state, pieces = model.start(3, source, attention=True), []
    for piece in ids.split(1, dim=1):
        _, state = model(piece, state)
        pieces.append(state.attention)
    torch.testing.assert_close(torch.cat(pieces, 2), shown)


def test_without_a_source_there_is_nothing_to_say():
    for name in ("plain", "transformer", "lm-lstm"):
        model = build(name)
        with pytest.raises(ValueError, match="source"):
            model.start(1)
        with pytest.raises(ValueError, match="source"):
            model.hidden(torch.zeros(1, 1, dtype=torch.int64))
        with pytest.raises(ValueError, match="not cut"):
            model.run(torch.zeros(1, 1, 16))


def test_initial_weights_follow_from_the_seed_alone():
    for name in ("general", "rotary"):
        one, two, other = (build_model(CONFIGS[name], VOCAB, CONTEXT, seed, SOURCE) for seed in (0, 0, 1))
        pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b, _ in pairs)
        assert any(not torch.equal(a, c) for a, _, c in pairs)


SOURCE = 17
