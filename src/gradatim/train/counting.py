"""Training an n-gram model: one pass over the text instead of many updates, into the same run directory.

The run has one step. Its checkpoint, metrics row and result have the form of a neural run's, so that every command and
the comparison table treat all rungs alike; what a gradient would be needed for (loss, learning rate) is null.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.errors import LaunchError, Problem
from gradatim.evaluate.likelihood import log_probs
from gradatim.models.ngram import fit_ngram
from gradatim.text.prepare import Prepared
from gradatim.train.checkpoint import cannot_resume, newest_valid, save_checkpoint
from gradatim.train.continuing import training_hash
from gradatim.train.loop import TrainResult
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog
from gradatim.train.publish import remove_leftovers
from gradatim.train.run_directory import MODEL, Run, data_changed
from gradatim.train.state import Counters, finite_json


def count(config: RunConfig, run: Run, prepared: Prepared, say: Callable[[str], None]) -> TrainResult:
    """Count, smooth, judge and save; a run that is done already is only reported.

    Raises:
        DataError: the smoothing has no solution on this text (Kneser-Ney's discounts).
        CheckpointError: the run was done, but what it saved is damaged.
        LaunchError: the model cannot be saved.
    """
    assert isinstance(config.model, NgramConfig)
    remove_leftovers(run.checkpoints)
    found, rejected = newest_valid(run.checkpoints)
    if found is None and rejected:
        raise cannot_resume(run.checkpoints, rejected)
    if found is not None:
        if found.manifest.data_fingerprint != prepared.fingerprint:
            raise data_changed(found.folder)
        counters = Counters(**found.manifest.counters)
        return _result(config, run, counters, int(counters.last_row["parameters"]))

    boundary = prepared.tokenizer.boundary
    started = time.perf_counter()
    model = fit_ngram(config.model, prepared.train.tokens, prepared.tokenizer.vocab_size, boundary)
    seconds = time.perf_counter() - started
    say(f"{model.parameter_count():,} parameters counted in {seconds:.1f} s")
    tokens = int(prepared.train.meta.tokens)
    counters = Counters(step=1, updates=1, tokens=tokens, seconds=seconds)
    if prepared.valid is not None:
        judged = prepared.valid.tokens[: config.evaluation.tokens]
        counters.valid_loss = counters.best = float(-log_probs(model, judged, boundary).mean())
        say(f"validation loss {counters.valid_loss:.4f} nats per token")
    counters.last_row = {
        "step": 1,
        "loss": None,
        "lr": None,
        "grad_norm": None,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "parameters": model.parameter_count(),
        **({"valid_loss": counters.valid_loss} if prepared.valid is not None else {}),
    }
    manifest = Manifest(
        step=1,
        tokens=tokens,
        samples=int(prepared.train.meta.documents),
        config_hash=training_hash(config),
        data_fingerprint=prepared.fingerprint,
        tokenizer_fingerprint=prepared.tokenizer.fingerprint,
        counters=finite_json(asdict(counters)),
    )
    log = MetricsLog(run.metrics, config.track)
    try:
        log.write(counters.last_row)
        log.sync()
        save_checkpoint(run.checkpoints, manifest, {MODEL + name: value for name, value in model.tensors().items()})
    except OSError as error:
        what = f"the model cannot be saved ({error.strerror})"
        raise LaunchError(Problem(where=str(run.checkpoints), what=what, attempt="free some disk space")) from None
    finally:
        log.close()
    return _result(config, run, counters, model.parameter_count())


def _result(config: RunConfig, run: Run, counters: Counters, parameters: int) -> TrainResult:
    return TrainResult(
        run=str(run.directory),
        step=counters.step,
        loss=None,
        valid_loss=counters.valid_loss,
        best_valid_loss=counters.best,
        tokens=counters.tokens,
        tokens_per_second=counters.tokens / counters.seconds,
        mfu=None,
        layout=asdict(config.layout),
        parameters=parameters,
        seconds=counters.seconds,
    )
