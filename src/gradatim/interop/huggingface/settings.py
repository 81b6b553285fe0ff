"""``config.json`` of GPT-2, Llama and BERT from and to our settings, no number passed over. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.config.derived import feed_forward_width
from gradatim.config.settings import BertConfig, GptConfig, ModelConfig
from gradatim.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from gradatim.interop.huggingface.names import Architecture

ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "llama", "bert")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


class _Facts:
    """A config.json, read field by field; what does not fit is collected."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.found: list[Problem] = []

    def number(self, name: str, kind: type[int] | type[float] = int) -> Any:
        value: Any = self.facts.get(name)
        fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not fits or value <= 0:
            self.wrong(name, value, "a number above 0")
            return kind(1)
        return kind(value)

    def only(self, name: str, *allowed: Any) -> Any:
        """A field that must have one of these values; the first is also that of a file that leaves it out."""
        value = self.facts.get(name, allowed[0])
        if value not in allowed:
            self.wrong(name, value, " or ".join(str(choice) for choice in allowed))
            return allowed[0]
        return value

    def wrong(self, name: str, value: Any, allowed: str) -> None:
        what = f"{name} is not what this program's models compute"
        self.found.append(Problem(where=str(self.path), what=what, got=str(value)[:200], allowed=allowed))


def read_settings(path: Path, facts: Mapping[str, Any]) -> tuple[Architecture, ModelConfig, int, int]:
    """Architecture, model, context and vocabulary size of a config.json.

    Raises:
        DataError: another architecture, or settings that ours has not, all of them at once.
    """
    kind = facts.get("model_type")
    if kind not in ARCHITECTURES:
        raise DataError(
            Problem(
                where=str(path),
                what="models of this architecture are not read",
                got=f"model_type {kind}",
                allowed=", ".join(ARCHITECTURES),
                attempt="a directory of one of these",
            )
        )
    read = _Facts(path, facts)
    config, context = {"gpt2": _gpt2, "llama": _llama, "bert": _bert}[kind](read)
    size = read.number("vocab_size")
    if not read.found:
        assert isinstance(config, (GptConfig, BertConfig))
        if config.d_model % config.n_heads:
            read.wrong("the number of heads", config.n_heads, f"a divisor of the width {config.d_model}")
        elif isinstance(config, GptConfig) and config.n_heads % (config.n_kv_heads or config.n_heads):
            read.wrong("num_key_value_heads", config.n_kv_heads, f"a divisor of {config.n_heads}")
    if read.found:
        raise DataError(*read.found)
    return kind, config, context, size


def _gpt2(read: _Facts) -> tuple[ModelConfig, int]:
    read.only("activation_function", *TANH_GELU)
    read.only("scale_attn_weights", True)
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.only("add_cross_attention", False)
    inner = None if read.facts.get("n_inner") is None else read.number("n_inner")
    config = GptConfig(
        d_model=read.number("n_embd"), n_layers=read.number("n_layer"), n_heads=read.number("n_head"), d_ff=inner,
        norm_eps=read.number("layer_norm_epsilon", float) if "layer_norm_epsilon" in read.facts else 1e-5,
        tied=read.only("tie_word_embeddings", True, False),
    )  # fmt: skip
    return config, read.number("n_positions")


def _llama(read: _Facts) -> tuple[ModelConfig, int]:
    facts = read.facts
    read.only("hidden_act", "silu")
    bias = read.only("attention_bias", False, True)
    read.only("mlp_bias", bias)
    kv = None if facts.get("num_key_value_heads") is None else read.number("num_key_value_heads")
    d, n_heads = read.number("hidden_size"), read.number("num_attention_heads")
    if facts.get("head_dim") is not None and facts["head_dim"] * n_heads != d:
        read.wrong("head_dim", facts["head_dim"], f"{d} / {n_heads}")
    config = GptConfig(
        d_model=d, n_layers=read.number("num_hidden_layers"), n_heads=n_heads, n_kv_heads=None if kv == n_heads else kv,
        d_ff=read.number("intermediate_size"), tied=read.only("tie_word_embeddings", False, True), positions="rotary",
        rope_theta=_theta(read), norm="rms", norm_eps=read.number("rms_norm_eps", float), activation="swiglu",
        bias=bias,
    )  # fmt: skip
    return config, read.number("max_position_embeddings")


def _theta(read: _Facts) -> float:
    """The base of rotary positions: ``rope_parameters`` of today's files, or ``rope_theta`` of earlier ones."""
    today, scaling = read.facts.get("rope_parameters"), read.facts.get("rope_scaling")
    for name, value in (("rope_parameters", today), ("rope_scaling", scaling)):
        how = value.get("rope_type", value.get("type", "default")) if isinstance(value, Mapping) else "default"
        if how != "default":
            read.wrong(name, value, "rope_type default")
    given = next((m["rope_theta"] for m in (today, scaling) if isinstance(m, Mapping) and "rope_theta" in m), None)
    theta = given if given is not None else read.facts.get("rope_theta", 10000.0)
    if not isinstance(theta, (int, float)) or theta <= 0:
        read.wrong("rope_theta", theta, "a number above 0")
        return 10000.0
    return float(theta)


def _bert(read: _Facts) -> tuple[ModelConfig, int]:
    act = read.only("hidden_act", "gelu", *TANH_GELU)
    read.only("position_embedding_type", "absolute", None)
    read.only("is_decoder", False)
    read.only("type_vocab_size", 2)
    read.only("tie_word_embeddings", True)
    config = BertConfig(
        d_model=read.number("hidden_size"), n_layers=read.number("num_hidden_layers"),
        n_heads=read.number("num_attention_heads"), d_ff=read.number("intermediate_size"),
        norm_eps=read.number("layer_norm_eps", float) if "layer_norm_eps" in read.facts else 1e-12,
        activation="gelu-erf" if act == "gelu" else "gelu",
    )  # fmt: skip
    return config, read.number("max_position_embeddings")


# --------------------------------------------------------------------------- writing


def architecture_of(config: ModelConfig, where: str) -> Architecture:
    """What a model is called there.

    Raises:
        ConfigError: it is neither GPT-2, Llama nor BERT, with each setting that stands against the nearest.
    """
    if isinstance(config, BertConfig):
        return "bert"
    if not isinstance(config, GptConfig):
        what = "only GPT-2, Llama and BERT have a place in a Hugging Face directory"
        raise ConfigError(Problem(where=where, what=what, got=f"kind {config.kind}", allowed="kind gpt or bert"))
    gpt2 = {"positions": "learned", "norm": "layer", "activation": "gelu", "bias": True, "n_kv_heads": None}
    llama = {"positions": "rotary", "norm": "rms", "activation": "swiglu"}
    against = {
        "gpt2": [name for name, value in gpt2.items() if getattr(config, name) not in (value,)],
        "llama": [name for name, value in llama.items() if getattr(config, name) != value],
    }
    if config.n_kv_heads == config.n_heads:
        against["gpt2"] = [name for name in against["gpt2"] if name != "n_kv_heads"]
    kinds: tuple[Architecture, ...] = ("gpt2", "llama")
    for kind in kinds:
        if not against[kind]:
            return kind
    near = min(against, key=lambda kind: len(against[kind]))
    wanted = gpt2 if near == "gpt2" else llama
    raise ConfigError(
        *(
            Problem(
                where=f"{where}: model.{name}",
                what=f"a model of this setting is neither GPT-2 nor Llama, of which {near} is nearer",
                got=str(getattr(config, name)),
                allowed=str(wanted[name]),
                attempt=f"train one with --model.{name} {str(wanted[name]).lower()}",
            )
            for name in against[near]
        )
    )


def settings_json(
    architecture: Architecture,
    config: ModelConfig,
    vocab_size: int,
    context: int,
    dtype: str,
    boundary: int,
    opening: int,
) -> dict[str, Any]:
    """The config.json of a model."""
    assert isinstance(config, (GptConfig, BertConfig))
    common = {"vocab_size": vocab_size, "torch_dtype": dtype, "initializer_range": 0.02}
    if isinstance(config, BertConfig):
        return {
            "architectures": ["BertForMaskedLM" if config.pairs == "none" else "BertForPreTraining"],
            "model_type": "bert", "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
            "intermediate_size": feed_forward_width(config), "max_position_embeddings": context,
            "hidden_act": "gelu" if config.activation == "gelu-erf" else "gelu_new", "type_vocab_size": 2,
            "layer_norm_eps": config.norm_eps, "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout, "tie_word_embeddings": True, **common,
        }  # fmt: skip
    common |= {"bos_token_id": opening, "eos_token_id": boundary, "tie_word_embeddings": config.tied}
    if architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": config.d_model,
            "n_layer": config.n_layers, "n_head": config.n_heads, "n_inner": config.d_ff, "n_positions": context,
            "activation_function": "gelu_new", "layer_norm_epsilon": config.norm_eps, "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, **common,
        }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads, "intermediate_size": feed_forward_width(config),
        "max_position_embeddings": context, "hidden_act": "silu", "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias, "mlp_bias": config.bias, **common,
    }  # fmt: skip
