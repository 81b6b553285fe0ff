"""Rules of translation: what models of pairs ask of the data, and what pairs ask of the other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradatim.config.nearby import divisors, either, multiples
from gradatim.config.settings import DataConfig, RunConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig

if TYPE_CHECKING:
    from gradatim.config.rules import Rules

TRANSLATORS = (TranslateLmConfig, Seq2SeqConfig, TransformerConfig)
CODES = (
    "ar bg bn ca cs da de el en es et eu fa fi fr ga gl he hi hr hu hy id is it ja ka kk ko lt lv mk mn ms nl no pl pt "
    "ro ru sk sl sq sr sv sw ta th tr uk ur uz vi zh"
)
"""Codes (ISO 639-1) that files of aligned sentences end with."""
PAIR_CORPORA = {"phrasebook": ("fr", "en")}
"""Embedded pairs and the languages they have; they bring validation and test parts."""
SPLITS = ("train", "valid", "test")


def is_pairs(data: DataConfig) -> bool:
    """Whether a data section means sentence pairs."""
    return data.source_language is not None or data.target_language is not None


def pairs(config: RunConfig, rules: Rules) -> None:
    """Everything that only translation asks."""
    data = config.data
    translates = isinstance(config.model, TRANSLATORS)
    if not translates:
        rules.require(
            not is_pairs(data),
            "data.source_language model.kind" if data.source_language else "data.target_language model.kind",
            "this kind of model learns from plain text, not from pairs",
            allowed="null, or kind translate-lm, seq2seq or transformer",
            attempt="--model.kind transformer",
        )
        rules.require(
            data.tokenizer.source_path is None,
            "data.tokenizer.source_path model.kind",
            "this kind of model reads one text, so there is one tokenizer",
            allowed="null",
            attempt="--data.tokenizer.source_path null",
        )
        rules.require(
            config.batch_tokens is None,
            "batch_tokens model.kind",
            "only pairs differ in length; this kind of model reads context tokens a sequence",
            allowed="null",
            attempt="--batch_tokens null --global_batch 64",
        )
        return
    for side in ("source", "target"):
        rules.require(
            getattr(data, f"{side}_language") is not None,
            f"data.{side}_language model.kind",
            "a translator must know which language it reads and which it writes",
            allowed="a name, such as en",
            attempt=f"--data.{side}_language {'fr' if side == 'source' else 'en'}",
        )
    rules.require(
        data.source_language is None or data.source_language != data.target_language,
        "data.target_language data.source_language",
        "source and target are the same language",
        allowed="two languages",
        attempt=_another_language(data),
    )
    rules.require(
        config.layout.microbatch is None or config.batch_tokens is None,
        "layout.microbatch batch_tokens",
        "batches of so many tokens have no fixed number of pairs, which microbatches would share",
        allowed="one of the two",
        attempt="--layout.microbatch null",
    )
    rules.require(
        config.batch_tokens is None or config.batch_tokens >= config.context,
        "batch_tokens context",
        "the longest pair that the context admits would not fit a batch",
        allowed=f"at least {config.context}",
        attempt=f"--batch_tokens {max(config.context, 4096)}",
    )
    rules.require(
        config.layout.recompute == "none",
        "layout.recompute model.kind",
        "translators store all activations",
        allowed="none",
        attempt="--layout.recompute none",
    )
    _files(data, rules)
    _shares(data, rules)
    _vocabularies(config, rules)
    if isinstance(config.model, TransformerConfig):
        _heads(config.model, rules)
    elif isinstance(config.model, Seq2SeqConfig):
        _recurrent(config.model, rules)
    elif isinstance(config.model, TranslateLmConfig) and config.model.body == "gpt":
        _even(config.model.d_model, config.model.n_heads, True, rules)


def _ending(name: str) -> str | None:
    """The language that a file's ending names, of those often translated."""
    ending = name.rpartition(".")[2]
    return ending if "." in name and ending in CODES.split() else None


def not_of(name: str, own: str | None, other: str | None) -> str:
    """What is wrong with a file of sentences in ``own`` by its ending; empty where nothing is."""
    if own and other and own != other and name.endswith(f".{other}"):
        return "by its ending this file holds the other language"
    foreign = own and _ending(name) not in (None, own, other)
    return f"by its ending this file does not hold {own}" if foreign else ""


def _another_language(data: DataConfig) -> str:
    """Which of two languages that are the same would be another, by the endings of files where they tell."""
    for side in ("target", "source"):
        for name in getattr(data, f"train_{side}"):
            if _ending(name) not in (None, data.source_language):
                return f"--data.{side}_language {_ending(name)}"
    return f"--data.target_language {'fr' if data.source_language == 'en' else 'en'}"


def _files(data: DataConfig, rules: Rules) -> None:
    for split in SPLITS:
        sources, targets = getattr(data, f"{split}_source"), getattr(data, f"{split}_target")
        rules.require(
            len(sources) == len(targets),
            f"data.{split}_source data.{split}_target",
            "aligned files come in twos, one of each language",
            allowed="equally many",
        )
        rules.require(
            not (sources and getattr(data, split)),
            f"data.{split} data.{split}_source",
            "these pairs are named twice, as a table and as aligned files",
            allowed="one of the two",
            attempt=f"leave out data.{split}",
        )
        for side, names in (("source", sources), ("target", targets)):
            own, other = data.source_language, data.target_language
            own, other = (own, other) if side == "source" else (other, own)
            wrong = {name: what for name in names if (what := not_of(name, own, other))}
            crossed = [name for name in wrong if name.endswith(f".{other}")]
            rules.require(
                not crossed,
                f"data.{split}_{side} data.{side}_language",
                wrong[crossed[0]] if crossed else "",
                allowed=f"a file of {own}, or the other direction",
                attempt=f"--data.source_language {data.target_language} --data.target_language "
                f"{data.source_language}, with sources and targets exchanged",
            )
            foreign = [name for name in wrong if name not in crossed]
            rules.require(
                not foreign,
                f"data.{split}_{side} data.{side}_language",
                wrong[foreign[0]] if foreign else "",
                allowed=f"a file of {own}, or another language",
                attempt=f"--data.{side}_language {_ending(foreign[0]) if foreign else own}",
            )
    rules.require(
        bool(data.train or data.train_source),
        "data.train data.train_source",
        "there are no pairs to learn from",
        allowed=f"{', '.join(PAIR_CORPORA)}, a table, or data.train_source with data.train_target",
        attempt="--data.train phrasebook",
    )
    named = [name for split in SPLITS for name in getattr(data, split)]
    rules.require(
        not data.columns or {data.source_language, data.target_language} <= set(data.columns),
        "data.columns data.source_language data.target_language",
        "the columns are not of these languages",
        allowed="both languages among data.columns",
        attempt=f"--data.columns {data.source_language},{data.target_language}",
    )
    for name in named:
        languages = PAIR_CORPORA.get(name)
        rules.require(
            languages is None or {data.source_language, data.target_language} <= set(languages),
            "data.source_language data.target_language",
            f"{name} has no such language",
            allowed=" and ".join(languages or ()),
            attempt="--data.source_language fr --data.target_language en",
        )


def _shares(data: DataConfig, rules: Rules) -> None:
    rules.require(
        sum(data.held_out) < 1,
        "data.held_out",
        "nothing would be left to learn from",
        allowed="two shares that add up to less than 1",
        attempt="--data.held_out 0.05,0.05",
    )
    given = [split for split in ("valid", "test") if getattr(data, split) or getattr(data, f"{split}_source")]
    rules.require(
        data.split == "given" or not given,
        f"data.split data.{given[0]}" if given else "data.split",
        "validation and test are either given or held out of the training pairs",
        allowed="given, or neither valid nor test",
        attempt="--data.split given",
    )
    embedded = [name for name in data.train if name in PAIR_CORPORA]
    rules.require(
        data.split == "given" or not embedded,
        "data.split data.train",
        f"{' '.join(embedded)} brings its own validation and test parts",
        allowed="given",
        attempt="--data.split given",
    )


def _vocabularies(config: RunConfig, rules: Rules) -> None:
    model = config.model
    needs = {
        "model.embeddings": isinstance(model, TransformerConfig) and model.embeddings == "shared",
        "model.shared": isinstance(model, Seq2SeqConfig) and model.shared,
        "model.kind": isinstance(model, TranslateLmConfig),
    }
    for field, needed in needs.items():
        rules.require(
            config.data.joint or not needed,
            f"data.joint {field}",
            "one embedding for both languages needs one vocabulary",
            allowed="true",
            attempt="--data.joint true",
        )
    tokenizer = config.data.tokenizer
    rules.require(
        not config.data.joint or tokenizer.source_path is None,
        "data.tokenizer.source_path data.joint",
        "both languages share one vocabulary, which is that of data.tokenizer.path",
        allowed="null, or data.joint false",
        attempt="--data.tokenizer.source_path null",
    )
    rules.require(
        config.data.joint or (tokenizer.path is None) == (tokenizer.source_path is None),
        "data.tokenizer.path data.tokenizer.source_path data.joint",
        "each language has a vocabulary of its own, and only one is named",
        allowed="both, none, or data.joint true",
        attempt=f"--data.tokenizer.{'path' if tokenizer.path is None else 'source_path'} FILE",
    )


def _recurrent(model: Seq2SeqConfig, rules: Rules) -> None:
    rules.require(
        not model.bidirectional or model.d_model % 2 == 0,
        "model.d_model model.bidirectional",
        "each direction of the encoder has half the width",
        allowed=f"d_model {either(multiples(2, model.d_model))}",
        attempt=f"--model.d_model {multiples(2, model.d_model)[-1]}",
    )
    for field in ("input_feeding", "coverage"):
        rules.require(
            model.attention != "none" or not getattr(model, field),
            f"model.{field} model.attention",
            f"{field} is of decoders with attention",
            allowed="false, or model.attention additive, dot or general",
            attempt=f"--model.{field} false",
        )
    rules.require(
        model.attention == "none" or not model.summary_feeding,
        "model.summary_feeding model.attention",
        "with attention a step gets what it looks at instead of one summary",
        allowed="false, or model.attention none",
        attempt="--model.summary_feeding false",
    )


def _even(d_model: int, n_heads: int, rotary: bool, rules: Rules) -> None:
    heads = min(n_heads, d_model)
    rules.require(
        d_model % n_heads == 0,
        "model.n_heads model.d_model",
        "the heads must share the width evenly",
        allowed=f"n_heads {either(divisors(d_model, heads))}, or d_model {either(multiples(heads, d_model))}",
        attempt=f"--model.n_heads {divisors(d_model, heads)[0]}",
    )
    rules.require(
        not rotary or d_model // n_heads % 2 == 0,
        "model.d_model model.n_heads",
        "rotary positions turn pairs, so a head's width (d_model / n_heads) must be even",
        allowed=f"d_model {either(multiples(2 * heads, d_model))}",
    )


def _heads(model: TransformerConfig, rules: Rules) -> None:
    _even(model.d_model, model.n_heads, model.positions == "rotary", rules)
    rules.require(
        model.positions != "sinusoidal" or model.d_model % 2 == 0,
        "model.d_model model.positions",
        "sinusoidal positions come in pairs of sine and cosine",
        allowed=f"d_model {either(multiples(2, model.d_model))}",
        attempt="--model.positions learned",
    )
