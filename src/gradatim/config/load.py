"""From a recipe and overrides to a ``RunConfig``, and back to YAML that says the same.

The order of things: read the recipe into a tree, merge the overrides into it, decode, then judge the rules
that join fields. Each stage adds to one list of problems, so that a person mends a recipe in one go.
"""

from __future__ import annotations

import dataclasses
import logging
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from gradatim.config import rules
from gradatim.config.decode import Decoder, nearest
from gradatim.config.describe import hints, scalar_text, variants
from gradatim.config.idle import idle, waiting
from gradatim.config.origin import SOURCE_TOKENIZER, TOKENIZER
from gradatim.config.settings import RunConfig
from gradatim.config.tree import LARGEST, Entry, merge, read_tree
from gradatim.errors import ConfigError, Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What became of a recipe and its overrides."""

    config: RunConfig
    """The config; to be used only where ``problems`` is empty."""
    problems: tuple[Problem, ...]
    """Everything wrong with it."""
    notes: tuple[str, ...]
    """What an override changed besides the field it names."""
    shortened: tuple[str, ...] = ()
    """Of what ``--steps`` takes along, which a run that goes on keeps as it was."""
    auto: frozenset[str] | None = None
    """Where the layout is ``auto``: its fields that are stated all the same; ``plan.auto`` chooses the others."""

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that have no effect beside the others, or leave most ranks with nothing to do."""
        return () if self.problems or self.auto is not None else (*idle(self.config), *waiting(self.config))


def load_config(
    recipe: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    to_train: bool = True,
    any_layout: bool = False,
) -> RunConfig:
    """The config of a packaged recipe or YAML file with overrides (dotted name → text or value).

    Without ``to_train`` it may lack text: that of a run which is only to be asked. With ``any_layout`` its layout does
    not matter, and may be ``auto``.
    Logs a warning for what an override changed besides its own field.
    Raises ConfigError with every problem at once.
    """
    loaded = load(recipe, overrides, to_train=to_train)
    if loaded.problems:
        raise ConfigError(*loaded.problems)
    if loaded.auto is not None and not any_layout:
        what = "this needs a layout, and auto is none yet: gradatim check shows the one that it stands for"
        raise ConfigError(Problem(where=f"{recipe}: layout", what=what, got=AUTO, attempt="tp, pp, dp, …"))
    for note in (*loaded.notes, *loaded.shortened):
        log.warning("%s", note)
    return loaded.config


def check_config(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> list[Problem]:
    """Everything wrong with a recipe and its overrides; an empty list when it can be trained."""
    return list(load(recipe, overrides).problems)


def load(
    recipe: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    to_train: bool = True,
    source_model: Callable[[str], Mapping[str, str]] | None = None,
) -> Loaded:
    """As ``load_config``, but hands back problems and notes instead of raising and logging.

    ``source_model`` tells, of what ``init_from`` names, the fields of the model. They stand where the recipe has none,
    and instead of a packaged recipe's, which are a proposal; what is given besides is meant, and has to agree.
    """
    given = {
        name.removeprefix("--").replace("-", "_"): scalar_text(tuple(value) if isinstance(value, list) else value)
        for name, value in (overrides or {}).items()
    }
    found: list[Problem] = []
    try:
        tree = read_tree(*_read(str(recipe)), found)
    except ConfigError as error:  # judge the overrides all the same, by themselves
        found += error.problems
        tree = Entry({}, str(recipe))
    tree, notes = _make_way(tree, given)
    tree = _one_batch(tree, given, notes, found)
    tree, shortened = _shorten(tree, given)
    tree, auto = _automatic(tree, given, notes)
    tree = merge(tree, given, found)
    if source_model is not None:
        tree = _fill_in(tree, given, source_model, str(recipe) if str(recipe) in recipe_names() else None, found, notes)
    decoder = Decoder(problems=found)
    config = _without_default_text(decoder.value(RunConfig, tree), decoder)
    found += rules.problems(_judged(config) if auto else config, decoder.places, decoder.broken, to_train)
    stated = frozenset(name.removeprefix("layout.") for name in given if name.startswith("layout.")) - NEVER_CHOSEN
    return Loaded(
        config=config,
        problems=tuple(sorted(found, key=_reading_order)),
        notes=tuple(notes),
        shortened=tuple(shortened),
        auto=stated if auto else None,
    )


def _reading_order(problem: Problem) -> tuple[bool, int]:
    """The recipe's problems by line, then those of the overrides as they were given."""
    line = problem.where.rpartition(":")[2]
    return problem.where.startswith("--"), int(line) if line.isdecimal() else 0


def config_to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, every field written out; loading it gives an equal config."""
    style: dict[str, Any] = {
        "sort_keys": False,
        "default_flow_style": None,
        "allow_unicode": True,
        "width": 100,
    }
    return str(yaml.dump(_plain(config), Dumper=_Dumper, **style))


class _Dumper(yaml.SafeDumper):
    """Escapes unprintable characters in text: parsers fold U+0085 and its like as if they were line ends."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# --------------------------------------------------------------------------- layouts to be chosen

AUTO = "auto"
NEVER_CHOSEN = frozenset({"timeout", "check"})
"""Fields of a layout that are nobody's choice."""


def _automatic(tree: Entry, given: dict[str, str], notes: list[str]) -> tuple[Entry, bool]:
    """Whether the layout is ``auto``, and the tree without that word, to whose place overrides may come."""
    stands = tree.at("layout")
    in_recipe = stands is not None and stands.value == AUTO
    asked = given.get("layout") == AUTO
    if not (in_recipe or asked) or ("layout" in given and not asked):
        return tree, False
    given.pop("layout", None)
    if asked and not in_recipe:
        tree, dropped = _drop(tree, "layout", lambda key: key not in NEVER_CHOSEN)
        notes += [f"--layout auto replaces the recipe's layout.{key}" for key in dropped]
    elif isinstance(tree.value, dict):
        kept = {key: entry for key, entry in tree.value.items() if key != "layout"}
        tree = dataclasses.replace(tree, value=kept)
    return tree, True


def _judged(config: RunConfig) -> RunConfig:
    """Without what is only right or wrong beside a pipeline that is yet to be chosen."""
    layout = config.layout
    alone = dataclasses.replace(layout, pp=min(layout.pp, 1), chunks=min(layout.chunks, 1), split="uniform")
    return dataclasses.replace(config, layout=alone)


# --------------------------------------------------------------------------- finding the recipe


def recipe_names() -> list[str]:
    """The packaged recipes, in alphabetical order."""
    folder = files("gradatim.config") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_summary(name: str) -> str:
    """The comment that opens a packaged recipe: what it is."""
    text = (files("gradatim.config") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("#").strip()


def _read(recipe: str) -> tuple[bytes, str]:
    """The bytes of a recipe and the name its lines go by."""
    names = recipe_names()
    if recipe in names:
        return (files("gradatim.config") / "recipes" / f"{recipe}.yaml").read_bytes(), f"{recipe}.yaml"
    path = Path(recipe)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            inside = path / "config.yaml"  # as run directories have
            attempt = str(inside) if inside.is_file() else ""
            raise ConfigError(Problem(where=recipe, what="a recipe is a file, and this is none", attempt=attempt))
        with path.open("rb") as file:
            return file.read(LARGEST + 1), recipe
    except FileNotFoundError:
        guess = nearest(recipe, names)
        raise ConfigError(
            Problem(
                where=recipe,
                what="there is no such recipe",
                got=recipe,
                allowed=f"{', '.join(names)}, or a YAML file",
                attempt=guess,
            )
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        what = f"this recipe cannot be read: {reason}"
        raise ConfigError(Problem(where=recipe, what=what, attempt="check the path and its permissions")) from None


# --------------------------------------------------------------------------- what overrides replace


def _fill_in(
    tree: Entry, given: Mapping[str, str], source_model: Callable[[str], Mapping[str, str]], packaged: str | None,
    problems: list[Problem], notes: list[str],
) -> Entry:  # fmt: skip
    """The tree with the source's model and tokenizer where they are left open; ``packaged`` names such a recipe."""
    source, model = tree.at("init_from"), tree.at("model") or Entry({}, "")
    if source is None or not isinstance(source.value, str) or not isinstance(model.value, dict):
        return tree
    theirs = source_model(source.value)
    if not theirs or not isinstance(tree.value, dict):
        return tree
    kind = tree.at("model", "kind")
    if kind is not None and kind.value != theirs["kind"]:
        what = f"the weights to start from ({source.value}) are of another kind of model"
        another = (packaged or "").replace(kind.text(), theirs["kind"], 1)
        attempt = f"the recipe {another}" if another in recipe_names() else f"a recipe of a {theirs['kind']}"
        problems.append(Problem(where=kind.where, what=what, got=kind.text(), allowed=theirs["kind"], attempt=attempt))
        return tree
    proposed = {name for name in theirs if packaged and f"model.{name}" not in given}
    changed = [name for name in model.value if name in proposed and model.value[name].value != theirs[name]]
    if changed:
        notes.append(f"{source.value} replaces the recipe's {', '.join(f'model.{name}' for name in changed)}")
    own = {name: entry for name, entry in model.value.items() if name not in proposed}
    filled = {name: Entry(text, source.where) for name, text in theirs.items()} | own
    tree = dataclasses.replace(tree, value={**tree.value, "model": dataclasses.replace(model, value=filled)})
    return _with_tokenizer(tree, given, source.value, packaged, notes)


def _with_tokenizer(
    tree: Entry, given: Mapping[str, str], source: str, packaged: str | None, notes: list[str]
) -> Entry:  # fmt: skip
    """Ids have to mean what they meant to the source, so its tokenizers stand where none is named."""
    data, own = tree.at("data") or Entry({}, ""), Path(source) / TOKENIZER
    named = any(name == "data.tokenizer" or name.startswith("data.tokenizer.") for name in given)
    open_to = packaged is not None or tree.at("data", "tokenizer") is None
    if named or not open_to or not own.is_file():
        return tree
    if not isinstance(tree.value, dict) or not isinstance(data.value, dict):
        return tree
    sources = own.with_name(SOURCE_TOKENIZER)
    joint, alike = tree.at("data", "joint"), Entry(str(not sources.is_file()).lower(), "init_from")
    pairs = any(tree.at("data", f"{side}_language") is not None for side in ("source", "target"))
    replaced = pairs and (joint is None or (packaged is not None and "data.joint" not in given))
    if replaced and (joint is None or joint.value != alike.value):
        notes.append(f"{source} replaces the recipe's data.joint")
    joint = alike if replaced else joint
    theirs = {"path": Entry(str(own), "init_from", quoted=True)}
    if pairs and joint is not None and joint.value == "false":
        theirs["source_path"] = Entry(str(sources if sources.is_file() else own), "init_from", quoted=True)
    filled = {**data.value, "tokenizer": Entry({**theirs}, "init_from")}
    if replaced:
        filled["joint"] = alike
    return dataclasses.replace(tree, value={**tree.value, "data": dataclasses.replace(data, value=filled)})


def _without_default_text(config: RunConfig, decoder: Decoder) -> RunConfig:
    """Pairs in aligned files stand instead of data.train, whose default is a text."""
    if not config.data.train_source or "data.train" in decoder.places:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train=()))


def _make_way(tree: Entry, overrides: Mapping[str, str]) -> tuple[Entry, list[str]]:
    """Take out of a recipe what an override makes void: splits of other text, fields of another kind."""
    notes: list[str] = []
    replaced = next((name for name in ("train", "train_source") if f"data.{name}" in overrides), None)
    if replaced is not None:
        stated = {key for key in _TEXTS if (entry := tree.at("data", key)) is not None and entry.value not in ("", [])}
        tree, dropped = _drop(tree, "data", lambda key: key in _TEXTS and f"data.{key}" not in overrides)
        dropped = [key for key in dropped if key != replaced and key in stated]
        notes += [f"--data.{replaced} replaces the recipe's text, so its data.{key} is dropped" for key in dropped]
    kind = overrides.get("model.kind")
    kinds = variants(hints(RunConfig)["model"])
    if kind in kinds:
        own, all_fields = hints(kinds[kind]), {key for cls in kinds.values() for key in hints(cls)}
        tree, dropped = _drop(tree, "model", lambda key: key in all_fields and key not in own)
        if dropped:
            names = ", ".join(f"model.{key}" for key in dropped)
            notes.append(f"--model.kind {kind} drops the recipe's fields of another kind: {names}")
    return tree, notes


def _one_batch(tree: Entry, given: Mapping[str, str], notes: list[str], problems: list[Problem]) -> Entry:
    """Pairs have a batch of so many or of so many tokens, and ``--global_batch`` means the first."""
    stands = tree.at("batch_tokens")
    if "global_batch" not in given:
        return tree
    if given.get("batch_tokens", "null") != "null":
        what = "a step has so many pairs, or as many as there are in so many tokens"
        got = f"--global_batch {given['global_batch']} --batch_tokens {given['batch_tokens']}"
        problems.append(Problem(where="--batch_tokens", what=what, got=got, allowed="one of the two",
                                attempt="leave --batch_tokens out"))  # fmt: skip
        return tree
    if stands is None or stands.value == "null" or not isinstance(tree.value, dict):
        return tree
    notes.append(f"--global_batch replaces the recipe's batch_tokens {stands.text()}")
    return dataclasses.replace(tree, value={key: entry for key, entry in tree.value.items() if key != "batch_tokens"})


_TEXTS = {f"{split}{side}" for split in ("train", "valid", "test") for side in ("", "_source", "_target")}
"""Settings that name text: naming what is learned from replaces them all."""


def _shorten(tree: Entry, overrides: Mapping[str, str]) -> tuple[Entry, list[str]]:
    """Let a trial run be short: ``--steps 20`` takes a recipe's final fall along where it is longer, and a warm-up that
    would be half of it or more.
    """
    notes: list[str] = []
    steps = overrides.get("steps", "")
    for name in ("warmup", "decay_steps"):
        entry = tree.at("optimizer", name)
        if f"optimizer.{name}" in overrides or entry is None or not _is_number(steps):
            continue
        most = int(steps) // 2 if name == "warmup" else int(steps)
        if isinstance(entry.value, str) and _is_number(entry.value) and int(entry.value) > most:
            tenth = str(max(int(steps) // 10, 1 if name == "decay_steps" else 0))
            notes.append(f"--steps {steps} shortens the recipe's optimizer.{name} from {entry.value} to {tenth}")
            tree = merge(tree, {f"optimizer.{name}": tenth}, [])
    return tree, notes


def _is_number(text: str) -> bool:
    """Whether these are digits, few enough that Python turns them into a number; else the field's own rule says so."""
    return text.isascii() and text.isdecimal() and len(text) <= 100


def _drop(tree: Entry, section: str, unwanted: Any) -> tuple[Entry, list[str]]:
    """The tree without the unwanted keys of one section, and those keys."""
    below = tree.at(section)
    if below is None or not isinstance(below.value, dict) or not isinstance(tree.value, dict):
        return tree, []
    kept = {key: entry for key, entry in below.value.items() if not unwanted(key)}
    dropped = [key for key in below.value if key not in kept]
    smaller = dataclasses.replace(below, value=kept)
    return dataclasses.replace(tree, value={**tree.value, section: smaller}), dropped
