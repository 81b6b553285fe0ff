"""One training step of a GPT against nanoGPT and Hugging Face GPT-2, at equal shape, weights and optimizer.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/gpt_step.py --nanogpt nanoGPT                          # needs the extra `hf`

A step is forward, backward and fused AdamW on random ids; dropout 0. First the three are given the same weights and
must agree on the loss. Then they take turns (ours, nanoGPT, Hugging Face, ours, …), so that whatever else the machine
does falls on all; a ratio is that of one turn, and the median over turns is reported. Each side runs as its authors
would run it: under bf16 torch's autocast, under compile the whole model for the peers, every block for us.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import Kept, language_model, spread, table, write_result
from gradatim.config.settings import GptConfig

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, VOCAB = 6, 6, 384, 256, 8, 50304
Step = Callable[[Tensor, Tensor], Tensor]


def ours() -> tuple[nn.Module, Step]:
    config = GptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS)
    model = language_model(config, VOCAB, CONTEXT)
    return model, lambda ids, targets: model.nll(model.hidden(ids)[0], targets) / targets.numel()


def nanogpt(checkout: Path) -> tuple[nn.Module, Step]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=CONTEXT, vocab_size=VOCAB, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, dropout=0.0, bias=True
    )
    model: Any = module.GPT(config)
    return model, lambda ids, targets: model(ids, targets)[1]


def hugging_face() -> tuple[nn.Module, Step]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    loss = nn.functional.cross_entropy
    return model, lambda ids, targets: loss(model(ids).logits.view(-1, VOCAB), targets.view(-1))


def gpt2_names(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our weights under the names that GPT-2's release, nanoGPT and Hugging Face share, matrices ``[out, in]``."""
    places = {"norm1": "ln_1", "attention.out": "attn.c_proj", "norm2": "ln_2", "mlp.up": "mlp.c_fc"}
    places |= {"mlp.down": "mlp.c_proj", "attention.qkv": "attn.c_attn"}
    whole = {"embed.tokens": "wte", "embed.positions": "wpe", "head.norm": "ln_f"}
    for name, tensor in weights.items():
        place, end = name.rsplit(".", 1)
        if place in whole:
            yield f"transformer.{whole[place]}.{end}", tensor
            continue
        _, layer, inner = place.split(".", 2)
        if inner == "attention.qkv":  # ours: head by head (q k v); theirs: q of all heads, then k, then v
            by_head = tensor.view(HEADS, 3, WIDTH // HEADS, *tensor.shape[1:])
            tensor = by_head.transpose(0, 1).reshape(tensor.shape)
        yield f"transformer.h.{layer}.{places[inner]}.{end}", tensor


def copy_weights(source: nn.Module, peer: nn.Module) -> None:
    """Give a peer our weights; Hugging Face stores the blocks' matrices the other way round."""
    own = dict(peer.named_parameters())
    given = dict(gpt2_names(dict(source.named_parameters())))
    assert own.keys() == given.keys(), own.keys() ^ given.keys()
    conv = {f"{name}.weight" for name, module in peer.named_modules() if type(module).__name__ == "Conv1D"}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name].t() if name in conv else given[name])


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def timed_step(model: nn.Module, loss_of: Step, precision: str) -> Callable[[], float]:
    """A function that makes one step and tells its seconds."""
    optimizer = torch.optim.AdamW(decayed(model), lr=1e-4, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCAB, (BATCH, CONTEXT + 1), generator=generator)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(inputs, targets)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def sides(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Step]]:
    """The three models with equal weights, checked to have equal losses."""
    found = {"gradatim": ours(), "nanoGPT": nanogpt(options.nanogpt), "Hugging Face": hugging_face()}
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (2, CONTEXT), generator=generator)
    losses = {}
    for name, (model, loss_of) in found.items():
        if name != "gradatim":
            copy_weights(found["gradatim"][0], model)
        with torch.no_grad():
            losses[name] = loss_of(ids, ids).item()
    assert abs(losses["gradatim"] - losses["Hugging Face"]) < 1e-4, losses
    assert abs(losses["gradatim"] - losses["nanoGPT"]) < 1e-3, losses  # its GELU is the exact one, not GPT-2's
    print("losses from equal weights:", losses, flush=True)
    return found


def measure(options: argparse.Namespace, precision: str, mode: str) -> list[object]:
    found = sides(options)
    steps: dict[str, Callable[[], float]] = {}
    for name, (model, loss_of) in found.items():
        if mode == "compiled":
            if name == "gradatim":
                for block in model.blocks:  # type: ignore[union-attr]
                    block.compile()
            else:
                model.compile()
        steps[name] = timed_step(model, loss_of, precision)
    for _ in range(2):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.turns):
        for name in [*steps] if turn % 2 == 0 else [*reversed(steps)]:
            seconds[name].append(steps[name]())
    peers = [name for name in steps if name != "gradatim"]
    faster = min(peers, key=lambda name: statistics.median(seconds[name]))
    ratios = [theirs / own for own, theirs in zip(seconds["gradatim"], seconds[faster])]
    speeds = {name: spread([BATCH * CONTEXT / s for s in times]) for name, times in seconds.items()}
    row: list[object] = [precision, mode, *speeds.values(), faster, spread(ratios)]
    print(row, flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--keep", type=Path, help="a file that collects the rows when they are measured one by one")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    kept = Kept(options.keep)
    for precision in options.precisions.split(","):
        for mode in options.modes.split(","):
            kept.add(row=measure(options, precision, mode))
    rows = [measured["row"] for measured in kept.rows]
    body = f"""{LAYERS} layers, {HEADS} heads, width {WIDTH}, context {CONTEXT}, batch {BATCH}, vocabulary {VOCAB};
forward, backward and fused AdamW; {options.threads} threads, {options.turns} turns. Tokens per second and ratio as
median (least-most); the ratio is ours to the faster peer's of the same turn. Seeds: weights 0, ids 0.

{table(["precision", "mode", "gradatim", "nanoGPT", "Hugging Face", "faster peer", "ratio"], rows)}"""
    write_result("gpt_step", "Training step of a GPT", body, "transformers")


if __name__ == "__main__":
    main()
