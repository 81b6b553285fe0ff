"""Standard error that outlives whoever reads it.

``gradatim train … 2>&1 | head`` leaves a training without a reader in the middle; hours of work are not to end for a
line of progress that nobody sees.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""A reader that left, and a terminal."""


class Lasting:
    """A text stream that drops what cannot be written any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:  # a full disk may have room again
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_errors() -> Iterator[None]:
    """Within it ``sys.stderr`` is such a stream."""
    before = sys.stderr
    if before is None:  # closed: ``2>&-``
        yield
        return
    sys.stderr = Lasting(before)
    try:
        yield
    finally:
        sys.stderr = before
