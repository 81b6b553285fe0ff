"""The three questions of the lm-evaluation-harness (Gao et al. 2021), answered by any language model of ours.

    loglikelihood           log p(continuation | context), and whether greedy decoding would say it
    loglikelihood_rolling   log p(text), each token once, with as much context as the model has
    generate_until          what follows a context, up to a stop string

A row is boundary, context, continuation, as in training every document opens with the boundary; an empty context is
that alone. Context and continuation are encoded as one text, so that the space at a word's boundary belongs to the
token that it belonged to in training, wherever the task has put it. Where a token reaches across the seam it counts
among the continuation's. ``lm_eval`` is needed by ``harness_model`` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradatim.decode.generate import generate
from gradatim.decode.sampling import Sampling
from gradatim.errors import ConfigError, LaunchError, Problem
from gradatim.evaluate.likelihood import TOKENS_AT_ONCE, log_probs, model_device
from gradatim.models.protocol import LanguageModel
from gradatim.text.batches import IGNORE
from gradatim.text.tokenizer import Tokenizer

NUMBERS_AT_ONCE = 1 << 25
"""Log-probabilities held at once."""
OFF = (0, -1)
"""Values of ``top_k`` with which other programs switch it off."""
MAX_NEW = 256
"""Tokens generated where a task names no limit, as the harness's own models do."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens to read and those to be predicted: the last ``scored`` of the targets."""

    ids: list[int]
    targets: list[int]
    scored: int


class Answers:
    """A model that answers the harness's questions, as plain text and numbers.

    Args:
        model: any language model.
        tokenizer: its tokenizer.
        rows: most that are read side by side.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, rows: int = 16) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows

    # ------------------------------------------------------------------ likelihoods

    def row(self, context: str, continuation: str) -> Row:
        """What is read and predicted; of a context that is too long, its end.

        Raises:
            ConfigError: the continuation alone is longer than the model's context.
        """
        before, whole = self.tokenizer.encode(context), self.tokenizer.encode(context + continuation)
        shared = 0
        while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
            shared += 1
        scored, most = len(whole) - shared, self.model.context
        if most is not None and scored > most:
            raise ConfigError(
                Problem(
                    where=continuation[:40],
                    what="the continuation is longer than the model's context",
                    got=f"{scored} tokens",
                    allowed=f"{most}",
                    attempt="a model of longer context, or another task",
                )
            )
        ids, targets = [self.tokenizer.opening, *whole[:-1]], whole
        if most is not None:
            ids, targets = ids[-most:], targets[-most:]
        return Row(ids if whole else [], targets, scored)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation after its context, and whether its tokens are the likeliest."""
        rows = [self.row(context, continuation) for context, continuation in pairs]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        waiting = [place for place in range(len(rows)) if rows[place].scored]
        waiting.sort(key=lambda place: -len(rows[place].ids))  # rows of like length side by side
        while waiting:
            many = max(1, min(self.rows, TOKENS_AT_ONCE // len(rows[waiting[0]].ids)))
            some, waiting = waiting[:many], waiting[many:]
            for place, answer in zip(some, self._read([rows[place] for place in some])):
                found[place] = answer
        return found

    @torch.no_grad()
    def _read(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Rows side by side, filled up at the right, where nobody looks; a table of words exists a piece at a time."""
        length, where = max(len(row.ids) for row in rows), model_device(self.model)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        targets = torch.full((len(rows), length), IGNORE)
        for place, row in enumerate(rows):
            end = len(row.ids)
            ids[place, :end] = torch.tensor(row.ids)
            targets[place, end - row.scored : end] = torch.tensor(row.targets[-row.scored :])
        ids, targets = ids.to(where), targets.to(where)
        wanted = targets != IGNORE
        first = int(wanted.any(0).nonzero()[0])  # before it every row is context
        state = self.model.start(len(rows))
        if first:
            _, state = self.model.log_prob(ids[:, :first], torch.full_like(ids[:, :first], IGNORE), state)
        totals = torch.zeros(len(rows), dtype=torch.float64, device=where)
        greedy = torch.ones(len(rows), dtype=torch.bool, device=where)
        step = max(1, NUMBERS_AT_ONCE // (len(rows) * self.model.vocab_size))
        for begin in range(first, length, step):
            cut = slice(begin, begin + step)
            table, state = self.model(ids[:, cut], state)
            here, aims = wanted[:, cut], targets[:, cut].clamp(min=0)
            picked: Tensor = table.gather(2, aims[..., None])[..., 0].double()
            totals += picked.masked_fill(~here, 0.0).sum(1)
            greedy &= ((table.argmax(-1) == aims) | ~here).all(1)
        return list(zip(totals.tolist(), greedy.tolist()))

    def rolling(self, text: str) -> float:
        """Log-probability in nats of a whole text: windows of a full context, each token counted once."""
        tokens = np.asarray(self.tokenizer.encode(text), np.int64)
        boundary, opening = self.tokenizer.boundary, self.tokenizer.opening
        return float(log_probs(self.model, tokens, boundary, stride=self.model.context, opening=opening).sum())

    # ------------------------------------------------------------------ continuations

    def until(self, context: str, settings: Mapping[str, Any], repeat: int = 0) -> str:
        """What follows a context, up to the first of the stop strings, which is left out.

        Args:
            context: what is completed.
            settings: of generation, as a task has them.
            repeat: how often the same was asked before: of samples every one is drawn anew.

        Raises:
            ConfigError: a setting that this program's decoding has not.
        """
        given = dict(settings)
        stop = given.pop("until", None) or []
        stop = [stop] if isinstance(stop, str) else list(stop)
        most = given.pop("max_gen_toks", given.pop("max_new_tokens", MAX_NEW))
        asked = given.pop("temperature", None)
        temperature = float(asked or 0.0)
        samples, top_k = given.pop("do_sample", temperature > 0), given.pop("top_k", None)
        sampling = Sampling(
            temperature=(1.0 if asked is None else temperature) if samples else 0.0,
            top_k=None if top_k in OFF else top_k,
            top_p=given.pop("top_p", None), seed=int(given.pop("seed", 0)) + repeat,
        )  # fmt: skip
        if given:
            raise ConfigError(
                Problem(
                    where="generation_kwargs",
                    what="there is no such setting of generation",
                    got=", ".join(map(str, given)),
                    allowed="until, max_gen_toks, do_sample, temperature, top_k, top_p, seed",
                )
            )
        (found, *_), _ = generate(
            self.model, self.tokenizer, context, max_new=int(most), sampling=sampling, stop=tuple(filter(None, stop))
        )
        return found.text


def harness_model(answers: Answers, name: str = "gradatim") -> Any:
    """The same as an ``lm_eval.api.model.LM``, for ``lm_eval.simple_evaluate(model=…)``.

    Raises:
        LaunchError: ``lm_eval`` is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        what, attempt = "the lm-evaluation-harness is not installed", "pip install 'gradatim[harness]'"
        raise LaunchError(Problem(where="lm_eval", what=what, attempt=attempt)) from None

    class Gradatim(LM):  # type: ignore[misc]  # a class of a package without types
        """Requests in, answers out; each is told to the harness's cache."""

        def __init__(self) -> None:
            super().__init__()
            self._device = model_device(answers.model)

        @property
        def tokenizer_name(self) -> str:
            return name

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            found = answers.likelihoods([tuple(request.args) for request in requests])
            return [self._kept("loglikelihood", request.args, answer) for request, answer in zip(requests, found)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [self._kept("loglikelihood_rolling", r.args, answers.rolling(r.args[0])) for r in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            asked: Counter[str] = Counter()
            found = []
            for request in requests:
                question = repr(request.args)
                context, settings = request.args
                answer = answers.until(context, settings, asked[question])
                asked[question] += 1
                found.append(self._kept("generate_until", request.args, answer))
            return found

        def _kept(self, kind: str, question: Any, answer: Any) -> Any:
            self.cache_hook.add_partial(kind, question, answer)
            return answer

    return Gradatim()
