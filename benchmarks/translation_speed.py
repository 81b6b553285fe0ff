"""Beam search of an encoder-decoder Transformer against Hugging Face's Marian: equal shapes, random weights.

Transformer-Tiny (4+4 layers, width 128, 4 heads, feed-forward 256, post-norm, relu, sinusoidal positions, one embedding
for all) with a vocabulary of 10,000 translates 1,000 sentences with 5 beams, fp32 on both sides. Random weights hardly
ever end a sentence, so both sides write the same number of tokens for each: as many as the source has, in batches of
sentences of one length. Ours is ``decode/search.py`` as ``gradatim translate`` runs it, Hugging Face's is
``generate(num_beams=5)``. The sides take turns.

    python benchmarks/translation_speed.py --source ../shared/data/multi30k-tok-lc/test_2016_flickr.lc.norm.tok.en
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel

import common
from gradatim.config.settings import TransformerConfig
from gradatim.decode.prompt import Reader
from gradatim.decode.search import search
from gradatim.models import build_model
from gradatim.models.translator import Translator
from gradatim.text.batches import Source

VOCABULARY, BEAMS, WIDTH, LAYERS, HEADS, INNER = 10_000, 5, 128, 4, 4, 256
PADDING, END = VOCABULARY - 1, 0


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


def batches(lengths: list[int], size: int) -> Iterator[torch.Tensor]:
    """Random sentences of those lengths, equally long ones together."""
    generator = torch.Generator().manual_seed(0)
    ordered = sorted(lengths)
    start = 0
    while start < len(ordered):
        stop = min(start + size, len(ordered))
        while ordered[stop - 1] != ordered[start]:
            stop -= 1
        ids = torch.randint(1, PADDING, (stop - start, ordered[start]), generator=generator)
        ids[:, -1] = END
        yield ids
        start = stop


@torch.inference_mode()
def translate_ours(model: Translator, work: list[torch.Tensor]) -> int:
    """Tokens written in the best translations."""
    written = 0
    for ids in work:
        n, length = ids.shape
        state = model.start(n, Source(ids, torch.full((n,), length)))
        reader = Reader(model, torch.full((n, 1), END), state)
        found = search(reader, reader.opening(), [length] * n, boundary=-1, beams=BEAMS, n_best=1)
        written += sum(len(hypotheses[0].tokens) for hypotheses in found)
    return written


@torch.inference_mode()
def translate_theirs(model: MarianMTModel, work: list[torch.Tensor]) -> int:
    """The same by ``generate``; what it prints before the first token is not counted."""
    written = 0
    for ids in work:
        n, length = ids.shape
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=BEAMS, do_sample=False,
            max_new_tokens=length, min_new_tokens=length,
        )  # fmt: skip
        written += n * (found.shape[1] - 1)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path("../shared/data/multi30k-tok-lc/test_2016_flickr.lc.norm.tok.en")
    parser.add_argument("--source", type=Path, default=data, help="Sentences whose lengths in words are taken.")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64, help="Sentences translated at once.")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    lines = arguments.source.read_text(encoding="utf-8").splitlines()[: arguments.sentences]
    work = list(batches([len(line.split()) + 1 for line in lines], arguments.batch))
    models = {"gradatim": (ours(), translate_ours), "Hugging Face Marian": (marian(), translate_theirs)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    tokens: dict[str, int] = {}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        for name, (model, run) in models.items():
            started = time.perf_counter()
            tokens[name] = run(model, work)  # type: ignore[operator]
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds["gradatim"], seconds["Hugging Face Marian"])]
    rows = [
        [name, common.spread(times), common.spread([len(lines) / t for t in times]), f"{tokens[name]:,}"]
        for name, times in seconds.items()
    ]
    body = (
        f"{len(lines):,} sentences, {BEAMS} beams, batches of {arguments.batch} of one length, "
        f"{torch.get_num_threads()} threads, {arguments.repeats} rounds in turns.\n\n"
        + common.table(["side", "seconds", "sentences/s", "tokens written"], rows)
        + f"\n\nRatio: {common.spread(ratios)}. Target: 2 and more."
    )
    common.write_result("translation_speed", "Translation speed beside Hugging Face's Marian", body, "transformers")


if __name__ == "__main__":
    main()
