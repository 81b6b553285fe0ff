"""A French-English phrasebook, generated: sentence pairs of a small grammar, for translators that learn in two minutes.

It is a demonstration. What differs between the languages is there to be learned: French adjectives and professions
agree in gender and number, most adjectives follow their noun (some stand before it), negation surrounds the verb
(*ne … pas*, *n'* before a vowel, *de* after it), *des* becomes *de* before an adjective, articles are elided, and English has one *you* for *tu* and *vous*.
Every French sentence has one translation; an English one may come from several, which stay in one part.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache

LANGUAGES = ("fr", "en")
PAIRS = 4000
TALK = ("je suis étudiant", "I am a student")
"""The talk's example; it is in the training part."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A pronoun or noun phrase, what it agrees with, and the verb form it takes."""

    french: str
    english: str
    form: int  # 0 … 5: je tu il nous vous ils
    plural: bool
    feminine: bool


# French and English of each; a feminine that is not masculine + e stands after a slash.
PRONOUNS = (("je", "I", 0), ("tu", "you", 1), ("il", "he", 2), ("elle", "she", 2), ("nous", "we", 3), ("vous", "you", 4),
            ("ils", "they", 5), ("elles", "they", 5))  # fmt: skip
BE = (("suis", "am"), ("es", "are"), ("est", "is"), ("sommes", "are"), ("êtes", "are"), ("sont", "are"))
HAVE = (("ai", "have"), ("as", "have"), ("a", "has"), ("avons", "have"), ("avez", "have"), ("ont", "have"))
ENDINGS = ("e", "es", "e", "ons", "ez", "ent")
VERBS = (("regard", "watch"), ("cherch", "look for"), ("trouv", "find"), ("aim", "like"), ("dessin", "draw"),
         ("achèt", "buy"), ("montr", "show"), ("port", "carry"), ("gard", "keep"), ("lav", "wash"))  # fmt: skip
PROFESSIONS = (("étudiant", "student"), ("médecin/médecin", "doctor"), ("avocat", "lawyer"), ("professeur/professeure", "teacher"),
               ("boulanger/boulangère", "baker"), ("chanteur/chanteuse", "singer"), ("voisin", "neighbour"), ("ami", "friend"),
               ("acteur/actrice", "actor"), ("infirmier/infirmière", "nurse"), ("ingénieur/ingénieure", "engineer"))  # fmt: skip
STATES = (("fatigué", "tired"), ("content", "happy"), ("grand", "tall"), ("petit", "small"), ("jeune/jeune", "young"),
          ("prudent", "careful"), ("riche/riche", "rich"), ("pauvre/pauvre", "poor"), ("fort", "strong"), ("perdu", "lost"),
          ("gentil/gentille", "kind"), ("sérieux/sérieuse", "serious"), ("heureux/heureuse", "glad"))  # fmt: skip
BEFORE = (("petit", "small"), ("grand", "big"), ("joli", "pretty"), ("long/longue", "long"), ("mauvais", "bad"))
AFTER = (("noir", "black"), ("blanc/blanche", "white"), ("rouge/rouge", "red"), ("vert", "green"), ("bleu", "blue"),
         ("lourd", "heavy"), ("cher/chère", "expensive"), ("rapide/rapide", "fast"), ("propre/propre", "clean"))  # fmt: skip
# Noun, whether feminine, English singular and plural.
NOUNS = (("chat", False, "cat", "cats"), ("chien", False, "dog", "dogs"), ("livre", False, "book", "books"),
         ("jardin", False, "garden", "gardens"), ("sac", False, "bag", "bags"), ("train", False, "train", "trains"),
         ("vélo", False, "bicycle", "bicycles"), ("arbre", False, "tree", "trees"), ("oiseau", False, "bird", "birds"),
         ("maison", True, "house", "houses"), ("voiture", True, "car", "cars"), ("table", True, "table", "tables"),
         ("fleur", True, "flower", "flowers"), ("porte", True, "door", "doors"), ("lettre", True, "letter", "letters"),
         ("image", True, "picture", "pictures"), ("école", True, "school", "schools"), ("robe", True, "dress", "dresses"),
         ("ville", True, "town", "towns"), ("clé", True, "key", "keys"))  # fmt: skip
PLACES = (("dans le jardin", "in the garden"), ("à la maison", "at home"), ("en ville", "in town"), ("à l'école", "at school"),
          ("devant la gare", "in front of the station"), ("près de la mer", "near the sea"), ("ici", "here"))  # fmt: skip
VOWELS = "aeéèêiouyhâîôAEIOU"


def agree(entry: str, feminine: bool, plural: bool) -> str:
    """An adjective or profession in the gender and number of what it goes with."""
    masculine, _, given = entry.partition("/")
    word = masculine
    if feminine:
        word = given or (masculine if masculine.endswith("e") else masculine + "e")
    return word if not plural or word[-1] in "sx" else word + "s"


def elide(text: str) -> str:
    """``je aime`` to ``j'aime``: a short word loses its vowel before another one."""
    words = text.split(" ")
    for place in range(len(words) - 1):
        if words[place] in ("je", "ne", "de", "le", "la") and words[place + 1][0] in VOWELS:
            words[place] = words[place][:-1] + "'"
    return " ".join(words).replace("' ", "'")


def article(word: str) -> str:
    """English ``a`` or ``an``."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def third_person(verb: str) -> str:
    """English ``watches``, ``carries``, ``keeps``."""
    if verb.endswith(("ch", "sh")):
        return verb + "es"
    return f"{verb[:-1]}ies" if verb.endswith("ry") else verb + "s"


def pronoun(draw: random.Random) -> Subject:
    """A person; ``je``, ``tu``, ``nous`` and ``vous`` may be of either gender."""
    french, english, form = draw.choice(PRONOUNS)
    feminine = french.startswith("elle") or (french in ("je", "tu", "nous", "vous") and draw.random() < 0.4)
    return Subject(french, english, form, form in (3, 5) or (form == 4 and draw.random() < 0.6), feminine)


def thing(draw: random.Random, most: int = 2) -> tuple[str, str, str, str, bool, bool]:
    """A noun with adjectives: its French without article, its English, the French and English noun, gender, number."""
    noun, feminine, singular, several = draw.choice(NOUNS)
    plural = draw.random() < 0.4
    french = noun + (("x" if noun.endswith("eau") else "s") if plural else "")
    english = several if plural else singular
    count = draw.randint(0, most)
    after = draw.choice(AFTER) if count and draw.random() < 0.7 else None
    before = draw.choice(BEFORE) if count > (after is not None) else None
    if after:
        french, english = f"{french} {agree(after[0], feminine, plural)}", f"{after[1]} {english}"
    if before:
        french, english = f"{agree(before[0], feminine, plural)} {french}", f"{before[1]} {english}"
    return french, english, noun, singular, feminine, plural


def definite(draw: random.Random, most: int = 2) -> tuple[Subject, str, str]:
    """``les petites maisons rouges``, ``the small red houses``, also as a subject."""
    french, english, _, _, feminine, plural = thing(draw, most)
    the = "les" if plural else "la" if feminine else "le"
    french, english = elide(f"{the} {french}"), f"the {english}"
    return Subject(french, english, 5 if plural else 2, plural, feminine), french, english


def negated(verb: str, negative: bool) -> str:
    """The verb between ``ne`` and ``pas``."""
    return f"ne {verb} pas" if negative else verb


def sentence(draw: random.Random) -> tuple[str, str]:
    """One random pair."""
    kind, negative = draw.random(), draw.random() < 0.3
    no = " not" if negative else ""
    if kind < 0.5:
        subject = pronoun(draw) if kind < 0.35 else definite(draw, 1)[0]
        french, english = BE[subject.form]
        if kind < 0.15:
            job, name = draw.choice(PROFESSIONS)
            what = agree(job, subject.feminine, subject.plural)
            said = f"{name}s" if subject.plural else article(name)
        else:
            said_already = subject.english.split(" ")
            state, name = draw.choice(
                STATES if kind < 0.35 else [pair for pair in AFTER if pair[1] not in said_already]
            )
            what, said = agree(state, subject.feminine, subject.plural), name
        place = draw.choice(PLACES) if draw.random() < 0.15 and kind < 0.35 else None
    else:
        subject = pronoun(draw)
        does = f"do{'es' if subject.form == 2 else ''} not" if negative else ""
        if kind < 0.75:
            stem, english = draw.choice(VERBS)
            french = stem + ENDINGS[subject.form]
            french = french.replace("achèto", "acheto").replace("achètez", "achetez")
            if not negative and subject.form == 2:
                first, *rest = english.split(" ")
                english = " ".join([third_person(first), *rest])
            _, what, said = definite(draw)
        else:
            french, english = HAVE[subject.form]
            noun, said, _, _, feminine, plural = thing(draw)
            said = said if plural else article(said)
            preceded = any(noun.startswith(f"{agree(entry[0], feminine, plural)} ") for entry in BEFORE)
            what = f"{('de' if preceded else 'des') if plural else 'une' if feminine else 'un'} {noun}"
            if negative:
                what, english = f"de {noun}", "have"
        english, no = f"{does} {english}".strip(), ""
        place = draw.choice(PLACES) if draw.random() < 0.25 else None
    end = ("", "") if place is None else (f" {place[0]}", f" {place[1]}")
    source = elide(f"{subject.french} {negated(french, negative)} {what}{end[0]}")
    return source, f"{subject.english} {english}{no} {said}{end[1]}"


def part_of(english: str) -> str:
    """Train, valid or test (90, 5 and 5 %), by the English sentence, so that no sentence is in two parts."""
    if english == TALK[1]:
        return "train"
    number = hashlib.blake2b(english.encode(), digest_size=8).digest()[0] * 100 // 256
    return "train" if number < 90 else "valid" if number < 95 else "test"


@cache
def corpus() -> dict[str, list[tuple[str, str]]]:
    """``PAIRS`` different pairs (French, English) by part, the same on every machine."""
    draw = random.Random("phrasebook")
    found = dict([TALK])
    while len(found) < PAIRS:
        french, english = sentence(draw)
        found.setdefault(french, english)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for pair in found.items():
        parts[part_of(pair[1])].append(pair)
    return parts
