"""Where a translator looked: heat maps as PNG, SVG or a page, the matrix as JSON, links of words as Pharaoh pairs.

A row is a token of the translation, a column one of the source; a row's weights add up to 1. Models with several
attentions (layers, heads) have a map of each beside the mean of all. The darkest colour of a map is its largest
weight, so that attention spread over many tokens is seen as well. Pharaoh's ``3-1`` links source word 3 with target
word 1, counted from 0: each target word with the source word that its pieces look at most, pieces of a word being
added up on the source's side and averaged on the target's (Zenkel et al., 2019); nothing links to the end mark.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")

from matplotlib.figure import Figure

from gradatim.report import page
from gradatim.report.figures import STYLE
from gradatim.text.tokenizer import BOUNDARY

LABELLED = 80
"""Tokens of a side up to which each is written beside its row or column; beyond, labels would not be legible."""
HEADS_ACROSS = 4
FORMATS = (".png", ".svg", ".html", ".json", ".txt", ".pharaoh")


@dataclass(frozen=True, slots=True)
class Looked:
    """The attention of one translation."""

    source: list[str]
    """Its tokens as text, the end mark included; a word's first piece begins with a space (but for the first word)."""
    target: list[str]
    names: tuple[str, ...]
    """Of each attention."""
    weights: NDArray[np.float64]
    """``[names t s]``."""
    sentence: str = ""
    """The source as it was given."""
    cut: int = 0
    """Tokens of the source that were not read, and are not here."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """``[t s]``: of all attentions."""
        found: NDArray[np.float64] = self.weights.mean(0)
        return found

    def as_json(self, heads: bool = False) -> dict[str, Any]:
        """Tokens and mean weights; with ``heads`` those of each attention too, where there are several."""
        document: dict[str, Any] = {
            "source": [token.strip() for token in self.source],
            "target": [token.strip() for token in self.target],
            "weights": self.mean.tolist(),
        }
        if heads and len(self.names) > 1:
            document["heads"] = {name: table.tolist() for name, table in zip(self.names, self.weights, strict=True)}
        return document

    def pharaoh(self, pieces: str) -> str:
        """``0-0 1-2 …`` between words; ``pieces`` is the tokenizers' kind, which tells where words begin."""
        ended = self.target[-1:] == self.source[-1:]  # by the end mark, which a translation may not have reached
        source, target = words_of(self.source[:-1], pieces), words_of(self.target[: -1 if ended else None], pieces)
        links = []
        for number, places in enumerate(target):
            row = self.mean[places].mean(0)
            scores = [row[columns].sum() for columns in source]
            if scores:
                links.append(f"{int(np.argmax(scores))}-{number}")
        return " ".join(links)


def _begins_word(token: str, pieces: str) -> bool:
    if pieces == "wordpiece":
        return not token.startswith("##")
    return pieces == "word" or token[:1].isspace()


def words_of(tokens: Sequence[str], pieces: str) -> list[list[int]]:
    """The places of each word's pieces: every token is a word, ``##`` goes on with one, or a space begins one."""
    found: list[list[int]] = []
    for place, token in enumerate(tokens):
        if not found or _begins_word(token, pieces):
            found.append([])
        found[-1].append(place)
    return found


def write(path: Path, looked: Sequence[Looked | None], pieces: str) -> list[str]:
    """Write the attention of some translations in the format that the path's ending names; what is to be said of it.

    ``.png`` and ``.svg`` show one translation, the others any number. Where a sentence was empty (None) a ``.json`` has
    null and a ``.txt`` an empty line, so that entries and lines are those of the sentences.
    """
    kind, notes = path.suffix.lower(), []
    there = [each for each in looked if each is not None]
    longest = max((max(len(each.source), len(each.target)) for each in there), default=0)
    if kind in (".png", ".svg", ".html") and longest > LABELLED:
        notes.append(
            f"{path}: {longest} tokens on a side are too many to label each ({LABELLED} at most): some are left "
            "unlabelled; a .json holds them all"
        )
    if kind == ".json":
        rows = [None if each is None else each.as_json(heads=True) for each in looked]
        path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", "utf-8")
    elif kind in (".txt", ".pharaoh"):
        lines = ["" if each is None else each.pharaoh(pieces) for each in looked]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    elif kind == ".html":
        path.write_text(attention_page(there, pieces), "utf-8")
    else:
        path.write_bytes(draw(there[0], kind[1:], pieces))
    return notes


def draw(looked: Looked, kind: str, pieces: str) -> bytes:
    """A heat map of the mean, and below it one of each attention where there are several; png or svg."""
    several = len(looked.names) > 1
    rows = -(-len(looked.names) // HEADS_ACROSS) if several else 0
    width = min(max(5.6, 0.34 * len(looked.source) + 2.2), 30.0)
    height = min(max(4.0, 0.3 * len(looked.target) + 1.4), 26.0)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(width, height + 2.2 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, HEADS_ACROSS, height_ratios=[height, *[2.2] * rows])
        axes = figure.add_subplot(grid[0, :])
        image = _map(axes, looked.mean)
        figure.colorbar(image, ax=axes, label="weight", pad=0.01, fraction=0.6 / width, aspect=30)
        for axis, tokens in ((axes.xaxis, looked.source), (axes.yaxis, looked.target)):
            step = -(-len(tokens) // LABELLED)
            places = list(range(0, len(tokens), step))
            names = labels(tokens, pieces)
            axis.set_ticks(places, [names[place] for place in places])
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", rotation=60)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("left")
        notes = [f"{looked.cut:,} further tokens of the source were not read"] if looked.cut else []
        if several:
            notes.append(f"mean of {len(looked.names)} heads; below, each layer and head (L, H) and its largest weight")
        axes.set_xlabel("\n".join(notes))
        if several:
            for place, (name, table) in enumerate(zip(looked.names, looked.weights, strict=True)):
                small = figure.add_subplot(grid[1 + place // HEADS_ACROSS, place % HEADS_ACROSS])
                _map(small, table)
                small.set_xticks([])
                small.set_yticks([])
                short = name.replace("layer ", "L").replace("head ", "H")  # long names would meet over narrow maps
                small.set_title(f"{short}: {table.max():.2f}", fontsize=7)
        buffer = io.BytesIO()
        facts = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=110, metadata=facts)
    return buffer.getvalue()


def _map(axes: Any, table: NDArray[np.float64]) -> Any:
    for side in axes.spines.values():
        side.set_visible(True)
    return axes.imshow(table, cmap="Blues", vmin=0.0, vmax=float(table.max()), aspect="auto", interpolation="nearest")


def labels(tokens: Sequence[str], pieces: str) -> list[str]:
    """Tokens as labels: pieces that go on with a word begin with a dot, the end mark is called (end)."""
    dotted = pieces in ("bpe", "char") and any(len(token.strip()) > 1 for token in tokens if token != BOUNDARY)
    found = []
    for place, token in enumerate(tokens):
        name = token.strip().replace("$", r"\$") or "␣"  # matplotlib would read dollar signs as mathematics
        name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
        if token == BOUNDARY:
            name = "(end)"
        elif pieces == "wordpiece" and name.startswith("##"):
            name = f"·{name[2:]}"
        elif dotted and place and token[:1].isalnum() and tokens[place - 1][-1:].isalnum():
            name = f"·{name}"
        found.append(name)
    return found


def attention_page(looked: Sequence[Looked], pieces: str) -> str:
    """All maps on one page."""
    sections = []
    for each in looked:
        drawing = draw(each, "svg", pieces).decode("utf-8")
        text = " ".join(each.sentence.split())
        caption = "Rows: tokens of the translation. Columns: tokens of the source. Darker: more weight."
        if pieces != "word":
            caption += " A dot before a token: it goes on with the word."
        sections.append(page.section(text, page.figure(drawing[drawing.index("<svg") :], caption)))
    return page.page("Attention", "Where the model looked while it wrote.", sections, "gradatim translate --attention")
