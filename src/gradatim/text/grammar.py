"""A small English, generated: sentences of a probabilistic grammar, for models that learn word order in seconds.

It is a demonstration. The grammar agrees subject with verb, puts articles before nouns and objects after verbs, and
speaks of students, speech and weather; so a model of its words ranks what is grammatical and sensible above what
merely sounds alike, as in the
talk: "Recognize speech using common sense" against "Wreck a nice beach you sing calm incense". The talk's sentences
are left out of every part, so ranking them is not remembering them.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache

SENTENCES = 6000
HELD_OUT = ("I am a student", "Recognize speech using common sense", "Wreck a nice beach you sing calm incense")
"""The talk's examples, which a model is asked about and must not have read."""

# A symbol in braces is rewritten by one of its lines. "N* weights" like "3:" make a line likelier.
GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": ("4:{statement}", "3:{command}", "1:{statement} and {statement}", "1:{statement} because {statement}"),
    "statement": (
        "4:I am {predicate}", "3:you are {predicate}", "3:{he} is {predicate}", "2:we are {plural_predicate}",
        "3:{he} {verbs} {object}", "3:I {verb} {object}", "2:you {verb} {object}", "2:we {verb} {object}",
        "2:the {noun} {verbs} {object}", "2:the {noun} is {adjective}", "1:they {verb} {object} {place}",
        "1:I {verb} {object} {manner}", "1:{he} {verbs} {object} {manner}",
    ),
    "he": ("he", "she"),
    "predicate": ("4:{a_person}", "2:{adjective}", "1:{a_person} {place}"),
    "plural_predicate": ("{people}", "{adjective}", "{people} {place}"),
    "a_person": ("a {person}", "a {adjective} {person}", "an {engineer}", "the {person}"),
    "person": ("teacher", "doctor", "writer", "reader", "speaker", "singer", "painter", "farmer", "student", "scientist", "pupil"),
    "engineer": ("engineer", "actor", "author", "expert"),
    "people": ("students", "teachers", "readers", "writers", "speakers", "singers", "engineers", "friends"),
    "adjective": ("good", "young", "careful", "clever", "kind", "quiet", "patient", "busy", "happy", "nice", "calm"),
    "noun": ("teacher", "student", "machine", "computer", "model", "network", "program", "singer", "speaker", "book"),
    "verbs": ("3:reads", "3:likes", "2:knows", "2:understands", "2:recognizes", "2:writes", "hears", "learns", "uses", "studies"),
    "verb": ("3:read", "3:like", "2:know", "2:understand", "2:recognize", "2:write", "hear", "learn", "use", "study"),
    "object": (
        "3:{matter}", "2:the {matter}", "2:a {thing}", "2:the {thing}", "the {adjective} {thing}", "{matter} and {matter}",
    ),
    "matter": ("3:speech", "language", "music", "common words", "clear speech", "poetry", "spoken language", "text", "history"),
    "thing": ("book", "letter", "song", "story", "word", "sentence", "poem", "question", "lesson", "page"),
    "place": ("at school", "at home", "in the city", "at the beach", "in the garden", "at the university"),
    "manner": ("2:using {tool}", "with {tool}", "with a {thing}", "every day", "in the morning"),
    "tool": ("2:common sense", "common words", "a computer", "a {adjective} model", "good sense", "a dictionary", "reason"),
    "command": (
        "3:{imperative} {object} using {tool}", "2:{imperative} {object}", "2:{imperative} {object} with {tool}",
        "{imperative} {object} {place}", "please {imperative_low} {object}", "sing a {adjective} song", "burn incense {place}",
        "walk to a {adjective} beach", "keep calm",
    ),
    "imperative": ("3:Recognize", "2:Understand", "2:Read", "2:Write", "Learn", "Study", "Use"),
    "imperative_low": ("recognize", "understand", "read", "write", "learn", "study", "use"),
}  # fmt: skip


def expand(symbol: str, draw: random.Random) -> str:
    """A random text of a symbol of the grammar."""
    lines, weights = zip(*(_weighted(line) for line in GRAMMAR[symbol]), strict=True)
    words = []
    for part in draw.choices(lines, weights)[0].split():
        words.append(expand(part[1:-1], draw) if part.startswith("{") else part)
    return " ".join(words)


def _weighted(line: str) -> tuple[str, int]:
    weight, colon, rest = line.partition(":")
    return (rest, int(weight)) if colon and weight.isdigit() else (line, 1)


def part_of(sentence: str) -> str:
    """Train, valid or test (90, 5 and 5 %), by the sentence alone, so that no sentence is in two parts."""
    number = hashlib.blake2b(sentence.encode(), digest_size=4).digest()[0] * 100 // 256
    return "train" if number < 90 else "valid" if number < 95 else "test"


@cache
def corpus() -> dict[str, list[str]]:
    """``SENTENCES`` different sentences by part, the same on every machine."""
    draw = random.Random("small-english")
    found: dict[str, None] = {}
    while len(found) < SENTENCES:
        text = expand("sentence", draw)
        text = text[0].upper() + text[1:]
        if text not in HELD_OUT:
            found.setdefault(text)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for text in found:
        parts[part_of(text)].append(text)
    return parts
