"""Beam search of an encoder-decoder Transformer against Hugging Face's Marian: equal shapes, random weights.

Transformer-Tiny (4+4 layers, width 128, 4 heads, feed-forward 256, post-norm, relu, sinusoidal positions, one embedding
for all) with a vocabulary of 10,000 translates 1,000 sentences with 5 beams, fp32 on both sides. Random weights hardly
ever end a sentence, so both sides write the same number of tokens for each: as many as the source has. Ours is
``decode/search.py`` with the batches of ``gradatim translate``: sentences of like length, each with a limit of its own.
Hugging Face's ``generate(num_beams=5)`` has one limit for a batch. It is given what suits it best, sentences of one
length without any padding, in batches of several sizes of which the fastest counts; and what its users give it,
sentences as they come, padded, which go on until the longest of a batch is done. The ratio with the same batches on
both sides is told as well. The sides take turns.

    python benchmarks/translation_speed.py --source ../shared/data/multi30k-tok-lc/test_2016_flickr.lc.norm.tok.en
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import MarianConfig, MarianMTModel

import common
from gradatim.config.settings_translators import TransformerConfig
from gradatim.decode.prompt import Reader
from gradatim.decode.search import search
from gradatim.decode.translate import together
from gradatim.models import build_model
from gradatim.models.translator import Translator
from gradatim.text.pair_batches import stack
from gradatim.text.tokenizer import Ids

VOCABULARY, BEAMS, WIDTH, LAYERS, HEADS, INNER = 10_000, 5, 128, 4, 4, 256
PADDING, END = VOCABULARY - 1, 0
OURS = "gradatim, batches of `translate`"


def ours() -> Translator:
    """Our model, whose end mark is never likely: both sides are to write to the limit."""
    config = TransformerConfig(
        d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, d_ff=INNER, norm_position="post", dropout=0.0, vocab_multiple=1
    )
    model = build_model(config, VOCABULARY, 128).eval()
    assert isinstance(model, Translator)
    return model


def marian() -> MarianMTModel:
    """Hugging Face's, of the same shape."""
    config = MarianConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
        activation_function="relu", scale_embedding=True, max_position_embeddings=128,
        share_encoder_decoder_embeddings=True,
        pad_token_id=PADDING, eos_token_id=END, bos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=None,
        dropout=0.0,
    )  # fmt: skip
    return MarianMTModel(config).eval()


def sentences(lengths: list[int]) -> list[Ids]:
    """Random sentences of those lengths, each closed."""
    generator = np.random.default_rng(0)
    return [np.append(generator.integers(1, PADDING, length - 1), END) for length in lengths]


def of_one_length(work: list[Ids], size: int) -> list[list[Ids]]:
    """Batches of at most so many sentences, all equally long."""
    ordered = sorted(work, key=len)
    groups = [list(group) for _, group in itertools.groupby(ordered, key=len)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def as_they_come(work: list[Ids], size: int) -> list[list[Ids]]:
    """Batches of so many sentences in their own order."""
    return [work[start : start + size] for start in range(0, len(work), size)]


def of_like_length(work: list[Ids]) -> list[list[Ids]]:
    """Batches as ``gradatim translate`` makes them."""
    lengths = [len(ids) for ids in work]
    return [[work[place] for place in group] for group in together(list(range(len(work))), lengths, equal=False)]


@torch.inference_mode()
def translate_ours(model: Translator, work: list[list[Ids]]) -> int:
    """Tokens written in the best translations."""
    written = 0
    for group in work:
        state = model.start(len(group), stack(group, END))
        reader = Reader(model, torch.full((len(group), 1), END), state)
        limits = [len(ids) for ids in group]
        found = search(reader, reader.opening(), limits, boundary=-1, beams=BEAMS, n_best=1)
        written += sum(len(hypotheses[0].tokens) for hypotheses in found)
    return written


@torch.inference_mode()
def translate_theirs(model: MarianMTModel, work: list[list[Ids]]) -> int:
    """The same by ``generate``; neither its first mark nor what it writes behind a sentence's limit counts."""
    written = 0
    for group in work:
        length = max(map(len, group))
        ids = torch.from_numpy(
            np.stack([np.pad(each, (0, length - len(each)), constant_values=PADDING) for each in group])
        )
        found = model.generate(
            input_ids=ids, attention_mask=(ids != PADDING).long(), num_beams=BEAMS, do_sample=False,
            max_new_tokens=length, min_new_tokens=length,
        )  # fmt: skip
        assert found.shape == (len(group), 1 + length)
        written += sum(map(len, group))
    return written


def ratio(theirs: list[float], mine: list[float]) -> str:
    """Theirs over ours, round by round."""
    return common.spread([b / a for a, b in zip(mine, theirs, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path("../shared/data/multi30k-tok-lc/test_2016_flickr.lc.norm.tok.en")
    parser.add_argument("--source", type=Path, default=data, help="Sentences whose lengths in words are taken.")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128], help="Most sentences of one length.")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    lines = arguments.source.read_text(encoding="utf-8").splitlines()[: arguments.sentences]
    work = sentences([len(line.split()) + 1 for line in lines])
    model, other = ours(), marian()
    first = arguments.batches[0]
    sides: dict[str, Callable[[], int]] = {
        OURS: partial(translate_ours, model, of_like_length(work)),
        f"gradatim, of one length, {first} together": partial(translate_ours, model, of_one_length(work, first)),
        **{
            f"Hugging Face Marian, of one length, {size} together": partial(
                translate_theirs, other, of_one_length(work, size)
            )
            for size in arguments.batches
        },
        f"Hugging Face Marian, as they come, {first} together": partial(
            translate_theirs, other, as_they_come(work, first)
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        for name, run in sides.items():
            started = time.perf_counter()
            tokens[name] = run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    assert len(set(tokens.values())) == 1, tokens
    mine, same, *theirs, usual = seconds.values()
    best = min(theirs, key=statistics.median)
    rows = [
        [name, common.spread(times), common.spread([len(lines) / t for t in times]), f"{tokens[name]:,}"]
        for name, times in seconds.items()
    ]
    body = (
        f"{len(lines):,} sentences, {BEAMS} beams, {torch.get_num_threads()} threads, {arguments.repeats} rounds in "
        "turns.\n\n"
        + common.table(["side", "seconds", "sentences/s", "tokens written"], rows)
        + f"\n\nRatio to the fastest of Marian's: {ratio(best, mine)}. Target: 2 and more. With the same batches of "
        f"one length: {ratio(theirs[0], same)}. To Marian with sentences as they come: {ratio(usual, mine)}."
    )
    common.write_result("translation_speed", "Translation speed beside Hugging Face's Marian", body, "transformers")


if __name__ == "__main__":
    main()
