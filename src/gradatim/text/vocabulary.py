"""Learning a vocabulary from text, so that the same text always gives the same ``tokenizer.json``.

Characters and words are counted; byte pairs (Sennrich et al., 2016) and WordPiece (Schuster and Nakajima, 2012) are
trained by the ``tokenizers`` library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gradatim.config.settings import TokenizerConfig
from gradatim.text.tokenizer import ANY_CHARACTER, BOUNDARY, UNKNOWN, Tokenizer, wrap
from gradatim.text.words import LIBRARY_SPACE, LIBRARY_WORDS, split_words

SUBWORDS = 30_000
"""Size of a trained vocabulary whose config sets no limit."""
ALPHABET = 1000
"""Most characters WordPiece spells words with."""
LONG_RUN = re.compile(r"\S{1024}|\s{1024}")
"""What no natural word is as long as: base64, minified programs, a line of dashes."""


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Learn a vocabulary from texts, deterministically."""
    if config.kind in ("char", "word"):
        return wrap(_table_engine(config, texts))
    if config.kind == "wordpiece":
        return wrap(_wordpiece_engine(config, list(texts)))
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    if config.lowercase:
        engine.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size or SUBWORDS,
        special_tokens=[BOUNDARY],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return wrap(engine)


def pieces(text: str) -> Iterator[str]:
    """A text cut after every ``LONG_RUN``: the trainer's time grows faster than the length of its longest word."""
    first = 0
    for run in LONG_RUN.finditer(text):
        yield text[first : run.end()]
        first = run.end()
    yield text[first:]


def _table_engine(config: TokenizerConfig, texts: Iterable[str]) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if config.kind == "char" else split_words(text, config.split, config.lowercase))
    kept = sorted((p for p, n in counts.items() if n >= config.min_count), key=lambda piece: (-counts[piece], piece))
    kept = [piece for piece in kept if piece not in (BOUNDARY, UNKNOWN)]
    kept = kept if config.vocab_size is None else kept[: max(0, config.vocab_size - 2)]
    table = {piece: number for number, piece in enumerate([BOUNDARY, UNKNOWN, *kept])}
    engine = tokenizers.Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
    if config.kind == "char":
        engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(ANY_CHARACTER), "isolated")
        engine.decoder = decoders.Fuse()
    elif config.split == "words":
        engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(LIBRARY_WORDS), "removed", invert=True)
    else:
        engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(LIBRARY_SPACE), "removed")
    if config.lowercase and config.kind == "word":
        engine.normalizer = normalizers.Lowercase()
    return engine


def _wordpiece_engine(config: TokenizerConfig, texts: list[str]) -> tokenizers.Tokenizer:
    """Train WordPiece so that the same text gives the same file, which the library's trainer does not by itself.

    It numbers ``##x`` pieces in the order of a hash table, and ties between merges fall by number. Handed to it as
    special tokens they are numbered by us; a second engine then takes the vocabulary, in which nothing is special.
    """
    engine = _wordpiece({"[UNK]": 0}, config.lowercase)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(engine.normalizer.normalize_str(text))
    common = sorted(counts, key=lambda character: (-counts[character], character))[:ALPHABET]
    alphabet = sorted(character for character in common if not character.isspace())
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size or SUBWORDS,
        special_tokens=specials + [f"##{character}" for character in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    engine.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return _wordpiece(engine.get_vocab(), config.lowercase)


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    return engine
