"""Training an n-gram model: one pass of counting, then the same run directory and checkpoint as every other model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.errors import LaunchError, Problem
from gradatim.evaluate.likelihood import log_probs
from gradatim.models.ngram import fit_ngram
from gradatim.text.prepare import Prepared
from gradatim.train.checkpoint import save_checkpoint
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog
from gradatim.train.run_directory import MODEL, Run, training_hash

if TYPE_CHECKING:
    from gradatim.train.loop import TrainResult


def count(config: RunConfig, run: Run, prepared: Prepared, say: Callable[[str], None]) -> TrainResult:
    """Count, smooth, evaluate, save. There is one step, and the training loss is that of the smoothed model."""
    from gradatim.train.loop import TrainResult

    assert isinstance(config.model, NgramConfig)
    tokenizer, tokens = prepared.tokenizer, prepared.train.tokens
    started = time.perf_counter()
    model = fit_ngram(config.model, tokens, tokenizer.vocab_size, tokenizer.boundary)
    seconds = time.perf_counter() - started
    say(f"{model.parameter_count():,} probabilities and weights from {len(tokens):,} tokens in {seconds:.1f} s")
    loss = float(-log_probs(model, tokens, tokenizer.boundary).mean())
    valid = None
    if prepared.valid is not None:
        valid_tokens = prepared.valid.tokens[: config.evaluation.tokens]
        valid = float(-log_probs(model, valid_tokens, tokenizer.boundary).mean())
        valid = valid if math.isfinite(valid) else None
        say(f"validation loss {'infinite' if valid is None else f'{valid:.4f}'} nats per token")
    row = {"step": 1, "loss": loss, "lr": None, "grad_norm": None, "tokens": len(tokens),
           "tokens_per_second": len(tokens) / seconds, "seconds": seconds, "valid_loss": valid}  # fmt: skip
    log = MetricsLog(run.metrics, config.track, attempt=1)
    log.write(row)
    log.sync()
    log.close()
    manifest = Manifest(
        step=1, tokens=len(tokens), samples=len(prepared.train), config_hash=training_hash(config),
        data_fingerprint=prepared.fingerprint, tokenizer_fingerprint=tokenizer.fingerprint,
        counters={"valid_loss": valid, "last_row": row},
    )  # fmt: skip
    try:
        save_checkpoint(run.checkpoints, manifest, {MODEL + name: value for name, value in model.tensors().items()})
    except OSError as error:
        raise LaunchError(Problem(where=str(run.checkpoints), what=f"the model cannot be saved ({error.strerror})",
                                  attempt="free some disk space")) from None  # fmt: skip
    return TrainResult(
        run=str(run.directory), step=1, loss=loss, valid_loss=valid, best_valid_loss=valid, tokens=len(tokens),
        tokens_per_second=len(tokens) / seconds, mfu=None, layout=asdict(config.layout),
        parameters=model.parameter_count(), seconds=seconds,
    )  # fmt: skip
