"""N-gram language models: counting word sequences and smoothing the counts."""

from __future__ import annotations

from gradatim.models.ngram.model import NgramModel, NgramState, fit_ngram

__all__ = ["NgramModel", "NgramState", "fit_ngram"]
