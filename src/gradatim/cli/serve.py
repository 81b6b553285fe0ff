"""``gradatim serve RUN``: answer completions over HTTP until Ctrl-C."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradatim.cli.output import Verb, emit, json_option, say

if TYPE_CHECKING:
    from gradatim.errors import LaunchError


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes one that is free."
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Answer only to these keys, one a line.")
@click.option(
    "--waiting",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Most requests that wait; more get 503.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(
    run: Path, host: str, port: int, api_key_file: Path | None, waiting: int, checkpoint: str, as_json: bool
) -> None:
    """Serve the model of RUN over HTTP: OpenAI's /v1/completions, /v1/models, /health, and a page to try it."""
    _need("starlette", "uvicorn")
    import uvicorn

    from gradatim.cli.runs import open_run
    from gradatim.serve.app import create_app, read_keys
    from gradatim.serve.engine import Engine

    keys = None if api_key_file is None else read_keys(api_key_file)
    with _listen(host, port) as listener:
        opened, model = open_run(run, checkpoint)
        name = run.resolve().name
        engine = Engine(model, opened.tokenizer, waiting)

        class Server(uvicorn.Server):
            """Uvicorn's, which says when it listens and ends generations when told to stop."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                address = listener.getsockname()
                shown = f"[{address[0]}]" if ":" in address[0] else address[0]
                document = {
                    "url": f"http://{shown}:{address[1]}",
                    "model": name,
                    "host": address[0],
                    "port": address[1],
                }
                emit(document, as_json, lambda: f"{name} answers at {document['url']} (Ctrl-C ends it)")
                sys.stdout.flush()

            def handle_exit(self, sig: int, frame: object) -> None:
                engine.close()
                super().handle_exit(sig, None)

        if keys is None and not listener.getsockname()[0].startswith(("127.", "::1")):
            say("everybody who reaches this address may ask: --api-key-file FILE lets only some")
        config = uvicorn.Config(
            create_app(engine, name, keys), log_config=None, access_log=False, lifespan="off", server_header=False,
            ws="none", timeout_graceful_shutdown=5,
        )  # fmt: skip
        # Uvicorn raises the signal that ended it once more when all is done; to be stopped is how a server ends.
        before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            Server(config).run(sockets=[listener])
        finally:
            engine.close()
            engine.join()
            for number, handler in before.items():
                signal.signal(number, handler)
    say("stopped")


def _ignore(number: int, frame: object) -> None:
    """Do nothing about a signal that has been dealt with."""


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the model is loaded in vain.

    Raises:
        LaunchError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as failure:
        raise _cannot_listen(host, port, failure) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # two programs may bind one port with SO_REUSEADDR, but only one may listen
    except OSError as failure:
        listener.close()
        raise _cannot_listen(host, port, failure) from None
    return listener


def _cannot_listen(host: str, port: int, failure: Exception) -> LaunchError:
    import errno

    from gradatim.errors import LaunchError, Problem

    number = failure.errno if isinstance(failure, OSError) else None
    reasons = {
        errno.EADDRINUSE: ("the port is in use", "another --port, or --port 0 for one that is free"),
        errno.EACCES: ("the port may not be opened by this user", "a --port above 1023"),
        errno.EADDRNOTAVAIL: ("this machine has no such address", "--host 127.0.0.1, or --host 0.0.0.0 for all"),
    }
    unknown = ("this is no address to listen on", "--host 127.0.0.1, or --host 0.0.0.0 for all")
    what, attempt = reasons.get(number or 0, unknown)
    return LaunchError(Problem(where="--host, --port", what=what, got=f"{host}:{port}", attempt=attempt))


def _need(*packages: str) -> None:
    """Raise LaunchError unless the packages of the extra are there."""
    import importlib

    from gradatim.errors import LaunchError, Problem

    problems = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            what = "this package is not installed"
            problems.append(Problem(where=package, what=what, attempt="pip install 'gradatim[serve]'"))
    if problems:
        raise LaunchError(*problems)
