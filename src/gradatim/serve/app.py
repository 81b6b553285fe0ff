"""The HTTP application: routes, keys, limits, streams. Everything about the model is ``engine.py``'s.

A client that goes away stops its generation: whoever answers listens for the disconnect meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gradatim.errors import ConfigError, DataError, Problem
from gradatim.serve.engine import LONGEST_PROMPT, Engine, Full, Job
from gradatim.serve.page import PAGE, POLICY
from gradatim.serve.protocol import Answer, Piece, error, read_request

LARGEST_BODY = 1 << 20
RETRY_AFTER = "1"
"""Seconds after which a client turned away may come again."""


def read_keys(path: Path) -> list[str]:
    """API keys, one a line; blank lines do not count.

    Raises:
        DataError: the file cannot be read, or holds none, or one that no header could carry.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else "it is not UTF-8 text"
        raise DataError(Problem(where=str(path), what=f"the API keys cannot be read: {reason}")) from None
    problems = [
        Problem(where=f"{path}:{number}", what="a key holds spaces or characters beyond ASCII")
        for number, line in enumerate(lines, 1)
        if line and not all("!" <= character <= "~" for character in line)
    ]
    if not any(lines):
        problems.append(Problem(where=str(path), what="there is no API key in this file", allowed="one key a line"))
    if problems:
        raise DataError(*problems)
    return [line for line in lines if line]


def create_app(engine: Engine, model: str, keys: Iterable[str] | None = None) -> Starlette:
    """The application.

    Args:
        engine: what generates.
        model: the name it goes by.
        keys: who may ask; None lets everybody.
    """
    started = int(time.time())
    hashed = None if keys is None else [_hash(key) for key in keys]

    def guarded(endpoint: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def checked(request: HttpRequest) -> Response:
            if hashed is not None and not _allowed(request.headers.get("authorization", ""), hashed):
                problem = Problem(where="Authorization", what="no valid API key", allowed="Bearer KEY")
                return _refuse(401, problem, "authentication_error", {"www-authenticate": "Bearer"})
            return await endpoint(request)

        return checked

    async def page(_: HttpRequest) -> Response:
        return HTMLResponse(PAGE, headers={"content-security-policy": POLICY, "cache-control": "no-cache"})

    async def health(_: HttpRequest) -> Response:
        running, waiting = engine.load()
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    described = {"id": model, "object": "model", "created": started, "owned_by": "gradatim"}

    async def models(_: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [described]})

    async def one_model(request: HttpRequest) -> Response:
        name = request.path_params["name"]
        if name != model:
            return _refuse(404, Problem(where="model", what="this server has no such model", got=name, allowed=model))
        return JSONResponse(described)

    async def completions(request: HttpRequest) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a page of another origin cannot send without asking
            return _refuse(
                415,
                Problem(where="Content-Type", what="this is not JSON", got=kind, allowed="application/json"),
            )
        try:
            raw = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody will read
        if raw is None:
            allowed = f"{LARGEST_BODY} bytes at most"
            return _refuse(413, Problem(where="body", what="the request is too large", allowed=allowed))
        try:
            asked = read_request(raw, model)
            prompts = await asyncio.to_thread(engine.encode, asked.prompts)
            _check_length(engine, prompts)
        except ConfigError as wrong:
            return JSONResponse(error(wrong.problems), 400)
        try:
            job = engine.submit(asked, prompts)
        except Full:
            problem = Problem(where="server", what="too many requests are waiting", attempt="come again later")
            return _refuse(503, problem, "server_error", {"retry-after": RETRY_AFTER})
        answer = Answer(model, int(time.time()), asked)
        return Stream(engine, job, answer) if asked.stream else Whole(engine, job, answer)

    async def http_error(_: HttpRequest, failure: Exception) -> Response:
        assert isinstance(failure, HTTPException)
        problem = Problem(where="request", what=failure.detail, allowed="/v1/completions, /v1/models, /health, /")
        return _refuse(failure.status_code, problem, headers=dict(failure.headers or {}))

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{name:path}", guarded(one_model)),
        Route("/v1/completions", guarded(completions), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_error})


# --------------------------------------------------------------------------- checks


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _allowed(header: str, hashed: list[bytes]) -> bool:
    """Whether a header carries one of the keys; the time tells neither which nor how nearly."""
    scheme, _, key = header.partition(" ")
    given = _hash(key.strip())
    return sum(hmac.compare_digest(given, one) for one in hashed) > 0 and scheme.lower() == "bearer"


async def _body(request: HttpRequest) -> bytes | None:
    """The body, or None where it is too large, of which no more is read then."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > LARGEST_BODY:
        return None
    raw = bytearray()
    async with aclosing(request.stream()) as stream:
        async for part in stream:
            raw += part
            if len(raw) > LARGEST_BODY:
                return None
    return bytes(raw)


def _check_length(engine: Engine, prompts: list[list[int]]) -> None:
    if engine.model.context is not None:  # which reads the end of a long prompt
        return
    problems = [
        Problem(where=f"prompt[{i}]", what="the prompt is too long", got=f"{len(ids)} tokens",
                allowed=f"{LONGEST_PROMPT} tokens at most")
        for i, ids in enumerate(prompts) if len(ids) > LONGEST_PROMPT
    ]  # fmt: skip
    if problems:
        raise ConfigError(*problems)


def _refuse(
    status: int, problem: Problem, kind: str = "invalid_request_error", headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse(error([problem], kind), status, headers=headers)


# --------------------------------------------------------------------------- answers


async def follow(engine: Engine, job: Job, receive: Receive) -> AsyncGenerator[Piece | Exception, None]:
    """The pieces of a job as they come. It is given up when the client goes away or nobody reads on."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        engine.cancel(job)

    listener = asyncio.create_task(listen())
    try:
        while (event := await job.events.get()) is not None:
            yield event
    finally:
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener
        engine.cancel(job)


def _failure(job: Job, failure: Exception | None) -> dict[str, Any] | None:
    """What to say of a job that did not come to its end."""
    if failure is not None:
        what = "the machine has not enough memory for this" if _out_of_memory(failure) else "an unforeseen failure"
        problem = Problem(where="server", what=what, attempt="see what the server wrote to its terminal")
    elif not job.finished:
        problem = Problem(where="server", what="it is being stopped")
    else:
        return None
    return error([problem], "server_error")


def _out_of_memory(failure: Exception) -> bool:
    return isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError"


class Whole(Response):
    """All choices at once, as one JSON document."""

    def __init__(self, engine: Engine, job: Job, answer: Answer) -> None:
        super().__init__()
        self.engine, self.job, self.answer = engine, job, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Collect, then answer."""
        pieces, failure = [], None
        async with aclosing(follow(self.engine, self.job, receive)) as events:
            async for event in events:
                if isinstance(event, Exception):
                    failure = event
                else:
                    pieces.append(event)
            failed = _failure(self.job, failure)
        if failed is not None:
            status, headers = (500, {}) if failure else (503, {"retry-after": RETRY_AFTER})
            response = JSONResponse(failed, status, headers=headers)
        else:
            response = JSONResponse(self.answer.whole(pieces, self.job.usage))
        with suppress(ClientDisconnect, OSError):
            await response(scope, receive, send)


class Stream(Response):
    """Choices piece by piece, as server-sent events."""

    def __init__(self, engine: Engine, job: Job, answer: Answer) -> None:
        # A proxy that gathers events before passing them on would defeat their purpose.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        del self.headers["content-length"]
        self.engine, self.job, self.answer = engine, job, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the job ends or the client is gone."""
        failure = None
        with suppress(ClientDisconnect, OSError):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(follow(self.engine, self.job, receive)) as events:
                async for event in events:
                    if isinstance(event, Exception):
                        failure = event
                    else:
                        await send(_event(self.answer.chunk(event)))
                failed = _failure(self.job, failure)
            if failed is not None:
                await send(_event(failed))
            elif self.answer.request.include_usage:
                await send(_event(self.answer.usage(self.job.usage)))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _event(document: dict[str, Any]) -> Message:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
