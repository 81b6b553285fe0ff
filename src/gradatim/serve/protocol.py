"""What the API takes and gives: OpenAI's completions, checked strictly, every problem of a request at once.

The fields and their layout are those of OpenAI's ``POST /v1/completions``; ``docs/serving.md`` lists them. A field we
do not have is refused, since ignoring it would answer another question than the one asked. Only ``user`` is ignored,
and fields of OpenAI's that we lack (``best_of``, penalties, …) are taken where they ask for nothing.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradatim.decode.sampling import Sampling
from gradatim.errors import ConfigError, Problem

MOST_PROMPTS, MOST_TOKENS, MOST_CHOICES, MOST_LOGPROBS = 64, 4096, 16, 20
MOST_STOPS, LONGEST_STOP, MOST_STRANGERS = 4, 256, 20
SEEDS = 2**63
IMPOSSIBLE = -9999.0
"""Stands for a log-probability of minus infinity, which JSON cannot hold (OpenAI and vLLM use the same number)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A completion request that is in order."""

    prompts: tuple[str, ...]
    max_tokens: int = 16
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """So many of the likeliest tokens beside each token; None for no log-probabilities at all."""
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    """Whether a stream closes with the token counts."""


@dataclass(frozen=True, slots=True)
class TokenFact:
    """One token, as ``logprobs`` reports it."""

    text: str
    log_prob: float | None
    """None where the token was not predicted: it or all before it did not fit the model's context."""
    top: dict[str, float] | None
    offset: int
    """Characters before it, counted from the beginning of the prompt."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has become certain in one of the choices."""

    index: int
    text: str
    tokens: Sequence[TokenFact] = ()
    finish: str | None = None
    """``stop`` (the document's end or a stop string) or ``length``, in a choice's last piece."""


@dataclass(slots=True)
class Usage:
    """Tokens counted."""

    prompt: int = 0
    completion: int = 0
    dropped: int = 0
    """Tokens of prompts that were not read because the model's context is shorter."""

    def as_json(self) -> dict[str, int]:
        """As OpenAI's ``usage``, and what was dropped."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_dropped": self.dropped,
        }


# --------------------------------------------------------------------------- reading a request


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field may hold."""

    allowed: str
    good: Callable[[Any], bool]


def _whole(least: int, most: int) -> Kind:
    return Kind(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def _texts(most: int, longest: int | None = None) -> Kind:
    def text(value: Any) -> bool:
        return isinstance(value, str) and _is_unicode(value) and (longest is None or 0 < len(value) <= longest)

    length = f" of 1 to {longest} characters" if longest else ""
    return Kind(
        f"a string{length}, or a list of 1 to {most}",
        lambda v: text(v) or (isinstance(v, list) and 0 < len(v) <= most and all(map(text, v))),
    )


def _neutral(value: object, *others: object) -> Kind:
    same = [value, *others]
    return Kind(
        " or ".join([json.dumps(value), "left out"]) + " (not supported here)",
        lambda v: any(v == other and isinstance(v, bool) == isinstance(other, bool) for other in same),
    )


_NUMBER = Kind("a number", lambda v: type(v) in (int, float) and abs(v) < 2**53)
_BOOLEAN = Kind("true or false", lambda v: isinstance(v, bool))
_WORDS = Kind("a string", lambda v: isinstance(v, str))

FIELDS: dict[str, Kind] = {
    "model": _WORDS,
    "prompt": _texts(MOST_PROMPTS),
    "max_tokens": _whole(0, MOST_TOKENS),
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "n": _whole(1, MOST_CHOICES),
    "stop": _texts(MOST_STOPS, LONGEST_STOP),
    "seed": _whole(-SEEDS, SEEDS - 1),
    "stream": _BOOLEAN,
    "stream_options": Kind(
        '{"include_usage": true or false}, with stream',
        lambda v: isinstance(v, dict) and v.keys() <= {"include_usage"} and all(type(x) is bool for x in v.values()),
    ),
    "echo": _BOOLEAN,
    "logprobs": _whole(0, MOST_LOGPROBS),
    "top_k": _whole(1, 2**31 - 1),
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "user": _WORDS,
    "best_of": _neutral(1),
    "frequency_penalty": _neutral(0),
    "presence_penalty": _neutral(0),
    "logit_bias": _neutral({}),
    "suffix": _neutral(""),
}
"""Every field. Any of them but ``prompt`` may be left out or null."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_request(raw: bytes, model: str) -> Request:
    """The request in a body.

    Raises:
        ConfigError: with everything that is wrong about it.
    """
    body = _load(raw)
    given = {name: value for name, value in body.items() if value is not None}
    problems: list[Problem] = []
    strangers = [name for name in given if name not in FIELDS]
    problems += [_unknown(name, given[name]) for name in strangers[:MOST_STRANGERS]]
    if len(strangers) > MOST_STRANGERS:
        more = f"and {len(strangers) - MOST_STRANGERS} more that there are not"
        problems.append(Problem(where="body", what=more, allowed=", ".join(FIELDS)))
    for name, value in given.items():
        if name in FIELDS and not FIELDS[name].good(value):
            problems.append(_wrong(name, value, FIELDS[name].allowed))
    if "prompt" not in given:
        problems.append(_wrong("prompt", None, FIELDS["prompt"].allowed, what="this field is needed"))
    if isinstance(named := given.get("model"), str) and named != model:
        problems.append(_wrong("model", named, model, what="this server has no such model"))
    if "stream_options" in given and given.get("stream") is not True:
        problems.append(_wrong("stream_options", given["stream_options"], "with stream: true only"))
    values = {name: given[name] for name in SAMPLING if name in given and FIELDS[name].good(given[name])}
    sampling = Sampling(**{"temperature": 1.0, "seed": _seed(given.get("seed")), **values})
    for problem in sampling.problems():
        name = problem.where.removeprefix("--").replace("-", "_")
        problems.append(_wrong(name, given[name], problem.allowed))
    if problems:
        raise ConfigError(*problems)

    def several(name: str) -> tuple[str, ...]:
        value = given.get(name, [])
        return (value,) if isinstance(value, str) else tuple(value)

    return Request(
        prompts=several("prompt"),
        max_tokens=given.get("max_tokens", 16),
        n=given.get("n", 1),
        sampling=sampling,
        stop=several("stop"),
        logprobs=given.get("logprobs"),
        echo=given.get("echo", False),
        stream=given.get("stream", False),
        include_usage=given.get("stream_options", {}).get("include_usage", False),
    )


def _seed(asked: object) -> int:
    return asked if type(asked) is int else secrets.randbits(63)


def _load(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # the former also for bytes that are not UTF-8
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(Problem(where="body", what="this is not JSON", got=reason, allowed="a JSON object")) from None
    if not isinstance(body, dict):
        raise ConfigError(_wrong("body", body, "a JSON object"))
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {twice[:80]!r} stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _unknown(name: str, value: object) -> Problem:
    from gradatim.config.decode import nearest

    name = name[:80].encode("utf-8", "backslashreplace").decode()
    guess = nearest(name, FIELDS)
    return Problem(where=name, what="there is no such field", got=_shown(value), allowed=", ".join(FIELDS),
                   attempt=guess or "leave it out")  # fmt: skip


def _wrong(name: str, value: object, allowed: str, what: str = "out of range or of the wrong type") -> Problem:
    return Problem(where=name, what=what, got=_shown(value), allowed=allowed)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a value nested too deep to be shown"
    return text if len(text) <= 80 else text[:79] + "…"


# --------------------------------------------------------------------------- answers


def error(problems: Iterable[Problem], kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error as OpenAI lays it out, with all our problems."""
    listed = list(problems)
    return {
        "error": {
            "message": "; ".join(_sentence(problem) for problem in listed),
            "type": kind,
            "param": listed[0].where if kind == "invalid_request_error" else None,
            "code": None,
            "problems": [problem.as_json() for problem in listed],
        }
    }


def _sentence(problem: Problem) -> str:
    details = [f"{name} {text}" for name, text in [("got", problem.got), ("allowed:", problem.allowed)] if text]
    return f"{problem.where}: {problem.what}" + (f" ({', '.join(details)})" if details else "")


@dataclass(slots=True)
class Answer:
    """Builds the answer to one request, whole or chunk by chunk."""

    model: str
    created: int
    request: Request
    name: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One event of a stream."""
        return self._document([self._choice([piece], piece.index)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The stream's last event, where it was asked for."""
        return {**self._document([]), "usage": usage.as_json()}

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        choices: dict[int, list[Piece]] = {i: [] for i in range(len(self.request.prompts) * self.request.n)}
        for piece in pieces:
            choices[piece.index].append(piece)
        listed = [self._choice(of, index) for index, of in choices.items()]
        return {**self._document(listed), "usage": usage.as_json()}

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        facts = {"id": self.name, "object": "text_completion", "created": self.created, "model": self.model}
        return {**facts, "choices": choices}

    def _choice(self, pieces: Sequence[Piece], index: int) -> dict[str, Any]:
        tokens = [token for piece in pieces for token in piece.tokens]
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": None if self.request.logprobs is None else _layout(tokens),
            "finish_reason": pieces[-1].finish if pieces else None,
        }


def _layout(tokens: Sequence[TokenFact]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
