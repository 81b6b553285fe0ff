"""A run on disk: ``config.yaml env.json metrics.jsonl tokenizer.json checkpoints/ logs/``, made and opened again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradatim import __version__
from gradatim.config import config_to_yaml, load_config
from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.errors import CheckpointError, ConfigError, LaunchError, Problem
from gradatim.models import build_model
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.train.average import averaged
from gradatim.train.checkpoint import (
    Checkpoint,
    best_valid,
    cannot_resume,
    list_checkpoints,
    newest_valid,
    open_checkpoint,
    step_folder,
)
from gradatim.train.precision import device, weight_dtype

MAY_CHANGE = ("steps", "layout", "evaluation", "checkpoint", "track", "compile", "max_skipped_steps")
"""Settings that a resumed run may change; all others define its training."""
SOURCE_TOKENIZER, LANGUAGES = "source-tokenizer.json", "languages.json"
"""Of translation runs: the source's own tokenizer, and words by which to tell the languages."""
MODEL = "model/"
"""Prefix of parameters in a checkpoint."""


class Run:
    """A run directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # ------------------------------------------------------------------ files

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.directory / "metrics.jsonl"

    @cached_property
    def config(self) -> RunConfig:
        """The settings the run was started with."""
        return load_config(self.directory / "config.yaml", {})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its text."""
        return load_tokenizer(self.directory / "tokenizer.json")

    @cached_property
    def source_tokenizer(self) -> Tokenizer:
        """Of a translation run: the tokenizer of its sources, its own or the one that both languages share."""
        path = self.directory / SOURCE_TOKENIZER
        return load_tokenizer(path) if path.is_file() else self.tokenizer

    @cached_property
    def languages(self) -> dict[str, list[str]]:
        """Of a translation run: frequent words of each language, source first; empty where they were not kept."""
        try:
            found: dict[str, list[str]] = json.loads((self.directory / LANGUAGES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def remember_languages(self, languages: dict[str, list[str]]) -> None:
        """Keep frequent words of each language beside the tokenizers."""
        text = json.dumps(languages, ensure_ascii=False)
        (self.directory / LANGUAGES).write_text(text + "\n", encoding="utf-8")

    # ------------------------------------------------------------------ opening and creating

    @staticmethod
    def open(directory: Path) -> Run:
        """Open a run that exists.

        Raises:
            CheckpointError: the directory is not that of a run.
        """
        missing = [name for name in ("config.yaml", "tokenizer.json") if not (directory / name).is_file()]
        if missing:
            what = "this is not a run directory" if directory.is_dir() else "there is no such run"
            raise CheckpointError(
                Problem(
                    where=str(directory),
                    what=what,
                    got=f"no {' and no '.join(missing)}",
                    attempt="gradatim train RECIPE --run DIR makes one",
                )
            )
        return Run(directory)

    @staticmethod
    def create(
        directory: Path, config: RunConfig, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None = None
    ) -> Run:
        """Write what describes a new run; the caller has made sure that there is none."""
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            (directory / "logs").mkdir(exist_ok=True)
            (directory / "env.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
            tokenizer.save(directory / "tokenizer.json")
            if source_tokenizer is not None and source_tokenizer is not tokenizer:
                source_tokenizer.save(directory / SOURCE_TOKENIZER)
            (directory / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        except OSError as error:
            raise not_writable(directory, error) from None
        return Run(directory)

    @property
    def foreign(self) -> bool:
        """Whether the directory holds files but no run."""
        directory = self.directory
        if not directory.is_dir():
            return directory.exists()
        # Creating a run may have been interrupted.
        ours = {"lock", "checkpoints", "logs", "env.json", "tokenizer.json", SOURCE_TOKENIZER, LANGUAGES}
        return not self.exists and any(inner.name not in ours for inner in directory.iterdir())

    @property
    def exists(self) -> bool:
        """Whether the directory holds a run already."""
        return (self.directory / "config.yaml").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The kernel drops the lock with its process, so none is ever stale.

        Raises:
            LaunchError: another process is training this run, or the directory cannot be written.
        """
        path = self.directory / "lock"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise not_writable(self.directory, error) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise LaunchError(
                    Problem(
                        where=str(path),
                        what="another process is training this run",
                        got=file.read(200).strip(),
                        attempt="wait for it or stop it, or choose another --run DIR",
                    )
                ) from None
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            file.truncate(0)

    # ------------------------------------------------------------------ models

    def checkpoint(self, which: str = "best", say: Callable[[str], None] = lambda _: None) -> Checkpoint:
        """A verified checkpoint: ``best`` (by validation loss), ``last``, or a step number.

        ``say`` is told of each better or newer one that was passed over because it is damaged.

        Raises:
            CheckpointError: there is none, or what there is is damaged; an explicit step never falls back to another.
        """
        if which not in ("best", "last"):
            if not which.removeprefix("step-").isdecimal():
                raise CheckpointError(
                    Problem(
                        where=str(self.checkpoints),
                        what="no checkpoint is called that",
                        got=which,
                        allowed="best, last or a step number",
                    )
                )
            return open_checkpoint(step_folder(self.checkpoints, int(which.removeprefix("step-"))))
        found, rejected = (best_valid if which == "best" else newest_valid)(self.checkpoints)
        if found is None:
            if rejected:
                raise cannot_resume(self.checkpoints, rejected)
            raise CheckpointError(
                Problem(
                    where=str(self.checkpoints),
                    what="the run has no checkpoint yet",
                    attempt="gradatim train … --resume",
                )
            )
        for error in rejected:
            say(f"WARNING: passed over a checkpoint: {error}")
        if rejected:
            say(f"reading step {found.step} instead")
        return found

    def model(
        self, which: str = "best", say: Callable[[str], None] = lambda _: None, average: int = 1
    ) -> LanguageModel:
        """The trained model, ready to be asked; ``say`` as for ``checkpoint``.

        ``average`` above 1 takes the mean of that many of the newest checkpoints instead of ``which``.
        """
        checkpoint = self.checkpoint(which, say)
        made_by, ours = checkpoint.manifest.tokenizer_fingerprint, self.tokenizer.fingerprint
        if made_by != ours:  # ids would stand for other words, and every answer be wrong
            raise CheckpointError(
                Problem(
                    where=str(self.directory / "tokenizer.json"),
                    what="this is not the tokenizer that the checkpoint was trained with",
                    got=ours[:16],
                    allowed=made_by[:16],
                    attempt="restore the run's tokenizer.json",
                )
            )
        tensors = averaged(self.checkpoints, average) if average > 1 else checkpoint.tensors(MODEL)
        config = self.config
        if isinstance(config.model, NgramConfig):
            from gradatim.models.ngram import NgramModel

            return NgramModel.from_tensors(config.model, self.tokenizer.vocab_size, tensors)
        model = build_model(
            config.model, self.tokenizer.vocab_size, config.context,
            source_vocab_size=self.source_tokenizer.vocab_size,
        ).to(weight_dtype(config.precision))  # fmt: skip
        load_weights(model, tensors, checkpoint.folder)
        return model.to(device()).eval()


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's parameters into a model.

    Raises:
        CheckpointError: names or shapes differ, each difference listed.
    """
    own = dict(model.named_parameters())
    problems = (
        [
            Problem(where=str(where), what=f"the checkpoint has no parameter {name}", attempt="is it of another model?")
            for name in own.keys() - tensors.keys()
        ]
        + [
            Problem(where=str(where), what=f"the model has no parameter {name}", attempt="is it of another model?")
            for name in tensors.keys() - own.keys()
        ]
        + [
            Problem(
                where=str(where),
                what=f"{name} has another shape",
                got=str(list(tensors[name].shape)),
                allowed=str(list(own[name].shape)),
                attempt="is it of another model?",
            )
            for name in own.keys() & tensors.keys()
            if own[name].shape != tensors[name].shape
        ]
    )
    if problems:
        raise CheckpointError(*sorted(problems, key=str))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def training_hash(config: RunConfig) -> str:
    """Fingerprint of the settings that a resumed run must share."""
    facts = {key: value for key, value in asdict(config).items() if key not in MAY_CHANGE}
    del facts["data"]["cache"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def refuse_fewer_steps(run: Run, config: RunConfig) -> None:
    """Raise ConfigError where a run has made more steps than it is now to have: its config would not describe it."""
    done = max((int(folder.name.removeprefix("step-")) for folder in list_checkpoints(run.checkpoints)), default=0)
    if done > config.steps:
        raise ConfigError(
            Problem(
                where="steps",
                what="the run has made more steps already",
                got=str(config.steps),
                allowed=f"at least {done}",
                attempt=f"--steps {done}",
            )
        )


def refuse_changes(before: RunConfig, now: RunConfig, where: Path) -> None:
    """Raise CheckpointError listing every setting that defines the training and differs."""

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}

    old, new = flat(asdict(before)), flat(asdict(now))
    problems = [
        Problem(
            where=f"{where}: {name}",
            what="the run was started with another setting",
            got=str(new.get(name)),
            allowed=str(old.get(name)),
            attempt="start another run, or leave this setting as it was",
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name.split(".")[0] not in MAY_CHANGE and name != "data.cache"
    ]
    if problems:
        raise CheckpointError(*problems)


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """A directory that does not exist yet: ``runs/gpt-1``, ``runs/gpt-2``, …"""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def environment() -> dict[str, Any]:
    """What a result depends on besides the config: versions, machine, the command."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "safetensors", "tokenizers", "tiktoken")
    return {
        "gradatim": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "machine": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "git": _git(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def processor_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git() -> str | None:
    """The commit of the source tree, for those who run from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def not_writable(directory: Path, error: OSError) -> LaunchError:
    """The error of a place where no run can be kept."""
    what = f"the run directory cannot be written ({error.strerror or error})"
    return LaunchError(Problem(where=str(directory), what=what, attempt="choose another place with --run DIR"))


def config_error_foreign(directory: Path) -> ConfigError:
    """The refusal to mix a run with files that are not a run's."""
    what = "the directory holds other files and no run"
    return ConfigError(Problem(where=str(directory), what=what, attempt="--run with a directory that is empty or new"))


def config_error_existing(directory: Path) -> ConfigError:
    """The refusal to overwrite a run."""
    return ConfigError(
        Problem(
            where=str(directory),
            what="there is a run in this directory already, and runs are never overwritten",
            attempt="--resume to continue it, or another --run DIR",
        )
    )


def data_changed(where: Path) -> CheckpointError:
    """The refusal to continue on other text."""
    what = "the text or its tokenizer has changed since the run began"
    return CheckpointError(Problem(where=str(where), what=what, attempt="restore the text, or start another run"))
