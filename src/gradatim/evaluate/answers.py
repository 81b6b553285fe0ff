"""What a fine-tuned model says of rows, and how much of it is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.config.settings import RunConfig
from gradatim.evaluate import metrics
from gradatim.models.neural import NeuralModel
from gradatim.objectives.tuning import Tuning
from gradatim.text.examples import Answer, Example
from gradatim.text.prepare_task import NO_ANSWER, Encoded, encode
from gradatim.text.task_rows import TaskRows
from gradatim.text.tokenizer import Tokenizer

ROWS = 32
"""Examples read side by side."""
LONGEST_ANSWER = 30
"""Tokens of the longest answer that is considered, as usual for spans (Devlin et al. 2018's program)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model says of an example."""

    probabilities: Float[np.ndarray, "*n o"]
    """Of each label, of each label for each word, or of each choice; empty for numbers and spans. NaN for a word that
    was not read: the context cut it off, or it has no tokens."""
    value: float = 0.0
    """regress: the number. span: the probability of the answer's two ends."""
    span: tuple[int, int] = (0, 0)
    """span: the passage's characters from … to; equal where it does not answer."""


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model with what is needed to ask it."""

    model: NeuralModel
    config: RunConfig
    tokenizer: Tokenizer
    labels: tuple[str, ...]

    def answer(self, found: Sequence[Example]) -> tuple[list[Answered], float | None, TaskRows]:
        """What the model says of each example; the mean loss, where all have labels; and the rows it read."""
        encoded = encode(found, self.tokenizer, self.config, self.labels)
        rows = TaskRows(encoded, self.tokenizer, self.config, training=False)
        done: dict[int, Answered] = {}
        objective = Tuning(self.config.task)
        losses, count = 0.0, 0
        for numbers, scores, loss, counted in self._scores(rows, objective):
            losses, count = losses + loss, count + counted
            for place, number in enumerate(numbers):
                done[number] = self._one(encoded[number], scores[place], rows.rows[number][0].second, rows, number)
        mean = losses / count if count else None
        return [done[number] for number in range(len(found))], mean, rows

    @torch.no_grad()
    def _scores(self, rows: TaskRows, objective: Tuning) -> Iterator[tuple[list[int], Tensor, float, int]]:
        model: Any = self.model
        where = next(model.parameters()).device
        for numbers, batch in rows.every(ROWS):
            batch = batch.to(where)
            hidden = objective.run(model, objective.enter(model, batch), batch)
            loss, counted = 0.0, 0
            if batch.labels is not None:
                loss = float(objective.sums(model, hidden, batch)["task"])
                counted = objective.counts(batch)["task"]
            yield numbers, objective.scores(model, hidden, batch).double().cpu(), loss, counted

    def _one(self, example: Encoded, scores: Tensor, second: int, rows: TaskRows, number: int) -> Answered:
        kind = self.config.task.kind
        if kind == "regress":
            return Answered(np.zeros(0), float(scores[0]))
        if kind == "tag":
            assert example.places is not None
            read = (example.places >= 0) & (1 + example.places < len(rows.rows[number][0].ids) - 1)
            table = np.full((len(read), scores.shape[-1]), np.nan)
            table[read] = scores[1 + torch.from_numpy(example.places[read])].softmax(-1).numpy()
            return Answered(table)
        if kind == "span":
            return self._span(example, scores, second, len(rows.rows[number][0].ids) - 1)
        if kind == "choice":
            scores = scores[: len(example.parts) - 1]
        return Answered(scores.softmax(-1).numpy())

    def _span(self, example: Encoded, scores: Tensor, first: int, last: int) -> Answered:
        """The likeliest pair of ends, the second not before the first; none where the first token is likelier."""
        log_probs = scores.log_softmax(0)
        begin, end = log_probs[first:last, 0], log_probs[first:last, 1]
        best, found = -np.inf, (0, -1)
        if len(begin):
            both = begin[:, None] + end[None, :]
            allowed = torch.ones_like(both, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
            both = both.masked_fill(~allowed, -torch.inf)
            best = float(both.max())
            found = divmod(int(both.argmax()), len(begin))
        none = float(log_probs[0].sum())
        if found[1] < 0 or (NO_ANSWER in self.labels and none > best):
            return Answered(np.zeros(0), float(np.exp(none)))
        span = (example.offsets[found[0]][0], example.offsets[found[1]][1])
        return Answered(np.zeros(0), float(np.exp(best)), span)

    # ------------------------------------------------------------------ people's words

    def document(self, example: Example, answered: Answered) -> dict[str, Any]:
        """The answer as JSON shows it."""
        kind, texts, share = self.config.task.kind, example.texts, answered.probabilities
        if kind == "regress":
            return {**_texts(texts), "value": answered.value}
        if kind == "tag":
            certain = [None if np.isnan(row[0]) else float(row.max()) for row in share]
            return {"words": list(texts), "labels": self._tags(share), "probabilities": certain}
        if kind == "span":
            begin, end = answered.span
            found = {"answer": texts[1][begin:end].strip(), "begin": begin, "end": end, "probability": answered.value}
            return {**_texts(texts), **found}
        best = int(share.argmax())
        if kind == "choice":
            said = {"choice": best, "answer": texts[1 + best], "probability": float(share[best])}
            return {"text": texts[0], "choices": list(texts[1:]), **said, "probabilities": share.tolist()}
        probabilities = dict(zip(self.labels, share.tolist()))
        return {**_texts(texts), "label": self.labels[best], "probability": float(share[best]),
                "probabilities": probabilities}  # fmt: skip

    def judge(self, found: Sequence[Example]) -> dict[str, Any]:
        """The figures of the model on examples with labels."""
        answered, loss, rows = self.answer(found)
        facts: dict[str, Any] = {"rows": len(found), "cut": rows.cut, "loss": loss}
        kind = self.config.task.kind
        if kind == "regress":
            truth = [example.label for example in found if isinstance(example.label, float)]
            said = [each.value for each in answered]
            squares = [(a - b) ** 2 for a, b in zip(truth, said)]
            correlations = {"pearson": metrics.pearson(truth, said), "spearman": metrics.spearman(truth, said)}
            return facts | correlations | {"mean_squared_error": float(np.mean(squares))}
        if kind == "span":
            return facts | self._judge_spans(found, answered)
        if kind == "tag":
            return facts | self._judge_tags(found, answered)
        best = [int(each.probabilities.argmax()) for each in answered]
        if kind == "choice":
            right = [answer == example.label for answer, example in zip(best, found)]
            return facts | {"accuracy": float(np.mean(right))}
        numbers = {label: number for number, label in enumerate(self.labels)}
        return facts | self._judge_classes([numbers[str(example.label)] for example in found], best)

    def _judge_classes(self, truth: Sequence[int], found: Sequence[int]) -> dict[str, Any]:
        table = metrics.confusion(truth, found, len(self.labels))
        scores = metrics.label_scores(table, self.labels)
        one = len(self.labels) == 2
        met = table.sum(0) + table.sum(1) > 0  # in the rows or among the answers
        return {
            "accuracy": metrics.accuracy(table),
            "f1": scores[1].f1 if one else float(np.mean([score.f1 for score, there in zip(scores, met) if there])),
            "matthews": metrics.matthews(table),
            "f1_of": self.labels[1] if one else "all labels alike (macro)",
            "by_label": [asdict(score) for score in scores],
        }

    def _judge_tags(self, found: Sequence[Example], answered: Sequence[Answered]) -> dict[str, Any]:
        """Of all words; for one that was not read, the model is taken to say O (or the first label)."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        default = "O" if "O" in numbers else self.labels[0]
        said, cut = [], 0
        for each in answered:
            tags = self._tags(each.probabilities)
            cut += tags.count(None)
            said.append([tag or default for tag in tags])
        truth = [list(example.label) for example in found if isinstance(example.label, tuple)]
        flat = [[numbers[tag] for row in side for tag in row] for side in (truth, said)]
        facts = self._judge_classes(flat[0], flat[1]) | {"words": len(flat[0]), "words_cut": cut}
        if metrics.names_entities(self.labels):
            facts |= {"f1": metrics.entity_f1(truth, said), "f1_of": "whole entities"}
        return facts

    def _tags(self, table: Float[np.ndarray, "n o"]) -> list[str | None]:
        """The likeliest label of each word that was read."""
        return [None if np.isnan(row[0]) else self.labels[int(row.argmax())] for row in table]

    def _judge_spans(self, found: Sequence[Example], answered: Sequence[Answered]) -> dict[str, Any]:
        exact, overlap = [], []
        for example, each in zip(found, answered):
            right = example.label.texts if isinstance(example.label, Answer) else ()
            answer = example.texts[1][each.span[0] : each.span[1]]
            exact.append(metrics.exact_match(answer, right))
            overlap.append(metrics.answer_f1(answer, right))
        return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _texts(texts: Sequence[str]) -> dict[str, str]:
    return dict(zip(("text", "text_b"), texts))
