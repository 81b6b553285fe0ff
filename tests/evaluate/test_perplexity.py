"""Perplexity and bits per byte: from models whose answer is known, and from every tokenizer over the same bytes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from gradatim.config.settings import (
    DataConfig,
    GptConfig,
    NgramConfig,
    RecurrentConfig,
    TokenizerConfig,
    WindowConfig,
)
from gradatim.errors import DataError
from gradatim.evaluate.perplexity import evaluate_file, evaluate_tokens
from gradatim.evaluate.score import score_sentences
from gradatim.models import build_model
from gradatim.models.ngram import fit_ngram
from gradatim.text.vocabulary import train_tokenizer

TEXT = "the more i read\nthe more i learn\n\nand i like it\nmore than anything else — “ça”\n"
LINES = [line for line in TEXT.split("\n") if line]
TOKENIZERS = {
    kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), [*LINES, TEXT])
    for kind in ("char", "word", "bpe", "wordpiece")
}
LOSSLESS = {"char", "bpe"}
CONTEXT = 6
CONFIGS = {
    "ngram": NgramConfig(order=3, discount_fallback=True),
    "additive": NgramConfig(order=2, smoothing="additive"),
    "window": WindowConfig(window=3, d_model=8, d_ff=12),
    "lstm": RecurrentConfig(kind="lstm", d_model=8),
    "gpt": GptConfig(d_model=8, n_layers=2, n_heads=2),
}


class Uniform:
    """A model that knows nothing, or that holds one token to be impossible."""

    context = None

    def __init__(self, vocab_size, never=None):
        self.vocab_size, self.never = vocab_size, never

    def start(self, batch):
        return None

    def log_prob(self, ids, targets, state):
        found = torch.full(targets.shape, -math.log(self.vocab_size), dtype=torch.float64)
        return found.masked_fill(targets == self.never, -math.inf) if self.never is not None else found, state


def row(tokenizer, texts):
    return np.array([token for text in texts for token in [*tokenizer.encode(text), tokenizer.boundary]])


def build(name, tokenizer):
    config = CONFIGS[name]
    if isinstance(config, NgramConfig):
        return fit_ngram(config, row(tokenizer, LINES), tokenizer.vocab_size, tokenizer.boundary)
    model = build_model(config, tokenizer.vocab_size, CONTEXT).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=generator)
    return model


def conditionals(model, tokenizer, tokens):
    """log p of each token after all before it that a window at stride 1 shows, each read anew."""
    text = [tokenizer.boundary, *tokens.tolist()]
    found = []
    for place in range(1, len(text)):
        start = 0 if model.context is None else max(0, place - model.context)
        table, _ = model(torch.tensor([text[start:place]]), model.start(1))
        found.append(table[0, -1, text[place]].item())
    return np.array(found)


# --------------------------------------------------------------------------- by hand


def test_knowing_nothing_of_v_tokens_is_perplexity_v():
    tokenizer = TOKENIZERS["char"]
    tokens = row(tokenizer, ["the", "more"])
    found = evaluate_tokens(Uniform(32), tokenizer, tokens, text_bytes=9)
    assert dataclasses.asdict(found) == {
        "tokens": 9,
        "unknown": 0,
        "impossible": 0,
        "bytes": 9,
        "nats_per_token": pytest.approx(math.log(32)),
        "perplexity": pytest.approx(32),
        "perplexity_without_unknown": pytest.approx(32),
        "bits_per_byte": pytest.approx(5),
    }


def test_bits_are_spread_over_bytes_not_tokens():
    tokenizer = TOKENIZERS["char"]
    found = evaluate_tokens(Uniform(16), tokenizer, row(tokenizer, ["ça", ""]), text_bytes=5)  # 4 tokens
    assert found.bits_per_byte == pytest.approx(4 * 4 / 5)


def test_no_bytes_have_no_bits():
    tokenizer = TOKENIZERS["char"]
    assert evaluate_tokens(Uniform(16), tokenizer, row(tokenizer, [""]), text_bytes=0).bits_per_byte is None


def test_no_tokens_have_no_perplexity():
    found = evaluate_tokens(Uniform(16), TOKENIZERS["char"], np.zeros(0, np.int64), text_bytes=0)
    assert (found.tokens, found.unknown, found.impossible, found.bytes) == (0, 0, 0, 0)
    assert found.nats_per_token is found.perplexity is found.perplexity_without_unknown is found.bits_per_byte is None


def test_unknown_tokens_are_counted_and_left_out_of_the_second_perplexity():
    tokenizer = TOKENIZERS["char"]
    tokens = row(tokenizer, ["the ZZ"])
    found = evaluate_tokens(build("lstm", tokenizer), tokenizer, tokens, text_bytes=7)
    each = conditionals(build("lstm", tokenizer), tokenizer, tokens)
    assert (found.tokens, found.unknown) == (7, 2)
    assert found.perplexity == pytest.approx(math.exp(-each.mean()), rel=1e-11)
    assert found.perplexity_without_unknown == pytest.approx(math.exp(-np.delete(each, [4, 5]).mean()), rel=1e-11)
    assert found.bits_per_byte is None  # the nats of "unknown" do not describe the letters


def test_nothing_but_unknown_tokens():
    tokenizer = TOKENIZERS["char"]
    found = evaluate_tokens(Uniform(16), tokenizer, np.array([tokenizer.unknown] * 3), text_bytes=3)
    assert found.perplexity == pytest.approx(16)
    assert found.perplexity_without_unknown is None


def test_an_impossible_token_makes_perplexity_infinite_and_is_counted():
    tokenizer = TOKENIZERS["char"]
    never = tokenizer.ids["e"]
    found = evaluate_tokens(Uniform(16, never), tokenizer, row(tokenizer, ["there"]), text_bytes=6)
    assert (found.tokens, found.impossible) == (6, 2)
    assert found.nats_per_token is found.perplexity is found.perplexity_without_unknown is found.bits_per_byte is None


def test_where_only_the_unknown_is_impossible_the_rest_is_still_judged():
    tokenizer = TOKENIZERS["char"]
    found = evaluate_tokens(Uniform(16, tokenizer.unknown), tokenizer, row(tokenizer, ["theZ"]), text_bytes=5)
    assert (found.unknown, found.impossible, found.perplexity) == (1, 1, None)
    assert found.perplexity_without_unknown == pytest.approx(16)


# --------------------------------------------------------------------------- models and tokenizers


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_judged_on_the_same_bytes_whatever_the_tokenizer(name, kind, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = TOKENIZERS[kind]
    model = build(name, tokenizer)
    data = DataConfig(document="line")
    found = evaluate_file(model, tokenizer, data, tmp_path / "text.txt", stride=1)
    tokens = row(tokenizer, LINES)
    each = conditionals(model, tokenizer, tokens)
    size = len(TEXT.encode()) - 1  # but for the blank line, which nobody predicts
    assert (found.tokens, found.unknown, found.bytes) == (len(tokens), 0, size)
    assert found.nats_per_token == pytest.approx(-each.mean(), rel=1e-11)
    assert found.perplexity == pytest.approx(math.exp(-each.mean()), rel=1e-11)
    if kind in LOSSLESS:
        assert found.bits_per_byte == pytest.approx(-each.sum() / math.log(2) / size, rel=1e-11)
    else:
        assert found.bits_per_byte is None


@pytest.mark.parametrize(("document", "ends"), [("line", 4), ("blank-line", 2), ("file", 1)])
def test_bytes_are_those_of_what_is_predicted_however_it_is_cut(document, ends, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = TOKENIZERS["char"]
    data = DataConfig(document=document)
    found = evaluate_file(Uniform(tokenizer.vocab_size), tokenizer, data, tmp_path / "text.txt")
    within = {"line": sum(map(len, LINES)), "blank-line": len(TEXT) - 3, "file": len(TEXT)}[document]
    assert found.bytes == len(TEXT.encode()) - (document != "file")  # the blank line
    assert found.tokens == within + ends


def test_a_file_of_one_document_is_the_score_of_its_text(tmp_path):
    (tmp_path / "line.txt").write_text("more i read", encoding="utf-8")
    tokenizer = TOKENIZERS["bpe"]
    for name in ("ngram", "lstm", "window"):
        model = build(name, tokenizer)
        found = evaluate_file(model, tokenizer, DataConfig(document="line"), tmp_path / "line.txt")
        (score,) = score_sentences(model, tokenizer, ["more i read"])
        assert (found.tokens, found.perplexity) == (score.tokens, pytest.approx(score.perplexity, rel=1e-11))


def test_single_precision_weights_are_summed_in_double():
    tokenizer = TOKENIZERS["char"]
    model = build_model(CONFIGS["gpt"], tokenizer.vocab_size, CONTEXT).eval()
    tokens = np.tile(row(tokenizer, LINES), 50)
    found = evaluate_tokens(model, tokenizer, tokens, text_bytes=len(tokens), stride=CONTEXT)
    reference = evaluate_tokens(model.double(), tokenizer, tokens, text_bytes=len(tokens), stride=CONTEXT)
    assert found.nats_per_token == pytest.approx(reference.nats_per_token, rel=1e-6)


def test_a_smaller_stride_serves_a_trained_model():
    tokenizer = TOKENIZERS["char"]
    model = build_model(CONFIGS["gpt"], tokenizer.vocab_size, CONTEXT, seed=1).double()
    text = torch.from_numpy(row(tokenizer, ["the more i read the more i learn"] * 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    windows = text.unfold(0, CONTEXT + 1, 1)
    for _ in range(60):
        optimizer.zero_grad()
        hidden, _ = model.hidden(windows[:, :-1])
        (model.nll(hidden, windows[:, 1:]) / windows[:, 1:].numel()).backward()
        optimizer.step()
    model.eval()
    nats = [
        evaluate_tokens(model, tokenizer, text.numpy(), len(text), stride).nats_per_token for stride in (1, 3, CONTEXT)
    ]
    assert nats[0] < nats[1] < nats[2]


# --------------------------------------------------------------------------- files that hold nothing


@pytest.mark.parametrize("content", [b"", b"\n \t\r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_named(content, tmp_path):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        evaluate_file(Uniform(16), TOKENIZERS["char"], DataConfig(document="line"), path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == (str(path), "there is no text in it")
