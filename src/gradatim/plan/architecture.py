"""What the planner has to know of a model: its layers and its ends, counted from ``shapes/``. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from gradatim.config import load_config
from gradatim.config.decode import nearest
from gradatim.config.derived import feed_forward_width
from gradatim.config.nearby import divisors, either
from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, RunConfig
from gradatim.config.settings_translators import TransformerConfig
from gradatim.errors import ConfigError, Problem
from gradatim.shapes import REPLICATED, ParameterShape, flops_per_token, parameters
from gradatim.shapes.gpt import padded_vocabulary
from gradatim.shapes.split import counts_by_cost, even_counts, head_cost


@dataclass(frozen=True)
class Architecture:
    """A Transformer of equal blocks between an embedding and an output matrix."""

    config: GptConfig | BertConfig | TransformerConfig
    """The model as a recipe states it."""
    vocab_size: int
    """Entries of the vocabulary."""
    context: int
    """Tokens of a sequence."""

    @property
    def causal(self) -> bool:
        """Positions see only what is before them."""
        return not isinstance(self.config, BertConfig)

    @property
    def one_stage(self) -> bool:
        """It cannot be cut into a pipeline, nor along the sequence."""
        return False

    @property
    def tied(self) -> bool:
        """The output matrix is the embedding's."""
        if isinstance(self.config, TransformerConfig):
            return self.config.embeddings != "separate"
        return isinstance(self.config, BertConfig) or self.config.tied

    @property
    def norm(self) -> str:
        """``layer`` or ``rms``."""
        return "layer" if isinstance(self.config, BertConfig) else self.config.norm

    @property
    def positions(self) -> str:
        """``learned``, ``rotary`` or ``sinusoidal``."""
        return "learned" if isinstance(self.config, BertConfig) else self.config.positions

    @property
    def predicted(self) -> float:
        """Share of the positions that the head reads."""
        return self.config.masked if isinstance(self.config, BertConfig) else 1.0

    @property
    def core_dropout(self) -> float:
        """Share of attention weights that is dropped."""
        return self.config.attention_dropout if isinstance(self.config, TransformerConfig) else self.config.dropout

    @property
    def layers(self) -> int:
        """Blocks."""
        return self.config.n_layers

    @property
    def width(self) -> int:
        """D of the papers."""
        return self.config.d_model

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.config.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        own = self.config.n_kv_heads if isinstance(self.config, GptConfig) else None
        return own or self.config.n_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def feed_forward(self) -> int:
        """Inner width of the feed-forward layer."""
        return feed_forward_width(self.config)

    @property
    def gated(self) -> bool:
        """Two matrices side by side at the feed-forward layer's entry."""
        return self.config.activation == "swiglu"

    @property
    def vocabulary(self) -> int:
        """Rows of embedding and output matrix, padding included."""
        return padded_vocabulary(self.vocab_size, self.config.vocab_multiple)

    @cached_property
    def _parameters(self) -> list[ParameterShape]:
        one: GptConfig | BertConfig | TransformerConfig = replace(self.config, n_layers=1)
        if isinstance(one, TransformerConfig):  # whose encoder has its own number, or the decoder's
            one = replace(one, n_encoder_layers=one.n_encoder_layers or self.config.n_layers)
        return parameters(one, self.vocab_size, self.context)

    def _local(self, part: str, tp: int) -> int:
        return sum(_local(p, tp) for p in self._parameters if p.name.startswith(part))

    def block_parameters(self, tp: int = 1) -> int:
        """Parameters of a block that one of ``tp`` ranks holds."""
        return self._local("blocks.", tp)

    def embedding_parameters(self, tp: int = 1) -> int:
        """Likewise of the embedding."""
        return self._local("embed.", tp)

    def head_parameters(self, tp: int = 1, *, alone: bool = True) -> int:
        """Likewise of the last norm and the output matrix; a tied one counts where it is held ``alone``."""
        own = self._local("head.", tp)
        return own + (self.vocabulary * self.width // tp if self.tied and alone else 0)

    def tensors(self, layers: int) -> int:
        """Tensors that the parameters of so many blocks and one end are, a gated pair of matrices being one."""
        return layers * (sum(p.name.startswith("blocks.") for p in self._parameters) - self.gated) + 1

    @property
    def parameter_count(self) -> int:
        """Trainable numbers of the whole model."""
        return self.layers * self.block_parameters() + self.embedding_parameters() + self.head_parameters(alone=False)

    @cached_property
    def head_in_layers(self) -> Fraction:
        """FLOPs of the output matrix, in layers."""
        return head_cost(self.config, self.vocab_size, self.context)

    def layer_counts(self, layout: LayoutConfig) -> list[int]:
        """Layers of each chunk, first to last."""
        chunks = layout.pp * layout.chunks
        if isinstance(layout.split, tuple):
            return list(layout.split)
        if layout.split == "uniform":
            return even_counts(self.layers, chunks)
        return counts_by_cost(self.layers, chunks, self.head_in_layers)

    def layers_past_share(self, chunks: int) -> tuple[int, ...]:
        """Layers of each chunk where one takes layers until their matrices, so far, have passed its share of all."""
        block = sum(math.prod(p.shape) for p in self._parameters if p.name.startswith("blocks.") and len(p.shape) > 1)
        head = self.vocabulary * self.width
        counts, chunk = [0] * chunks, 0
        for layer in range(1, self.layers + 1):
            counts[chunk] += 1
            past = layer * block * chunks > (chunk + 1) * (self.layers * block + head)
            if chunk < chunks - 1 and (past or self.layers - layer == chunks - 1 - chunk):
                chunk += 1
        return tuple(counts)

    @property
    def flops_per_token(self) -> int:
        """Model FLOPs of a training step for a token, attention over the whole square, nothing computed twice."""
        return flops_per_token(self.config, self.vocab_size, self.context)


class Encoder(Architecture):
    """The encoder of an encoder-decoder, as blocks by themselves: every position sees every other."""

    @property
    def causal(self) -> bool:
        """Positions see only what is before them."""
        return False


class EncoderDecoder(Architecture):
    """A Transformer that reads one sequence and writes another, each ``context`` tokens long.

    ``layers`` are the decoder's blocks, which attend to the source too. The encoder counts with the embedding: it works
    before the first block, and its backward pass ends a microbatch's.
    """

    config: TransformerConfig

    @property
    def one_stage(self) -> bool:
        """A decoder needs the whole encoder at hand; source and target differ in length."""
        return True

    @property
    def encoder(self) -> Encoder:
        """Its encoder."""
        return Encoder(self.config, self.vocab_size, self.context)

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder."""
        return self.config.n_encoder_layers or self.config.n_layers

    @property
    def decoder(self) -> Architecture:
        """Its decoder, without the attention to the source."""
        return Architecture(self.config, self.vocab_size, self.context)

    def embedding_parameters(self, tp: int = 1) -> int:
        """Parameters of both embeddings (one, where they are shared) and the encoder that one of ``tp`` ranks holds."""
        return sum(self._local(part, tp) for part in ("embed.", "source_embed.", "encoder.", "encoder_norm."))


def _local(parameter: ParameterShape, tp: int) -> int:
    return parameter.size if parameter.split == REPLICATED else -(-parameter.size // tp)


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt": {},
    "bert": {},
    "llama": {"tied": False, "positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False},
}
"""What an inline shape takes for granted besides what it states."""
INLINE = ("n_layers", "d_model", "n_heads", "vocab_size", "n_kv_heads", "d_ff", "context", "tied")
"""What an inline shape may state; the first four it must."""
OF_DECODERS = ("n_kv_heads", "tied")
"""What an inline ``bert:`` has not: its heads all have keys of their own, and its output matrix is the embedding's."""


def load_model(text: str, context: int | None = None) -> tuple[Architecture, RunConfig | None]:
    """A recipe (its config comes along) or an inline shape, ``gpt:n_layers=80,d_model=12288,n_heads=96,vocab_size=…``.

    ``context`` replaces the recipe's own. Raises ConfigError with every problem at once.
    """
    family, colon, fields = text.partition(":")
    if colon and family in FAMILIES:
        return _inline(text, family, fields, context), None
    overrides = {} if context is None else {"context": str(context)}
    config = load_config(text, overrides, any_layout=True)
    vocabulary = config.data.tokenizer.vocab_size
    model = architecture(config, vocabulary or 1)
    if model is None:
        raise ConfigError(
            Problem(
                where=text,
                what="only Transformers are planned",
                got=f"kind {config.model.kind}",
                allowed="gpt, bert, transformer, or an inline shape: " + ", ".join(f"{name}:…" for name in FAMILIES),
                attempt="gradatim plan gpt3-175b selene-2022 --global-batch 1536 --gpus 1024",
            )
        )
    if vocabulary is None:
        raise ConfigError(
            Problem(
                where=f"{text}: data.tokenizer.vocab_size",
                what="the vocabulary's size is known only once the text is read",
                got="null",
                attempt="an inline shape that states it",
            )
        )
    return model, config


def architecture(config: RunConfig, vocabulary: int) -> Architecture | None:
    """What the planner knows of a run's model; None where it is none that is planned."""
    if isinstance(config.model, (GptConfig, BertConfig)):
        return Architecture(config.model, vocabulary, config.context)
    if isinstance(config.model, TransformerConfig):
        return EncoderDecoder(config.model, vocabulary, config.context)
    return None


def _is_size(text: str) -> bool:
    """A number from 1 on that a model may have."""
    return text.isascii() and text.isdecimal() and len(text) < 40 and 0 < int(text) < 10**9


def _inline(text: str, family: str, fields: str, context: int | None) -> Architecture:
    problems: list[Problem] = []
    given: dict[str, Any] = {}
    allowed_names = [name for name in INLINE if family != "bert" or name not in OF_DECODERS]
    seen: set[str] = set()
    for part in fields.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name in seen:
            what = "this field is stated twice"
            problems.append(Problem(where=text, what=what, got=f"{name}={value}", allowed=f"{name} once"))
        elif name not in allowed_names:
            attempt = nearest(name, allowed_names)
            problems.append(
                Problem(
                    where=text,
                    what=f"there is no such field of a {family} shape",
                    got=name or "nothing",
                    allowed=", ".join(allowed_names),
                    attempt=attempt,
                )
            )
        elif name == "tied" and value in ("true", "false"):
            given[name] = value == "true"
        elif name != "tied" and _is_size(value):
            given[name] = int(value)
        else:
            allowed = "true, false" if name == "tied" else "1, 2, 3, …"
            got = value if len(value) <= 40 else f"{value[:40]}…"
            problems.append(
                Problem(where=text, what=f"this value does not fit {name}", got=got or "nothing", allowed=allowed)
            )
        seen.add(name)
    problems += [
        Problem(where=text, what=f"a shape states {name}", got="nothing", attempt=f"{text},{name}=…")
        for name in INLINE[:4]
        if name not in seen
    ]
    if not problems:
        for divisor in ("n_heads", "n_kv_heads"):
            whole = "d_model" if divisor == "n_heads" else "n_heads"
            if divisor in given and given[whole] % given[divisor]:
                near = divisors(given[whole], given[divisor])
                problems.append(
                    Problem(
                        where=text,
                        what=f"{divisor} must divide {whole}",
                        got=f"{given[whole]} / {given[divisor]}",
                        allowed=either(near),
                        attempt=f"{divisor}={near[0]}",
                    )
                )
        width = given["d_model"] // given["n_heads"]
        if not problems and FAMILIES[family].get("positions") == "rotary" and width % 2:
            near = [] if given["d_model"] % 2 else divisors(given["d_model"] // 2, given["n_heads"])
            problems.append(
                Problem(
                    where=text,
                    what="rotary positions turn pairs of numbers, so a head's width is even",
                    got=f"{given['d_model']} / {given['n_heads']} = {width}",
                    allowed=either(near) if near else "another d_model",
                    attempt=f"n_heads={near[0]}" if near else f"d_model={2 * given['d_model']}",
                )
            )
    if problems:
        raise ConfigError(*problems)
    vocabulary, own = given.pop("vocab_size"), given.pop("context", 512 if family == "bert" else 2048)
    if family == "bert":
        return Architecture(BertConfig(**given, vocab_multiple=1), vocabulary, context or own)
    config = GptConfig(**{**FAMILIES[family], **given, "vocab_multiple": 1})
    return Architecture(config, vocabulary, context or own)
