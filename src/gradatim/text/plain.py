"""Whether bytes are text, by how they begin."""

from __future__ import annotations

from gradatim.errors import DataError, Problem

SAMPLE = 1 << 16
"""Bytes of a file by which it is judged to be text or not."""
ODD_SHARE = 0.25
"""Largest share of NUL and invalid characters in a text: a page of French in Latin-1 has up to 16 %, archives and token
ids have 40 % and more."""
ODD_LEAST = 32
"""Fewer than this many are no sign of anything."""
NO_TEXT = "this file is not text in UTF-8"


def refuse_noise(where: str, sample: bytes) -> None:
    """Raise DataError for archives, pictures, UTF-16 and the like: reading them as text would be all noise.

    Args:
        sample: the first ``SAMPLE`` bytes.
    """
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):  # its byte-order marks, which never begin UTF-8
        attempt = f"iconv -f UTF-16 -t UTF-8 {where} > NEW"
        raise DataError(Problem(where=where, what=NO_TEXT, got="UTF-16 by its first bytes", attempt=attempt))
    text = sample.decode("utf-8", "replace")
    odd = text.count("\ufffd") - sample.count("\ufffd".encode()) + text.count("\0")
    if odd >= ODD_LEAST and odd > ODD_SHARE * len(text):
        raise DataError(
            Problem(
                where=where,
                what=NO_TEXT,
                got=f"{odd:,} NUL and invalid characters among the first {len(text):,}",
                attempt="name a text file; text in another encoding: iconv -f ENCODING -t UTF-8",
            )
        )
