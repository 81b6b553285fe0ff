"""Byte-pair tokenizers of other programs, encoded by the ``tokenizers`` library itself: Llama's, and what is like them.

    byte-level       Llama 3 and others: a pattern of their own cuts text, bytes are written as printable characters
    sentencepiece    Llama 1 and 2 (Kudo and Richardson 2018): a space is ▁, one stands before the text, and what no
                     token spells is written byte by byte, ``<0x0A>``

Every token stands for fixed bytes in both, which is what decoding and stop strings read. Sentencepiece takes a ▁ of the
text for a space; but for that decoding returns the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from gradatim.errors import DataError
from gradatim.text.tokenizer import Ids, Tokenizer, byte_characters, characters, foreign, steps, template_opening

SPACE = "▁"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|eos|>", "<eos>")
"""Names of the token that closes a document, in the order in which they are believed."""
BEGINS = ("<|begin_of_text|>", "<s>", "<|bos|>", "<bos>")
"""Names of the one that opens it, where the file's own template does not say."""


KEEPING = ("ByteLevel", "Split", "Digits", "Punctuation", "Prepend", "Metaspace")
"""Steps that cut text without changing it, or so that it can be read back."""


class LibraryTokenizer(Tokenizer):
    """Byte pairs of another program; the ids are the library's, special tokens' names in the text are text.

    Raises:
        DataError: no token closes a document, or tokens stand for no fixed bytes.
    """

    kind = "bpe"

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        facts = json.loads(engine.to_str())
        end = next((name for name in ENDS if engine.token_to_id(name) is not None), None)
        if end is None:
            raise DataError(foreign("it has no end-of-text token"))
        unknown = facts["model"].get("unk_token")
        byte_fallback = bool(facts["model"].get("byte_fallback"))
        super().__init__(engine, end, None if byte_fallback else unknown)
        engine.encode_special_tokens = True
        byte_level = any(step.get("type") == "ByteLevel" for step in steps(facts.get("pre_tokenizer")))
        before = [*steps(facts.get("normalizer")), *steps(facts.get("pre_tokenizer"))]
        if not byte_level and not any(_spaces(step) for step in before):
            raise DataError(foreign("its tokens stand for no fixed bytes: neither byte-level nor with ▁ for spaces"))
        if facts["model"].get("dropout"):
            raise DataError(foreign("it uses merge dropout"))
        self.prefixed = any(map(_puts_space, before))
        """Whether a space is put before texts, or before those that begin with none, which decoding cannot tell."""
        self.prepends = any(step.get("type") == "Prepend" and _puts_space(step) for step in before)
        always = {step.get("type") == "Prepend" or not _puts_space(step) for step in before}
        kept = all(step.get("type") in KEEPING or _spaces(step) for step in before) and all(always)
        self.lossless = (byte_level or byte_fallback) and kept
        added = {entry["id"]: entry for entry in facts["added_tokens"]}
        vocabulary: Mapping[str, int] = engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have holes
        to_byte = {character: byte for byte, character in byte_characters().items()}
        self.bytes = [b""] * self.vocab_size
        for piece, number in vocabulary.items():
            if number in added:
                self.bytes[number] = b"" if added[number]["special"] else piece.encode()
            elif byte_level:
                self.bytes[number] = (
                    bytes(to_byte[c] for c in piece) if set(piece) <= to_byte.keys() else piece.encode()
                )
            else:
                self.bytes[number] = _spelt(piece)
        named = map(engine.token_to_id, BEGINS)
        self.opening = next(n for n in (template_opening(facts), *named, self.boundary) if n is not None)

    def encode(self, text: str) -> list[int]:
        """Ids by the library's own engine."""
        return list(self.engine.encode(characters(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids by the library's own engine, a batch at a time."""
        found = self.engine.encode_batch([characters(text) for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in found]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens; the space before a text is among them."""
        table = self.bytes
        return b"".join([table[int(i)] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text that was encoded, without the space before it; bytes that are no UTF-8 become U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.prefixed else text

    def token_text(self, token: int) -> str:
        """The text of a token; special ones by name, incomplete characters as escapes."""
        name = str(self.engine.id_to_token(token))
        return self.bytes[token].decode("utf-8", "backslashreplace") or name

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes."""
        return self.bytes[token]


def _spaces(step: Mapping[str, Any]) -> bool:
    """Whether a step writes ▁ for spaces."""
    replaces = step.get("type") == "Replace" and step.get("content") == SPACE
    return replaces or (step.get("type") == "Metaspace" and step.get("replacement", SPACE) == SPACE)


def _puts_space(step: Mapping[str, Any]) -> bool:
    """Whether a step puts a space before the text."""
    if step.get("type") == "ByteLevel":
        return bool(step.get("add_prefix_space"))
    if step.get("type") == "Prepend":
        return step.get("prepend") == SPACE
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return step.get("type") == "Metaspace" and scheme != "never"


def _spelt(piece: str) -> bytes:
    """What a token of sentencepiece stands for."""
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes([int(found[1], 16)])
    return piece.replace(SPACE, " ").encode()
