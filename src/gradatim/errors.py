"""What can go wrong, as an interface: every error says what, where, got against allowed, and one thing to try.

Each class has the exit code that the command line returns for it (see ``docs/errors.md``). Code raises
these for users' mistakes and broken inputs; ``assert`` is left for the invariants of our own code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong, in the words a person needs to mend it."""

    where: str
    """File and line, config field, or object: ``recipe.yaml:3``, ``model.d_model``, ``rank0.safetensors``."""
    what: str
    """What is wrong, in one sentence without a full stop."""
    got: str = ""
    """The offending value, as found."""
    allowed: str = ""
    """The values that would do."""
    attempt: str = ""
    """One thing to try. (JSON calls this ``try``, a reserved word in Python.)"""

    def as_json(self) -> dict[str, str]:
        """The problem as the command line's JSON shows it."""
        return {
            "where": self.where,
            "what": self.what,
            "got": self.got,
            "allowed": self.allowed,
            "try": self.attempt,
        }

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        details = [("got", self.got), ("allowed", self.allowed), ("try", self.attempt)]
        return "\n".join([text, *(f"    {label}: {value}" for label, value in details if value)])


class GradatimError(Exception):
    """Base of every error that is shown to people without a traceback."""

    exit_code = 1

    def __init__(self, *problems: Problem, also: Iterable[Problem] = ()) -> None:
        self.problems: tuple[Problem, ...] = (*problems, *also)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Terminated(BaseException):
    """SIGTERM where nothing was to save: unwinds like ``KeyboardInterrupt``."""


class ConfigError(GradatimError):
    """A wrong command, recipe or override."""

    exit_code = 2


class DataError(GradatimError):
    """Text, a tokenizer or a token file that cannot be used."""

    exit_code = 3


class CheckpointError(GradatimError):
    """A run directory or checkpoint that is damaged, missing or of another model."""

    exit_code = 4


class LaunchError(GradatimError):
    """The machine cannot do it: a missing package, too little memory or disk, no such device."""

    exit_code = 5


class Interrupted(GradatimError):  # noqa: N818 - not an error of anybody's making
    """Stopped by a signal after saving; ``--resume`` goes on."""

    exit_code = 10


class NonFiniteError(GradatimError):
    """Loss or gradients were not finite more often than the config allows."""

    exit_code = 11


class HangError(GradatimError):
    """A rank did not answer the others within ``layout.timeout``; nothing can go on without it."""

    exit_code = 12


class ReplicaError(GradatimError):
    """Ranks hold different numbers where they are meant to hold the same (found by ``layout.check``)."""

    exit_code = 13
