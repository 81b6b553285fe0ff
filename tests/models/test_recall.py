"""The LSTM remembers where the plain RNN no longer does: a small run of ``benchmarks/recall.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def recall(monkeypatch):
    """The benchmark's module, run on one thread."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recall

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield recall
    torch.set_num_threads(threads)
    for name in ("recall", "common"):
        sys.modules.pop(name, None)


def test_the_lstm_remembers_where_the_plain_rnn_does_not(recall):
    lstm, rnn = (recall.train(kind, longest=40, steps=600, seed=0) for kind in ("lstm", "rnn"))
    assert recall.accuracy(lstm, 40) > 0.95
    assert recall.accuracy(rnn, 40) < 0.6
    assert recall.accuracy(rnn, 1) > recall.accuracy(rnn, 40) + 0.1  # it can learn the task, but not across the gap


def test_the_key_is_the_only_target(recall):
    ids, targets = recall.sample(5, 16, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape == (16, 7)
    assert (targets[:, :-1] == -100).all()
    assert torch.equal(targets[:, -1], ids[:, 0])
    assert (ids[:, 1:-1] >= recall.KEYS).all()
