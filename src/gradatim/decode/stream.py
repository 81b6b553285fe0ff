"""Text while it is being generated: whole characters only, and nothing that a stop string might yet take back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gradatim.text.tokenizer import Tokenizer

NEIGHBOURS = 16
"""Tokens before one that may decide how it is written: whether a space goes before it, as with ``do n't``."""


class TextStream:
    """Turns tokens into text as they come.

    Where every token stands for fixed bytes (characters, byte pairs) an incremental UTF-8 decoder holds back unfinished
    characters; elsewhere (words, WordPiece) a token is decoded behind the last few, and the new end is taken.

    Args:
        tokenizer: that of the tokens.
        after: tokens that the text follows.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = list(after[-NEIGHBOURS:])

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        raw = self.tokenizer.token_bytes(token)
        if raw is not None:
            return self._bytes.decode(raw)
        said = len(self.tokenizer.decode(self._last)) if self._last else 0
        text = self.tokenizer.decode([*self._last, token])
        self._last = [*self._last, token][-NEIGHBOURS:]
        return text[said:]

    def end(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._bytes.decode(b"", final=True)


class StopAt:
    """Passes text on up to a stop string, which is cut off; holds back what might begin one.

    Of several the first to be complete stops (the longest of those that end there): it does not matter how the text
    was cut into tokens.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown now."""
        if self.stopped:
            return ""
        self._held += text
        found = [(place + len(stop), place) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown, self._held = self._held, ""
        return shown
