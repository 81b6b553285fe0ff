"""One pretraining step of a BERT against Hugging Face's, at equal shape, weights, rows and optimizer.

    python benchmarks/bert_step.py                          # needs the extra `hf`

A step is forward, both losses, backward and fused AdamW on rows of two segments, a tenth of them shorter than the
rest and padded, with 15 % of their tokens to be predicted; dropout 0. The peer is given our weights through an exported
directory and must agree on the loss. Then the two take turns; a ratio is that of one turn, the median over turns is
reported. Ours computes the output matrix at the blanks only, the peer at every position: that is compared, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import spread, table, write_result
from gradatim.config.settings import BertConfig
from gradatim.interop.huggingface.names import part, sources
from gradatim.interop.huggingface.settings import settings_json
from gradatim.models import build_model
from gradatim.models.bert import BERT
from gradatim.objectives.masked import Masked
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.masking import mask
from gradatim.text.tokenizer import Marks

SHAPES = {
    "bert-base": BertConfig(n_layers=12, d_model=768, n_heads=12, dropout=0.0),
    "bert-tiny": BertConfig(n_layers=2, d_model=128, n_heads=2, dropout=0.0),
}
VOCAB, MARKS = 30522, Marks(pad=0, begin=101, end=102, blank=103, unknown=100)


def make_rows(rows: int, context: int) -> Batch:
    """Random words, laid out and masked as pretraining does it."""
    generator = np.random.default_rng(0)
    lengths = np.where(generator.random(rows) < 0.1, generator.integers(8, context, rows), context)
    ids = generator.integers(1000, VOCAB, (rows, context))
    column, middle = np.arange(context), (lengths // 2)[:, None]
    ids[:, 0] = MARKS.begin
    ids = np.where((column == middle) | (column == lengths[:, None] - 1), MARKS.end, ids)
    ids = np.where(column < lengths[:, None], ids, MARKS.pad)
    keys = generator.integers(0, 2**63, rows).astype(np.uint64)
    masked, positions, targets = mask(ids, lengths, keys, MARKS, VOCAB, 0.15)
    segments = ((column > middle) & (column < lengths[:, None])).astype(np.int64)
    labels = generator.integers(0, 2, rows)
    return Batch(
        torch.from_numpy(masked), torch.from_numpy(targets), segments=torch.from_numpy(segments),
        lengths=torch.from_numpy(lengths), positions=torch.from_numpy(positions), labels=torch.from_numpy(labels),
    )  # fmt: skip


def peer(model: BERT, context: int) -> nn.Module:
    """The library's model with our weights, loaded by itself from a directory."""
    import json

    from safetensors.torch import save_file
    from transformers import BertForPreTraining

    config = model.config
    own = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for source in sources("bert", config, VOCAB, context):
        ours = own[source.ours].detach()
        tensors |= zip(source.theirs, part(source, ours[:VOCAB] if source.words else ours, config), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        facts = settings_json("bert", config, VOCAB, context, "float32", MARKS.end, MARKS.begin)
        (Path(folder) / "config.json").write_text(json.dumps(facts), encoding="utf-8")
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        found: nn.Module = BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa").train()
    return found


def losses(model: BERT, other: nn.Module, batch: Batch) -> dict[str, Callable[[], Tensor]]:
    """What each side computes of a batch."""
    objective = Masked(pairs=True)
    assert batch.positions is not None and batch.lengths is not None and batch.labels is not None
    labels = torch.full_like(batch.ids, IGNORE)
    row = torch.arange(len(batch.ids))[:, None].expand_as(batch.positions)
    known = batch.targets != IGNORE
    labels[row[known], batch.positions[known]] = batch.targets[known]
    attended = (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]).long()
    given = {
        "input_ids": batch.ids, "token_type_ids": batch.segments, "attention_mask": attended, "labels": labels,
        "next_sentence_label": batch.labels,
    }  # fmt: skip

    def ours() -> Tensor:
        terms, _ = objective(model, batch)
        return torch.stack([total / count for total, count in terms.values()]).sum()

    def theirs() -> Tensor:
        loss: Tensor = other(**given).loss
        return loss

    return {"gradatim": ours, "Hugging Face": theirs}


def timed(model: nn.Module, loss: Callable[[], Tensor], precision: str) -> Callable[[], float]:
    """A function that makes one step and tells its seconds."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = loss()
        found.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def measure(name: str, precision: str, options: argparse.Namespace) -> list[object]:
    model = build_model(SHAPES[name], VOCAB, options.context).train()
    assert isinstance(model, BERT)
    other, batch = peer(model, options.context), make_rows(options.batch, options.context)
    found = losses(model, other, batch)
    with torch.no_grad():
        equal = {side: float(loss()) for side, loss in found.items()}
    assert abs(equal["gradatim"] - equal["Hugging Face"]) < 1e-4, equal
    steps = {side: timed(m, found[side], precision) for side, m in (("gradatim", model), ("Hugging Face", other))}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(options.turns):
        for side in [*steps] if turn % 2 == 0 else [*reversed(steps)]:
            seconds[side].append(steps[side]())
    assert batch.lengths is not None
    tokens = int(batch.lengths.sum())
    ratios = [theirs / own for own, theirs in zip(seconds["gradatim"], seconds["Hugging Face"])]
    speeds = [spread([tokens / s for s in times]) for times in seconds.values()]
    print(name, precision, *speeds, spread(ratios), statistics.median(ratios), flush=True)
    return [name, precision, *speeds, spread(ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="bert-base,bert-tiny", help="which of the published shapes")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(name, precision, options)
        for name in options.shapes.split(",")
        for precision in options.precisions.split(",")
    ]
    body = f"""{options.batch} rows of at most {options.context} tokens, vocabulary {VOCAB:,}; forward, both losses,
backward and fused AdamW; {options.threads} threads, {options.turns} turns. Tokens per second without padding, and the
ratio of ours to the peer's of the same turn, as median (least-most). Seeds: weights 0, rows 0.

{table(["shape", "precision", "gradatim", "Hugging Face", "ratio"], rows)}"""
    write_result("bert_step", "Pretraining step of a BERT", body, "transformers")


if __name__ == "__main__":
    main()
