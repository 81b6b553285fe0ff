"""A run on disk: ``config.yaml env.json metrics.jsonl tokenizer.json checkpoints/ logs/``, made and opened again."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from gradatim.config import config_to_yaml, load_config
from gradatim.config.origin import SOURCE_TOKENIZER, is_hugging_face
from gradatim.config.settings import BertConfig, NgramConfig, RunConfig
from gradatim.config.tuned import model_of
from gradatim.errors import CheckpointError, ConfigError, DataError, LaunchError, Problem
from gradatim.models import build_model
from gradatim.models.neural import NeuralLanguageModel, NeuralModel
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.train.average import averaged
from gradatim.train.checkpoint import (
    Checkpoint,
    best_valid,
    cannot_resume,
    newest_valid,
    open_checkpoint,
)
from gradatim.train.environment import environment
from gradatim.train.precision import device, weight_dtype
from gradatim.train.publish import DRAFT, replace_durably, step_folder
from gradatim.train.weights import load_weights

LANGUAGES, LABELS = "languages.json", "labels.json"
"""Of translation runs: words by which to tell the languages; of a task, its labels."""
BASE = "base.json"
"""Of adapters: the weights they stand beside."""
WORD_VECTORS = "word_vectors.safetensors"
"""What the embedding of a run begins as that counts it."""
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

    @property
    def has_steps(self) -> bool:
        """Whether any step is on record."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    @cached_property
    def config(self) -> RunConfig:
        """The settings the run was started with.

        Raises:
            CheckpointError: config.yaml is damaged; whoever wants to read a run has no recipe to mend.
        """
        try:
            return load_config(self.directory / "config.yaml", {}, to_train=False)
        except ConfigError as error:
            attempt = "restore the run's config.yaml from a copy, or write it anew: gradatim check with the recipe and "
            attempt += "options of the command in env.json"
            raise CheckpointError(*(replace(problem, attempt=attempt) for problem in error.problems)) from None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its text.

        Raises:
            CheckpointError: tokenizer.json is damaged.
        """
        try:
            found = load_tokenizer(self.directory / "tokenizer.json")
            if isinstance(self.config.model, NgramConfig):
                found.opening = found.boundary  # that is what counts have met before a document
            return found
        except DataError as error:
            attempt = "restore the run's tokenizer.json from a copy; "
            attempt += f"prepared text has one too: {self.config.data.cache}/*/tokenizer.json"
            raise CheckpointError(*(replace(problem, attempt=attempt) for problem in error.problems)) from None

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

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Of a task's run: what the numbers of classes mean; none of other runs.

        Raises:
            CheckpointError: labels.json is missing or damaged.
        """
        if self.config.task.kind not in ("classify", "tag", "span"):
            return ()
        path = self.directory / LABELS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["labels"]
        except (OSError, ValueError, KeyError, TypeError):
            what = "the labels of this run cannot be read, so nobody knows what its answers mean"
            raise CheckpointError(Problem(where=str(path), what=what, attempt="restore it from a copy")) from None
        return tuple(map(str, found))

    def remember_labels(self, labels: tuple[str, ...]) -> None:
        """Keep a task's labels beside the tokenizer."""
        text = json.dumps({"labels": labels}, ensure_ascii=False)
        (self.directory / LABELS).write_text(text + "\n", encoding="utf-8")

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
            attempt = "gradatim train RECIPE --run DIR makes one"
            if is_hugging_face(directory):
                attempt = f"gradatim import {directory} RUN makes one of it"
            raise CheckpointError(
                Problem(
                    where=str(directory),
                    what=what,
                    got=f"no {' and no '.join(missing)}",
                    attempt=attempt,
                )
            )
        return Run(directory)

    @staticmethod
    def create(
        directory: Path,
        config: RunConfig,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer | None = None,
        *,
        remark: str = "",
    ) -> Run:
        """Write what describes a new run; the caller has made sure that there is none. ``remark`` opens config.yaml."""
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            (directory / "logs").mkdir(exist_ok=True)
            (directory / "env.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
            tokenizer.save(directory / "tokenizer.json")
            if source_tokenizer is not None and source_tokenizer is not tokenizer:
                source_tokenizer.save(directory / SOURCE_TOKENIZER)
            opening = "".join(f"# {line}\n" for line in remark.splitlines())
            replace_durably(directory / "config.yaml", (opening + config_to_yaml(config)).encode())
        except OSError as error:
            raise not_writable(directory, error) from None
        return Run(directory)

    def rewrite_config(self, config: RunConfig) -> None:
        """Note the settings that a resumed run goes on with; a full disk leaves the old ones as they are."""
        try:
            replace_durably(self.directory / "config.yaml", config_to_yaml(config).encode())
        except OSError as error:
            raise not_writable(self.directory, error) from None

    @property
    def foreign(self) -> bool:
        """Whether the directory holds files but no run."""
        directory = self.directory
        if not directory.is_dir():
            return directory.exists()
        # Creating a run may have been interrupted.
        ours = {"lock", "checkpoints", "logs", "env.json", "tokenizer.json", SOURCE_TOKENIZER, LANGUAGES, LABELS, BASE}
        ours |= {WORD_VECTORS, WORD_VECTORS + DRAFT, "config.yaml" + DRAFT, "tensorboard", "wandb"}
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

        Raises:
            ConfigError: the run's model does not read from left to right, so it continues no text.
        """
        config = self.config
        if config.task.kind != "none":
            raise no_language_model(self.directory, f"task {config.task.kind}")
        if isinstance(config.model, BertConfig):
            raise no_language_model(self.directory, f"kind {config.model.kind}")
        if isinstance(config.model, NgramConfig):
            from gradatim.models.ngram import NgramModel

            tensors = self._tensors(self._verified(which, say), average)
            return NgramModel.from_tensors(config.model, self.tokenizer.vocab_size, tensors)
        model = self.network(which, say, average)
        assert isinstance(model, NeuralLanguageModel)
        return model

    def network(
        self, which: str = "best", say: Callable[[str], None] = lambda _: None, average: int = 1
    ) -> NeuralModel:
        """The trained network, in evaluation mode on its device; arguments as for ``model``."""
        checkpoint, config = self._verified(which, say), self.config
        model = build_model(
            model_of(config, len(self.labels)), self.tokenizer.vocab_size, config.context,
            source_vocab_size=self.source_tokenizer.vocab_size,
        ).to(weight_dtype(config.precision))  # fmt: skip
        tensors = self._tensors(checkpoint, average)
        if config.lora.rank is not None:
            from gradatim.train.adapted import Merged

            tensors = Merged(self, tensors).all()
        load_weights(model, tensors, checkpoint.folder)
        return model.to(device()).eval()

    def weights(self, checkpoint: Checkpoint) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
        """The shapes of a checkpoint's parameters, and how to read one; those of adapters are added to their layers."""
        if self.config.lora.rank is not None:
            from gradatim.train.adapted import Merged

            merged = Merged(self, checkpoint.tensors(MODEL))
            return merged.shapes, merged.read
        entries = checkpoint.manifest.tensors
        shapes = {name.removeprefix(MODEL): entries[name].shape for name in checkpoint.names(MODEL)}
        return shapes, lambda name: checkpoint.read(MODEL + name)

    def _tensors(self, checkpoint: Checkpoint, average: int) -> dict[str, Tensor]:
        return averaged(self.checkpoints, average) if average > 1 else checkpoint.tensors(MODEL)

    def _verified(self, which: str, say: Callable[[str], None]) -> Checkpoint:
        """A checkpoint made with the run's tokenizer."""
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
        return checkpoint


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """A directory that does not exist yet: ``runs/gpt-1``, ``runs/gpt-2``, …"""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def no_language_model(where: Path, kind: str) -> ConfigError:
    """The refusal to have a model continue or score text that is made for something else."""
    what, attempt = "this model fills in blanks; it does not read from left to right", f"gradatim evaluate {where}"
    if kind.startswith("task"):
        what, attempt = "this model was tuned to answer", f"gradatim predict {where} FILE"
    what, attempt = f"{what}, so it neither continues nor scores text", f"{attempt}, or a run of another kind"
    return ConfigError(Problem(where=str(where), what=what, got=kind, attempt=attempt))


def not_writable(directory: Path, error: OSError) -> LaunchError:
    """The error of a place where no run can be kept."""
    what = f"the run directory cannot be written ({error.strerror or error})"
    return LaunchError(
        Problem(where=str(directory), what=what, attempt="choose another place (gradatim train: --run DIR)")
    )


def config_error_foreign(directory: Path, attempt: str = "--run with a directory that is empty or new") -> ConfigError:
    """The refusal to mix a run with files that are not a run's."""
    what = "the directory holds other files and no run"
    return ConfigError(Problem(where=str(directory), what=what, attempt=attempt))


def config_error_existing(
    directory: Path, attempt: str = "--resume to continue it, or another --run DIR"
) -> ConfigError:
    """The refusal to overwrite a run."""
    what = "there is a run in this directory already, and runs are never overwritten"
    return ConfigError(Problem(where=str(directory), what=what, attempt=attempt))


def data_changed(where: Path) -> CheckpointError:
    """The refusal to continue on other text."""
    what = "the text or its tokenizer has changed since the run began"
    return CheckpointError(Problem(where=str(where), what=what, attempt="restore the text, or start another run"))
