"""``gradatim rehearse RECIPE --rank R --world N``: one rank of a run of any size, without the cluster.

The rank's real model and optimizer are built on fake devices and make a step of the real schedule. tp and pp are the
layout's; dp is what is left of the world, unless it is given, and then all three must fill the world.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gradatim.cli.auto import settled
from gradatim.cli.output import Table, Verb, emit, json_option, overrides_argument, say
from gradatim.config import load
from gradatim.config.derived import world_size
from gradatim.config.grid import place_text
from gradatim.config.rules_pairs import is_pairs
from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.parallel.rehearse import Rehearsal

GIB = 1 << 30


@click.command(cls=Verb)
@click.argument("recipe")
@click.option("--rank", required=True, metavar="R", help="Which rank is rehearsed, from 0.")
@click.option("--world", required=True, metavar="N", help="Ranks in all: tp · pp · dp; dp is what tp · pp leave.")
@click.option(
    "--network",
    type=click.Choice(["nccl", "gloo"]),
    default="nccl",
    show_default=True,
    help="Collectives as GPUs make them, or as CPUs do, where ranks exchange parts directly.",
)
@overrides_argument
@json_option
def command(
    recipe: str, rank: str, world: str, network: str, overrides: dict[str, str], as_json: bool
) -> None:  # fmt: skip
    """Rehearse one rank of RECIPE: its model and optimizer on fake devices, a real step, bytes and collectives."""
    config, number = _fitted(recipe, overrides, rank, world)
    vocab_size = _vocabulary(config)

    from gradatim.parallel.rehearse import rehearse

    found = rehearse(config, vocab_size, number, network="gloo" if network == "gloo" else "nccl")
    emit(found, as_json, lambda: _tables(recipe, config, found))


def _fitted(recipe: str, overrides: dict[str, str], rank_text: str, world_text: str) -> tuple[RunConfig, int]:
    """The config whose layout fills the world, and the rank.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems: list[Problem] = []
    rank, world = _whole("rank", rank_text, 0, problems), _whole("world", world_text, 1, problems)
    loaded = load(recipe, overrides)
    if loaded.auto is not None and world is not None and not loaded.problems:
        loaded = replace(loaded, config=settled(loaded, world_text, say), auto=None)
    layout = loaded.config.layout
    if world is not None and "layout.dp" not in overrides and layout.tp > 0 and layout.pp > 0:
        left, rest = divmod(world, layout.tp * layout.pp)
        if rest == 0 and left != layout.dp:
            loaded = load(recipe, {**overrides, "layout.dp": str(left)})
            layout = loaded.config.layout
    problems += loaded.problems
    if world is not None and not loaded.problems and world_size(layout) != world:
        model = layout.tp * layout.pp
        fits = [model * n for n in sorted({max(world // model, 1), world // model + 1})]
        dp = f" · dp {layout.dp}" if "layout.dp" in overrides else ""
        problems.append(
            Problem(
                where="--world",
                what="the layout does not fill the world",
                got=f"{world}, and tp {layout.tp} · pp {layout.pp}{dp} = {world_size(layout) if dp else model}",
                allowed=str(world_size(layout)) if dp else f"multiples of {model}: {', '.join(map(str, fits))}, …",
                attempt=f"--world {world_size(layout) if dp else fits[-1] if fits[-1] <= world else fits[0]}",
            )
        )
    if rank is not None and world is not None and rank >= world:
        problems.append(
            Problem(
                where="--rank",
                what="there is no such rank in this world",
                got=str(rank),
                allowed=f"0 … {world - 1}",
                attempt=f"--rank {world - 1}",
            )
        )
    if not loaded.problems and isinstance(loaded.config.model, NgramConfig):
        problems.append(
            Problem(
                where="model.kind",
                what="n-grams are counted, there is no step to rehearse",
                got="ngram",
                allowed="a network",
                attempt="gradatim rehearse gpt --rank 0 --world 1",
            )
        )
    tuned = loaded.config.task.kind != "none"
    if not loaded.problems and (is_pairs(loaded.config.data) or tuned):
        what = "rows of a task" if tuned else "pairs"
        problems.append(
            Problem(
                where="task.kind" if tuned else "model.kind",
                what=f"{what} differ in length from step to step; only steps of one shape are rehearsed",
                got=loaded.config.task.kind if tuned else loaded.config.model.kind,
                allowed="a language model",
                attempt="gradatim rehearse gpt --rank 0 --world 1",
            )
        )
    if problems:
        raise ConfigError(*problems)
    assert rank is not None
    for note in (*loaded.notes, *loaded.shortened):
        say(f"note: {note}")
    return loaded.config, rank


def _whole(option: str, text: str, least: int, problems: list[Problem]) -> int | None:
    """A count as it was typed, or None and a problem."""
    if re.fullmatch(r"[0-9]{1,7}", text.strip()) and int(text) >= least:
        return int(text)
    problems.append(
        Problem(
            where=f"--{option}",
            what=f"this must be a whole number from {least} to 9999999",
            got=text,
            allowed=f"{least}, {least + 1}, {least + 2}, …",
            attempt=f"--{option} {least}",
        )
    )
    return None


def _vocabulary(config: RunConfig) -> int:
    """As many words as the tokenizer may have where the config says so; else as many as its text has."""
    tokenizer = config.data.tokenizer
    if tokenizer.kind in ("bpe", "wordpiece") and tokenizer.vocab_size is not None:
        return tokenizer.vocab_size
    from gradatim.text.prepare import prepare

    return prepare(config.data, say=say).tokenizer.vocab_size


def _tables(recipe: str, config: RunConfig, found: Rehearsal) -> list[str | Table]:
    """Where the rank stands, what it holds, what it says."""
    layout = config.layout
    layers = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found.layout["layers"])
    head = [
        f"{recipe}: {place_text(found.layout['rank'], layout)} of {world_size(layout)}"
        f" (tp {layout.tp} × pp {layout.pp} × dp {layout.dp}), layers {layers}",
        f"{found.parameters:,} parameters; {found.microbatches:,} microbatches a step",
    ]
    if found.rehearsed_microbatches < found.microbatches:
        head[1] += (
            f", of which {found.rehearsed_microbatches:,} were played: no action of the others finds the rank"
            " in a situation that was not met"
        )
    rows: list[list[object]] = [
        ["weights", found.weights_bytes],
        ["gradients", found.gradient_bytes],
        ["optimizer", found.optimizer_bytes],
        ["activations, at their peak", found.peak_activation_bytes],
        *([f"  {kind}", size] for kind, size in found.activation_bytes.items()),
        ["everything, at its peak", found.peak_bytes],
    ]
    memory = Table(["held", "bytes", "GiB"], [[name, size, _gib(size)] for name, size in rows])
    said = Table(
        ["collective", "group", "ranks", "bytes of one", "a step", "GiB a step"],
        [
            [each.kind, each.group, _ranks(each.group, found), each.bytes, each.count, _gib(each.bytes * each.count)]
            for each in found.collectives
        ],
    )
    parts: list[str | Table] = [*head, "", memory]
    return [*parts, "", said] if said.rows else parts


def _ranks(group: str, found: Rehearsal) -> int:
    sizes = {"ends": 2, "world": found.layout["world"]}
    return int(sizes.get(group) or found.layout[group])


def _gib(size: object) -> float:
    assert isinstance(size, int)
    return round(size / GIB, 3)
