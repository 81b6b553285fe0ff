"""Beam search from a prompt: the likeliest completions; ``search.py`` has the search and why its stop is right."""

from __future__ import annotations

import torch

from gradatim.decode.generate import Completion
from gradatim.decode.prompt import read_prompt
from gradatim.decode.search import search
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    beams: int = 4,
    max_new: int = 64,
    n_best: int | None = None,
    alpha: float = 1.0,
) -> tuple[list[Completion], int]:
    """The ``n_best`` (default ``beams``) likeliest completions found, best first, and dropped prompt tokens.

    A completion ends with the boundary or after ``max_new`` tokens. With as many beams as there are texts of that
    length it is exhaustive.
    """
    reader, log_probs = read_prompt(model, tokenizer, prompt)
    dropped = reader.dropped
    (found,) = search(
        reader, log_probs, [max_new], boundary=tokenizer.boundary, beams=beams, n_best=n_best, alpha=alpha
    )
    completions = [
        Completion(
            tokenizer.decode_bytes(h.tokens).decode("utf-8", "replace"), h.log_probability, len(h.tokens), h.ended
        )
        for h in found
    ]
    return completions, dropped
