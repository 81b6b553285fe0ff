"""What a recurrent encoder-decoder consists of. No torch; nothing of it is split over tensor-parallel ranks."""

from __future__ import annotations

from gradatim.config.settings_translators import Seq2SeqConfig
from gradatim.shapes.parameters import REPLICATED, VOCAB, Matmul, ParameterShape, linear
from gradatim.shapes.recurrent import GATES


def _recurrence(rows: int, into: int, width: int, weight: str, end: str = "") -> list[ParameterShape]:
    return [
        ParameterShape(f"{weight}weight_ih{end}", (rows, into)),
        ParameterShape(f"{weight}weight_hh{end}", (rows, width)),
        ParameterShape(f"{weight}bias_ih{end}", (rows,)),
        ParameterShape(f"{weight}bias_hh{end}", (rows,)),
    ]


def parameters(config: Seq2SeqConfig, vocab_size: int, source_vocab_size: int | None = None) -> list[ParameterShape]:
    """Every parameter in the order of the model; a shared or tied matrix stands once, at the target's embedding."""
    d, width, gates = config.d_model, config.d_embedding or config.d_model, GATES[config.cell]
    found: list[ParameterShape] = []
    if not config.shared:
        found.append(ParameterShape("source_embed.tokens.weight", (source_vocab_size or vocab_size, width), VOCAB))
    half = d // 2 if config.bidirectional else d
    for layer in range(config.n_layers):
        for end in ("", "_reverse") if config.bidirectional else ("",):
            found += _recurrence(gates * half, d if layer else width, half, "encoder.", f"_l{layer}{end}")
    for layer in range(config.n_layers):
        for part in range(2 if config.cell == "lstm" else 1):
            found += linear(f"bridge.{layer}.{part}", d, d, REPLICATED, bias=True)
    found.append(ParameterShape("embed.tokens.weight", (vocab_size, width), VOCAB))
    into = width + (d if config.input_feeding or config.summary_feeding else 0)
    for layer in range(config.n_layers):
        found += _recurrence(gates * d, d if layer else into, d, f"blocks.{layer}.")
    found += _alignment(config)
    if config.tied and width != d:
        found.append(ParameterShape("head.projection.weight", (width, d)))
    if not config.tied:
        found.append(ParameterShape("head.output.weight", (vocab_size, d), VOCAB))
    found.append(ParameterShape("head.output.bias", (vocab_size,), VOCAB))
    return found


def _alignment(config: Seq2SeqConfig) -> list[ParameterShape]:
    d, additive = config.d_model, config.attention == "additive"
    combine = ParameterShape("combine.weight", (d, 2 * d))
    if config.attention == "none":
        return [combine] if config.summary_feeding else []
    found = [ParameterShape("alignment.score", (d,))] if additive else []
    if config.coverage:
        found.append(ParameterShape("alignment.covered", (d if additive else 1,)))
    if additive:
        found += linear("alignment.query", d, d, REPLICATED, bias=False)
    if config.attention != "dot":
        found += linear("alignment.key", d, d, REPLICATED, bias=additive)
    return [*found, combine]


def matmuls(config: Seq2SeqConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one target token and one source token, both sentences ``context`` tokens long."""
    d, width, gates, layers = config.d_model, config.d_embedding or config.d_model, GATES[config.cell], config.n_layers
    half = d // 2 if config.bidirectional else d
    directions = 2 if config.bidirectional else 1
    into = width + (d if config.input_feeding or config.summary_feeding else 0)
    attends, projects = config.attention != "none", config.tied and width != d
    found = [
        Matmul("encoder.input", gates * half, width, directions),
        Matmul("encoder.hidden", gates * half, half, directions * layers),
        Matmul("decoder.input", gates * d, into),
        Matmul("decoder.hidden", gates * d, d, layers),
    ]
    if layers > 1:
        found += [
            Matmul("encoder.input", gates * half, d, directions * (layers - 1)),
            Matmul("decoder.input", gates * d, d, layers - 1),
        ]
    if config.attention == "additive":
        found.append(Matmul("alignment.query", d, d))
    if config.attention in ("additive", "general"):
        found.append(Matmul("alignment.key", d, d))
    if attends:
        found += [
            Matmul("attention.scores", context, d),
            Matmul("attention.values", d, context),
        ]
    if attends or config.summary_feeding:
        found.append(Matmul("combine", d, 2 * d))
    if projects:
        found.append(Matmul("head.projection", width, d))
    return [*found, Matmul("head.output", vocab_size, width if projects else d)]
