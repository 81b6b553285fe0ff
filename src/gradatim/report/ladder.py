"""The ladder: several models trained on one text with one tokenizer, compared on the same held-out bytes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradatim import __version__
from gradatim.errors import DataError, Problem
from gradatim.report import figures, page
from gradatim.report.run import machine_facts

FILE = "ladder.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One model of the ladder and what was measured of it."""

    name: str
    run: str
    parameters: int
    seconds: float
    """Training alone, without evaluation."""
    tokens_per_second: float
    """Tokens learned from per second of training."""
    perplexity: float | None
    """Per token of the test text."""
    bits_per_byte: float | None
    """Of the test text."""
    by_seconds: list[tuple[float, float]] = field(default_factory=list)
    """(seconds of training, bits per byte of the validation text)."""
    by_bytes: list[tuple[float, float]] = field(default_factory=list)
    """(bytes of training text read, repetitions included; bits per byte of the validation text)."""
    completions: dict[str, str] = field(default_factory=dict)
    """What follows the prompt, by way of decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """All rungs, and what they share."""

    corpus: str
    sha256: str | None
    train_bytes: int
    test_bytes: int
    vocabulary: int
    prompt: str
    rungs: list[Rung]

    def save(self, directory: Path) -> None:
        """Write ``ladder.json``."""
        (directory / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(directory: Path) -> Ladder:
        """Read ``ladder.json``.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            facts: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
            return Ladder(**{**facts, "rungs": [Rung(**rung) for rung in facts["rungs"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                Problem(where=str(directory / FILE), what=f"this is not a ladder ({error})", attempt="gradatim demo")
            ) from None

    def best(self) -> int | None:
        """Index of the rung with the fewest bits per byte."""
        known = [(rung.bits_per_byte, i) for i, rung in enumerate(self.rungs) if rung.bits_per_byte is not None]
        return min(known)[1] if known else None


def overtaking(ladder: Ladder, bar: str) -> list[str]:
    """For every other rung with a curve, when it overtook ``bar`` on the validation text, or that it did not."""
    bars = [rung for rung in ladder.rungs if rung.name == bar and rung.by_seconds]
    if not bars:
        return []
    level = bars[0].by_seconds[-1][1]
    found = []
    for rung in ladder.rungs:
        if rung.name == bar or len(rung.by_seconds) < 2:
            continue
        name = rung.name[0].upper() + rung.name[1:]
        below = [seconds for seconds, bits in rung.by_seconds if bits < level]
        last = rung.by_seconds[-1]
        if below:
            found.append(f"{name} went below {bar}'s {level:.3f} bits per byte after {below[0]:.0f} s of training.")
        else:
            found.append(f"{name} did not reach {bar}'s {level:.3f} in its {last[0]:.0f} s; it ended at {last[1]:.3f}.")
    return found


def ladder_report(directory: Path) -> str:
    """A self-contained page about a ladder."""
    ladder = Ladder.load(directory)
    names = [rung.name for rung in ladder.rungs]
    rows = [[r.name, r.parameters, r.seconds, r.tokens_per_second, r.perplexity, r.bits_per_byte] for r in ladder.rungs]
    columns = ["rung", "parameters", "seconds", "tokens/s", "perplexity", "bits per byte"]
    sections = [
        page.section(
            "The ladder",
            page.table(columns, rows, ladder.best()),
            page.paragraph(
                f"All rungs read the same {ladder.train_bytes:,} bytes of training text through one vocabulary of "
                f"{ladder.vocabulary:,} byte pairs and are judged on the same {ladder.test_bytes:,} bytes, every token "
                "predicted once. Perplexity is per token; bits per byte also compare with models of other "
                "vocabularies. For n-grams the parameters are stored probabilities and weights."
            ),
        )
    ]
    judged = {r.name: r.bits_per_byte for r in ladder.rungs if r.bits_per_byte is not None}
    if judged:
        drawing = figures.bars(
            judged,
            title="Bits per byte of the test text by rung",
            x_label="bits per byte of the test text (less is better)",
        )
        sections.append(
            page.section(
                "Bits per byte", page.figure(drawing, "What it takes to write down the held-out text with each model.")
            )
        )
    bar = next((name for name in names if "Kneser-Ney" in name), "")
    by_seconds = {r.name: r.by_seconds for r in ladder.rungs if r.by_seconds}
    if by_seconds:
        drawing = figures.curves(by_seconds, title="Bits per byte against training time", log_x=True, order=names,
                                 x_label="seconds of training", y_label="bits per byte, validation text")  # fmt: skip
        sentences = " ".join(overtaking(ladder, bar))
        sections.append(
            page.section(
                "Against training time",
                page.figure(drawing, "Counting is done in a moment; networks keep learning."),
                page.paragraph(sentences),
            )
        )
    by_bytes = {r.name: [(n / 1e6, bits) for n, bits in r.by_bytes] for r in ladder.rungs if r.by_bytes}
    if by_bytes:
        drawing = figures.curves(by_bytes, title="Bits per byte against amount of text", log_x=True, order=names,
                                 x_label="megabytes of training text read, repetitions included",
                                 y_label="bits per byte, validation text")  # fmt: skip
        caption = (
            "N-grams counted afresh on an eighth, a quarter, a half and all of the text; "
            "networks as they read on, several times over."
        )
        sections.append(page.section("Against amount of text", page.figure(drawing, caption)))
    told = [[r.name, way, ladder.prompt + text] for r in ladder.rungs for way, text in r.completions.items()]
    if told:
        sections.append(page.section("One prompt, every rung", page.table(["rung", "decoding", "text"], told)))
    first = Path(ladder.rungs[0].run) if ladder.rungs else directory
    facts = [("corpus", ladder.corpus), ("sha256", ladder.sha256), *machine_facts(first)]
    sections.append(page.section("Conditions", page.facts(facts)))
    lead = (
        "From counting word pairs to a small Transformer: "
        "what each step buys on the same text, measured on this machine."
    )
    return page.page("Step by step", lead, sections, f"gradatim {__version__}")


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Nats per token as bits per byte of the text."""
    return nats_per_token * tokens / math.log(2) / text_bytes
