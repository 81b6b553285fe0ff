"""Generation behind the API: one model, one thread, one request at a time, and a waiting line that has an end.

``complete`` is ``decode.generate`` turned inside out: a generator over the same reader, sampling and text streams, so
that tokens can be reported one by one and the work can be stopped between any two. Row r of a prompt draws as row r of
the seed, as everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.decode.prompt import Reader
from gradatim.decode.sampling import choose, likeliest
from gradatim.decode.stream import StopAt, TextStream
from gradatim.evaluate.likelihood import model_device
from gradatim.models.protocol import LanguageModel
from gradatim.serve.protocol import IMPOSSIBLE, Piece, Request, TokenFact, Usage
from gradatim.text.tokenizer import Tokenizer

LONGEST_PROMPT = 32_768
"""Most tokens of a prompt where the model itself has no limit: all of them pass through its layers at once."""
CHUNK = 64
"""Positions of a prompt whose whole distributions are held at once, where its log-probabilities are asked for."""

log = logging.getLogger("gradatim.serve")


class Full(Exception):  # noqa: N818 - it carries a state, not a fault
    """The waiting line is full."""


# --------------------------------------------------------------------------- generating


@dataclass(slots=True)
class Choice:
    """The text of one choice while it grows, and the tokens whose text is not certain yet."""

    tokenizer: Tokenizer
    text: TextStream
    until: StopAt
    offset: int
    """Characters of the prompt and of what has been decoded, a held-back stop string included."""
    spaced: bool
    """Whether the prompt ends in white space, so that a space that joins words is one too many."""
    shown: int = 0
    """Offset up to which text has been shown."""
    held: list[TokenFact] = field(default_factory=list)

    def push(self, token: int, fact: Callable[[int], TokenFact] | None) -> tuple[str, list[TokenFact]]:
        """What may be shown after one more token, and the tokens that begin in it."""
        if fact is not None:
            self.held.append(fact(self.offset))
        if token == self.tokenizer.boundary:
            return "", []
        text = self.text.push(token)
        if self.spaced and text:
            text, self.spaced = text.removeprefix(" "), False
        self.offset += len(text)
        return self._show(self.until.push(text))

    def end(self) -> tuple[str, list[TokenFact]]:
        """What was held back; of tokens, those that begin before a stop string."""
        text = "" if self.until.stopped else self.until.push(self.text.end())
        text += "" if self.until.stopped else self.until.end()
        text, tokens = self._show(text)
        return text, tokens if self.until.stopped else [*tokens, *self.held]

    def _show(self, text: str) -> tuple[str, list[TokenFact]]:
        self.shown += len(text)
        certain = [token for token in self.held if token.offset < self.shown]
        del self.held[: len(certain)]
        return text, certain


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: Request,
    prompts: list[list[int]],
    usage: Usage,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Answer a request piece by piece.

    Args:
        model: any model of the protocol.
        tokenizer: its tokenizer.
        request: what was asked.
        prompts: the ids of its prompts, without boundary.
        usage: counts what is read and generated as it happens.
        stopped: asked before every token; True ends the answer in the middle.
    """
    for number, ids in enumerate(prompts):
        if stopped():
            return
        usage.prompt += len(ids)
        yield from _choices(model, tokenizer, request, number, ids, usage, stopped)


def _choices(
    model: LanguageModel, tokenizer: Tokenizer, request: Request, number: int, ids: list[int], usage: Usage,
    stopped: Callable[[], bool],
) -> Iterator[Piece]:  # fmt: skip
    """The ``n`` choices of one prompt, side by side."""
    prompt, n, first = request.prompts[number], request.n, number * request.n
    reader = Reader(model, torch.tensor([[tokenizer.opening, *ids]], device=model_device(model)))
    if request.echo:
        facts = [] if request.logprobs is None else _prompt_facts(reader, tokenizer, request, prompt, stopped)
        for row in range(n):
            yield Piece(first + row, prompt, facts)
    if request.max_tokens == 0:
        usage.dropped += max(0, reader.ids.shape[1] - (model.context or reader.ids.shape[1]))
        for row in range(n):
            yield Piece(first + row, "", finish="length")
        return
    log_probs = reader.begin()
    usage.dropped += reader.dropped
    if n > 1:  # the prompt is read once, whatever n
        everywhere = torch.zeros(n, dtype=torch.long, device=log_probs.device)
        reader.select(everywhere)
        log_probs = log_probs[everywhere]
    growing = [_choice(tokenizer, request, prompt, ids) for _ in range(n)]
    live = list(range(n))
    for position in range(request.max_tokens):
        if stopped():
            return
        chosen = choose(log_probs, request.sampling, torch.tensor(live), position, reader.ids, tokenizer.boundary)
        going = []
        for place, (row, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            usage.completion += 1
            fact = _reporter(tokenizer, request.logprobs, log_probs[place], token)
            text, tokens = growing[row].push(token, fact)
            ended = token == tokenizer.boundary or growing[row].until.stopped
            if ended or position == request.max_tokens - 1:
                rest, more = growing[row].end()
                # What ends a text at the last moment may still be a stop string.
                ended = ended or growing[row].until.stopped
                yield Piece(first + row, text + rest, [*tokens, *more], "stop" if ended else "length")
                continue
            going.append(place)
            if text or tokens:
                yield Piece(first + row, text, tokens)
        if not going:
            return
        if len(going) < len(live):
            kept = torch.tensor(going, device=chosen.device)
            reader.select(kept)
            chosen, live = chosen[kept], [live[place] for place in going]
        log_probs = reader.push(chosen)


def _choice(tokenizer: Tokenizer, request: Request, prompt: str, ids: list[int]) -> Choice:
    # Words are joined by spaces, sub-words to what comes before them.
    text = TextStream(tokenizer, () if tokenizer.lossless else ids)
    spaced = not tokenizer.lossless and prompt[-1:].isspace()
    return Choice(tokenizer, text, StopAt(request.stop), len(prompt), spaced, shown=len(prompt))


def _reporter(
    tokenizer: Tokenizer, most: int | None, log_probs: Float[Tensor, " v"], token: int
) -> Callable[[int], TokenFact] | None:
    """Given its offset, what is to be reported of a chosen token."""
    return None if most is None else lambda offset: _fact(tokenizer, most, log_probs, token, offset)


def _fact(tokenizer: Tokenizer, most: int, log_probs: Float[Tensor, " v"], token: int, offset: int) -> TokenFact:
    top: dict[str, float] = {}
    if most:
        values, ids = likeliest(log_probs, most)
        for value, other in zip(values.tolist(), ids.tolist(), strict=True):
            top.setdefault(tokenizer.token_text(other), max(value, IMPOSSIBLE))
    text, value = tokenizer.token_text(token), max(float(log_probs[token]), IMPOSSIBLE)
    top.setdefault(text, value)
    return TokenFact(text, value, top, offset)


def _prompt_facts(
    reader: Reader, tokenizer: Tokenizer, request: Request, prompt: str, stopped: Callable[[], bool]
) -> list[TokenFact]:
    """The prompt's tokens. The boundary before them opens a document, so the first is predicted too."""
    model, row = reader.model, reader.ids[0]
    kept = max(0, len(row) - (model.context or len(row)))  # as the reader will: the oldest tokens do not fit
    text, facts = TextStream(tokenizer), []
    state, offset = model.start(1), 0
    ahead: Tensor | None = None
    before: Tensor | None = None
    for position in range(len(row)):
        if position >= kept and (position - kept) % CHUNK == 0:
            if stopped():
                break
            ahead, state = model(row[None, position : position + CHUNK], state)
        token = int(row[position])
        if position > 0:
            at = min(offset, len(prompt))  # a tokenizer that loses text may give back a longer one
            if position > kept and before is not None:
                facts.append(_fact(tokenizer, request.logprobs or 0, before, token, at))
            else:
                facts.append(TokenFact(tokenizer.token_text(token), None, None, at))
            offset += len(text.push(token))
        before = None if ahead is None else ahead[0, (position - kept) % CHUNK]
    return facts


# --------------------------------------------------------------------------- one at a time


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way: pieces arrive in ``events``, then None, or an exception and None."""

    request: Request
    prompts: list[list[int]]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Piece | Exception | None] = field(default_factory=asyncio.Queue)
    usage: Usage = field(default_factory=Usage)
    stop: threading.Event = field(default_factory=threading.Event)
    finished: bool = False
    """Whether the answer came to its end, set before the last event."""

    def tell(self, event: Piece | Exception | None) -> None:
        """Hand an event to whoever answers; from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody is left to answer to
            self.stop.set()


class Engine:
    """The thread that generates, and the line before it."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, waiting: int = 16) -> None:
        self.model, self.tokenizer, self.most = model, tokenizer, waiting
        self._line: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="gradatim-serve", daemon=True)
        self._thread.start()

    def encode(self, prompts: tuple[str, ...]) -> list[list[int]]:
        """The ids of prompts."""
        return [self.tokenizer.encode(prompt) for prompt in prompts]

    def submit(self, request: Request, prompts: list[list[int]]) -> Job:
        """Stand in line. Raises Full when it has no place left."""
        job = Job(request, prompts, asyncio.get_running_loop())
        with self._changed:
            if not self._open or len(self._line) >= max(1, self.most) or (self._running and not self.most):
                raise Full
            self._line.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job, whether it waits, runs or has ended; its place is free at once."""
        job.stop.set()
        with self._changed:
            if job in self._line:
                self._line.remove(job)
                job.tell(None)

    def load(self) -> tuple[int, int]:
        """Requests running (0 or 1) and waiting."""
        with self._changed:
            return int(self._running is not None), len(self._line)

    def close(self) -> None:
        """Take no more requests and end those there are. May be called from a signal handler."""
        self._open = False
        running = self._running
        if running is not None:
            running.stop.set()
        for job in list(self._line):
            job.stop.set()

    def join(self) -> None:
        """Wait until the thread has ended, after ``close``."""
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._line:
                    if not self._open:
                        return
                    self._changed.wait()
                job = self._running = self._line.popleft()
            self._answer(job)

    def _answer(self, job: Job) -> None:
        try:
            with torch.inference_mode():
                for piece in complete(self.model, self.tokenizer, job.request, job.prompts, job.usage, job.stop.is_set):
                    job.tell(piece)
            job.finished = not job.stop.is_set()
        except Exception as failure:
            log.exception("a request failed")
            job.tell(failure)
        finally:
            job.tell(None)
