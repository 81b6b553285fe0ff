"""A run on disk: ``config.yaml env.json metrics.jsonl tokenizer.json checkpoints/ logs/``, and how to open one again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
from gradatim.train.checkpoint import Checkpoint, best_valid, cannot_resume, newest_valid, open_checkpoint, step_folder
from gradatim.train.precision import device, weight_dtype

MAY_CHANGE = ("steps", "evaluation", "checkpoint", "track", "compile", "max_skipped_steps")
"""Settings that a resumed run may change; all others define its training."""
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
            raise CheckpointError(Problem(where=str(directory), what=what, got=f"no {' and no '.join(missing)}",
                                          attempt="gradatim train RECIPE --run DIR makes one"))  # fmt: skip
        return Run(directory)

    @staticmethod
    def create(directory: Path, config: RunConfig, tokenizer: Tokenizer) -> Run:
        """Write what describes a new run; the caller has made sure that there is none."""
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            (directory / "logs").mkdir(exist_ok=True)
            (directory / "env.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
            tokenizer.save(directory / "tokenizer.json")
            (directory / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        except OSError as error:
            raise LaunchError(Problem(where=str(directory), what=f"the run directory cannot be written ({error.strerror})",
                                      attempt="choose another place with --run DIR"))  # fmt: skip
        return Run(directory)

    @property
    def exists(self) -> bool:
        """Whether the directory holds a run already."""
        return (self.directory / "config.yaml").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; a lock whose process is gone is taken over."""
        path = self.directory / "lock"
        mine = f"{socket.gethostname()} {os.getpid()}"
        self.directory.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                if not self._stale(path):
                    holder = path.read_text(encoding="utf-8")
                    raise LaunchError(Problem(where=str(path), what="another process is training this run", got=holder,
                                              attempt="wait for it, or remove the file if that process is gone")) from None  # fmt: skip
                path.unlink(missing_ok=True)
        os.write(descriptor, mine.encode())
        os.close(descriptor)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    @staticmethod
    def _stale(path: Path) -> bool:
        try:
            host, pid = path.read_text(encoding="utf-8").split()
            if host != socket.gethostname():
                return False
            os.kill(int(pid), 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        except ValueError:  # empty: its writer died between creating and writing it, or is about to write
            time.sleep(0.2)
            return not path.exists() or not path.read_text(encoding="utf-8").strip()
        except OSError as error:
            return error.errno == errno.ESRCH
        return False

    # ------------------------------------------------------------------ models

    def checkpoint(self, which: str = "best") -> Checkpoint:
        """A verified checkpoint: ``best`` (by validation loss), ``last``, or a step number.

        Raises:
            CheckpointError: there is none, or what there is is damaged; an explicit step never falls back to another.
        """
        if which not in ("best", "last"):
            return open_checkpoint(step_folder(self.checkpoints, int(which)))
        found, rejected = (best_valid if which == "best" else newest_valid)(self.checkpoints)
        if found is None:
            if rejected:
                raise cannot_resume(self.checkpoints, rejected)
            raise CheckpointError(Problem(where=str(self.checkpoints), what="the run has no checkpoint yet",
                                          attempt="gradatim train … --resume"))  # fmt: skip
        return found

    def model(self, which: str = "best") -> LanguageModel:
        """The trained model, ready to be asked."""
        checkpoint = self.checkpoint(which)
        tensors = checkpoint.tensors(MODEL)
        config = self.config
        if isinstance(config.model, NgramConfig):
            from gradatim.models.ngram import NgramModel

            return NgramModel.from_tensors(config.model, self.tokenizer.vocab_size, tensors)
        model = build_model(config.model, self.tokenizer.vocab_size, config.context).to(weight_dtype(config.precision))
        load_weights(model, tensors, checkpoint.folder)
        return model.to(device()).eval()


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's parameters into a model.

    Raises:
        CheckpointError: names or shapes differ, each difference listed.
    """
    own = dict(model.named_parameters())
    problems = [
        Problem(where=str(where), what=f"the checkpoint has no parameter {name}", attempt="is it of another model?")
        for name in own.keys() - tensors.keys()
    ] + [
        Problem(where=str(where), what=f"the model has no parameter {name}", attempt="is it of another model?")
        for name in tensors.keys() - own.keys()
    ] + [
        Problem(where=str(where), what=f"{name} has another shape", got=str(list(tensors[name].shape)), allowed=str(list(own[name].shape)))
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]  # fmt: skip
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


def refuse_changes(before: RunConfig, now: RunConfig, where: Path) -> None:
    """Raise CheckpointError listing every setting that defines the training and differs."""

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}

    old, new = flat(asdict(before)), flat(asdict(now))
    problems = [
        Problem(where=f"{where}: {name}", what="the run was started with another setting", got=str(new.get(name)),
                allowed=str(old.get(name)), attempt="start another run, or leave this setting as it was")
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name.split(".")[0] not in MAY_CHANGE and name != "data.cache"
    ]  # fmt: skip
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
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git() -> str | None:
    """The commit of the source tree, for those who run from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def config_error_existing(directory: Path) -> ConfigError:
    """The refusal to overwrite a run."""
    return ConfigError(
        Problem(
            where=str(directory),
            what="there is a run in this directory already, and runs are never overwritten",
            attempt="--resume to continue it, or another --run DIR",
        )
    )
