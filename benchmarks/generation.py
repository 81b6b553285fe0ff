"""Greedy generation with a key-value cache against Hugging Face's ``generate``: equal weights, equal tokens, side
by side.

A GPT-2 shape of random weights (6 layers, 6 heads, width 384, vocabulary 50,304) continues a prompt of 32 tokens by
128, batch 1 and 8, fp32 on both sides. Ours is the library's own ``Reader`` loop as ``gradatim complete`` runs it,
without turning ids into text.

    python benchmarks/generation.py
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import common
from gradatim.config.settings import GptConfig
from gradatim.decode.prompt import Reader
from gradatim.decode.sampling import Sampling, choose
from gradatim.models import build_model

PROMPT, NEW, VOCABULARY = 32, 128, 50_304


def models() -> tuple[torch.nn.Module, GPT2LMHeadModel]:
    """Ours, and Hugging Face's with our weights."""
    ours = build_model(GptConfig(d_model=384, n_layers=6, n_heads=6), VOCABULARY, 256).eval()
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=384, n_layer=6, n_head=6,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    mine = dict(ours.named_parameters())
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(mine["embed.tokens.weight"])
        theirs.transformer.wpe.weight.copy_(mine["embed.positions.weight"])
        theirs.transformer.ln_f.weight.copy_(mine["head.norm.weight"])
        theirs.transformer.ln_f.bias.copy_(mine["head.norm.bias"])
        for i, block in enumerate(theirs.transformer.h):
            for norm, name in ((block.ln_1, "norm1"), (block.ln_2, "norm2")):
                norm.weight.copy_(mine[f"blocks.{i}.{name}.weight"])
                norm.bias.copy_(mine[f"blocks.{i}.{name}.bias"])
            # Our rows are grouped by head (query, key, value), theirs by kind; their matrices are transposed.
            grouped = mine[f"blocks.{i}.attention.qkv.weight"].view(6, 3, 64, 384).transpose(0, 1).reshape(3 * 384, 384)
            block.attn.c_attn.weight.copy_(grouped.t())
            block.attn.c_attn.bias.copy_(
                mine[f"blocks.{i}.attention.qkv.bias"].view(6, 3, 64).transpose(0, 1).reshape(-1)
            )
            for linear, name in (
                (block.attn.c_proj, "attention.out"),
                (block.mlp.c_fc, "mlp.up"),
                (block.mlp.c_proj, "mlp.down"),
            ):
                linear.weight.copy_(mine[f"blocks.{i}.{name}.weight"].t())
                linear.bias.copy_(mine[f"blocks.{i}.{name}.bias"])
    return ours, theirs


@torch.inference_mode()
def generate_ours(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    reader = Reader(model, ids)  # type: ignore[arg-type]
    log_probs = reader.begin()
    rows, greedy = torch.arange(len(ids)), Sampling()
    for position in range(NEW):
        chosen = choose(log_probs, greedy, rows, position)
        if position == NEW - 1:
            return torch.cat([reader.ids, chosen[:, None]], 1)
        log_probs = reader.push(chosen)
    raise AssertionError


def generate_theirs(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)  # type: ignore[assignment,operator]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, theirs = models()
    rows: list[list[object]] = []
    for batch in (1, 8):
        ids = torch.randint(1, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        a, b = generate_ours(ours, ids), generate_theirs(theirs, ids)
        equal = float((a == b).double().mean())
        mine, other = [], []
        for _ in range(options.turns):
            started = time.perf_counter()
            generate_ours(ours, ids)
            middle = time.perf_counter()
            generate_theirs(theirs, ids)
            mine.append(batch * NEW / (middle - started))
            other.append(batch * NEW / (time.perf_counter() - middle))
        ratios = [x / y for x, y in zip(mine, other)]
        rows.append([batch, common.spread(mine), common.spread(other), common.spread(ratios), f"{equal:.1%}"])
    body = (
        f"{options.threads} threads, {options.turns} paired turns, fp32, prompt {PROMPT}, {NEW} new tokens, greedy.\n\n"
    )
    body += common.table(["batch", "gradatim, tokens/s", "Hugging Face, tokens/s", "ratio", "equal tokens"], rows)
    common.write_result("generation", "Generation with a key-value cache", body, "transformers")


if __name__ == "__main__":
    main()
