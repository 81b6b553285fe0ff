"""``gradatim plan MODEL CLUSTER``: every legal layout's time and memory, the fastest that fit, why, and how sure.

MODEL is a recipe or an inline shape (``gpt:n_layers=80,d_model=12288,n_heads=96,vocab_size=51200``), CLUSTER a packaged
cluster or a YAML file, such as ``gradatim calibrate`` writes. What is fixed by an option is not searched; a layout that
is fixed altogether (tp, pp, dp, microbatch) is predicted even where it does not fit. Several batches or numbers of
devices, or a knob to compare, make a curve of the best at each.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say, write_file
from gradatim.errors import ConfigError

if TYPE_CHECKING:
    from gradatim.cli.plan_options import Asked
    from gradatim.config.settings import LayoutConfig
    from gradatim.plan.search import Found
    from gradatim.plan.sweep import Training

File = click.Path(path_type=Path)


def _show_cluster(ctx: click.Context, _param: click.Parameter, name: str | None) -> None:
    """Print a packaged cluster's file, and nothing else."""
    from gradatim.plan.cluster import packaged

    if name is not None:
        print(packaged(name).decode().rstrip())
        ctx.exit()


@click.command(cls=Verb)
@click.argument("model")
@click.argument("cluster")
@click.option("--global-batch", metavar="B,…", help="Sequences per step; several are compared [the recipe's].")
@click.option("--gpus", metavar="N,…", help="Devices to use; several are compared.")
@click.option("--context", metavar="S", help="Tokens per sequence, in place of the recipe's.")
@click.option("--tp", metavar="T", help="Fix the tensor-parallel size.")
@click.option("--pp", metavar="P", help="Fix the pipeline-parallel size.")
@click.option("--dp", metavar="D", help="Fix the data-parallel size.")
@click.option("--chunks", metavar="V", help="Fix the model chunks per rank.")
@click.option("--schedule", metavar="NAME", help="Fix the schedule: gpipe, 1f1b, interleaved, zero-bubble.")
@click.option("--microbatch", metavar="N", help="Fix the sequences per microbatch.")
@click.option("--recompute", metavar="NAME", help="Fix what is computed again: none, selective, full.")
@click.option("--sequence-parallel", metavar="BOOL", help="Fix sequence parallelism: true or false.")
@click.option("--zero", metavar="N", help="Fix the ZeRO stage: 0 to 3.")
@click.option("--top", default="10", show_default=True, metavar="K", help="Layouts to show.")
@click.option("--stack", metavar="any", help="Search what the cluster's software cannot do, too.")
@click.option("--by", metavar="KNOB", help="Compare the best layouts with each value of tp, pp, microbatch, …")
@click.option("--tokens", metavar="N", help="Tell time and GPU hours of a training on so many tokens: 300e9.")
@click.option("--critical-batch", metavar="B", help="Sequences per step from which a token teaches half as much.")
@click.option(
    "--emit", "trainer", metavar="TRAINER",
    help="Print the fastest for gradatim, megatron, torchtitan or deepspeed, and nothing else.",
)  # fmt: skip
@click.option("--svg", type=File, metavar="FILE", help="Draw the timeline, memory and every knob, or the curves.")
@click.option("--html", type=File, metavar="FILE", help="Likewise as a page, with the table.")
@click.option("--hardware-flops", is_flag=True, help="Count what is computed again in the curves that are drawn.")
@click.option(
    "--show-cluster", metavar="NAME", is_eager=True, expose_value=False, callback=_show_cluster,
    help="Print a packaged cluster's file to write one's own from, and nothing else.",
)  # fmt: skip
@json_option
def command(
    model: str,
    cluster: str,
    trainer: str | None,
    svg: Path | None,
    html: Path | None,
    hardware_flops: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """Find the fastest layouts of MODEL on CLUSTER that fit, and say why."""
    from gradatim.cli.plan_options import read_options

    files = {"svg": svg, "html": html}
    asked = read_options(model, cluster, {**options, "emit": trainer}, files)
    for note in asked.notes:
        say(f"note: {note}")
    if asked.swept:
        _curve(asked, files, hardware_flops, as_json)
    else:
        _plan(asked, files, as_json)


# --------------------------------------------------------------------------- one search


def _plan(asked: Asked, files: dict[str, Path | None], as_json: bool) -> None:
    from gradatim.cli.plan_hints import nothing
    from gradatim.plan.emit import emit as emitted
    from gradatim.plan.explain import knob_costs, layout_document, measured_document, remarks
    from gradatim.plan.picture import plan_html, plan_svg
    from gradatim.plan.search import predicted, search
    from gradatim.plan.sure import close_to_full, how_sure, others_beyond
    from gradatim.plan.words import GIB

    shape, machine, devices, batch = asked.model, asked.cluster, asked.gpus[0], asked.batches[0]
    found = search(shape, machine, devices, batch, fixed=asked.fixed, top=asked.top, stack=asked.limits)
    found.best = predicted(found, asked.fixed)
    if not found.best:
        raise ConfigError(nothing(asked, found))
    winner, trained = found.best[0], _trainings(asked, found)
    text, warnings = None, []
    if asked.trainer:
        text = emitted(asked.trainer, shape, asked.config, winner.layout, batch, machine)
        warnings += ["this layout needs more memory than a device has"] * (not winner.fits)
        warnings += _too_much_for_ours(asked, winner.layout) if asked.trainer == "gradatim" else []
    layouts = [layout_document(shape, machine, candidate, batch) for candidate in found.best]
    document: dict[str, Any] = {
        "model": asked.names[0],
        "cluster": asked.names[1],
        "gpus": devices,
        "global_batch": batch,
        "context": shape.context,
        "parameters": shape.parameter_count,
        "layouts": [layout | ({"training": asdict(whole)} if whole else {}) for layout, whole in zip(layouts, trained)],
        "considered": found.considered,
        "rejected": dict(found.rejected),
        "search_seconds": found.seconds,
        "device": {"name": machine.device.name, "memory_gib": machine.device.memory / GIB},
        "error_seen": machine.stack.error,
        "measured": measured_document(machine),
        **(
            {
                "how_sure": [
                    *close_to_full(shape, machine, found, batch),
                    how_sure(machine, winner.layout),
                    *others_beyond(machine, found),
                ],
                "knobs": knob_costs(shape, machine, found, batch),
            }
            if as_json
            else {}
        ),
        "notes": asked.notes,
        **({"emitted": text, "warnings": warnings} if text is not None else {}),
    }
    for kind, draw in (("svg", plan_svg), ("html", plan_html)):
        if path := files[kind]:
            named = f"{asked.names[0]} on {asked.names[1]}"
            _write(path, draw(shape, machine, found, batch, fixed=asked.fixed, stack=asked.limits, name=named))
    if text is not None and not as_json:
        for line in remarks(shape, machine, found, batch)[:3]:
            say(line)
    for warning in warnings:
        say(f"warning: {warning}")
    emit(document, as_json, lambda: text.rstrip() if text is not None else _page(asked, found, trained))


def _too_much_for_ours(asked: Asked, layout: LayoutConfig) -> list[str]:
    """A warning where our own trainer has no room for what was planned with another's memory, and what to try."""
    from gradatim.cli.plan_hints import more_devices
    from gradatim.plan.emit import PRECISION
    from gradatim.plan.ours import OURS, our_twins, recount, with_our_stack
    from gradatim.plan.search import search

    shape, machine, devices, batch = asked.model, asked.cluster, asked.gpus[0], asked.batches[0]
    precision = asked.config.precision if asked.config else PRECISION
    counted = recount(machine, shape, layout, batch, precision)
    if counted.fits:
        return []
    own = with_our_stack(machine, precision)
    if not search(shape, own, devices, batch, fixed=asked.fixed, top=1).best:
        free = replace(asked.fixed, tp=None, pp=None, dp=None)
        more = more_devices(asked, own, free, own.stack)
        attempt = f"--gpus {more}, since nothing fits fewer" if more else "a smaller model, or full recomputation"
    elif machine.stack.layers == "gradatim":
        attempt = f"a copy of {asked.names[1]} with stack.element_bytes: {own.stack.element_bytes}"
    elif twins := our_twins(machine):
        attempt = f"gradatim plan {asked.names[0]} {' or '.join(twins)} …, whose memory is our own trainer's"
    else:
        attempt = f"a cluster file with this hardware and the stack of {OURS}"
    return [f"{counted.text}. Try: {attempt}"]


def _trainings(asked: Asked, found: Found) -> list[Training | None]:
    """What a whole training takes with each layout, where tokens were asked for."""
    from gradatim.plan.sweep import training

    if not asked.tokens:
        return [None] * len(found.best)
    gpus, batch, context = asked.gpus[0], asked.batches[0], asked.model.context
    return [
        training(c.prediction.seconds, gpus, batch, context, asked.tokens, asked.critical_batch) for c in found.best
    ]


def _page(asked: Asked, found: Found, trained: list[Training | None]) -> list[str | Table]:
    from gradatim.plan.explain import (
        CAUSES,
        RANKING,
        ranking,
        rejections,
        remarks,
        sequence_text,
        size_text,
        time_split,
    )
    from gradatim.plan.words import device_text

    shape, machine, batch = asked.model, asked.cluster, asked.batches[0]
    text = sequence_text(shape)
    title = f"{size_text(shape)}, {device_text(asked.gpus[0])}, {batch:,} {'' if shape.one_stage else 'x '}{text}"
    rows = [tuple(row) for row in ranking(shape, machine, found.best, batch)]
    parts: list[str | Table] = [
        Table(tuple(RANKING), rows, title=title),
        "",
        Table(
            ("rank", *(f"{cause} %" for cause in CAUSES)), [tuple(row) for row in time_split(found.best)], title="time"
        ),
        "",
        *remarks(shape, machine, found, batch),
    ]
    if whole := trained[0]:
        parts.append(
            f"training: {whole.steps:,.0f} steps, {whole.tokens / 1e9:,.4g} billion tokens, "
            f"{whole.days:,.4g} days, {whole.gpu_hours:,.0f} GPU hours"
        )
    left_out = "; ".join(rejections(found)) or "none"
    return [*parts, "", f"considered {found.considered:,} layouts in {found.seconds:.2f} s; left out: {left_out}"]


# --------------------------------------------------------------------------- a curve


def _curve(asked: Asked, files: dict[str, Path | None], hardware: bool, as_json: bool) -> None:
    from gradatim.plan import sweep as curves
    from gradatim.plan.explain import measured_document, sequence_text, size_text
    from gradatim.plan.sure import how_sure
    from gradatim.plan.words import GIB

    shape, machine = asked.model, asked.cluster
    swept = curves.sweep(
        shape,
        machine,
        asked.gpus,
        asked.batches,
        fixed=asked.fixed,
        stack=asked.limits,
        by=asked.by,
        tokens=asked.tokens,
        critical_batch=asked.critical_batch,
    )
    document = {
        "model": asked.names[0],
        "cluster": asked.names[1],
        "gpus": asked.gpus,
        "global_batch": asked.batches,
        "context": shape.context,
        "parameters": shape.parameter_count,
        "by": swept.by,
        "tokens": asked.tokens,
        "critical_batch": asked.critical_batch,
        "points": curves.sweep_document(shape, machine, swept),
        "device": {"name": machine.device.name, "memory_gib": machine.device.memory / GIB},
        "measured": measured_document(machine),
        "error_seen": machine.stack.error,
        "notes": asked.notes,
    }
    for kind, draw in (("svg", curves.sweep_svg), ("html", curves.sweep_html)):
        if path := files[kind]:
            _write(path, draw(shape, machine, swept, name=f"{asked.names[0]} on {asked.names[1]}", hardware=hardware))

    def page() -> list[str | Table]:
        title = f"{size_text(shape)}, {'' if shape.one_stage else 'sequences of '}{sequence_text(shape)}"
        rows = [tuple(map(_whole_if_large, row)) for row in curves.sweep_rows(shape, machine, swept)]
        largest = max((point for point in swept.points if point.candidate), key=lambda point: point.gpus)
        assert largest.candidate
        return [
            Table(tuple(curves.sweep_columns(swept)), rows, title=title),
            "",
            *curves.sweep_remarks(shape, machine, swept),
            how_sure(machine, largest.candidate.layout),
        ]

    emit(document, as_json, page)


def _whole_if_large(cell: Any) -> Any:
    """Steps and GPU hours are not told in powers of ten; tokens are."""
    return round(cell) if isinstance(cell, float) and 1000 <= cell < 1e9 else cell


def _write(path: Path, text: str) -> None:
    write_file(path, text)
    say(f"wrote {path}")
