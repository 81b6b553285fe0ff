"""Recurrent encoder and decoder, with or without attention.

    encoder   h_j = LSTM or GRU over the source, in both directions side by side
    bridge    s_0 = tanh(W h_end), c_0 = W' c_end, layer by layer
    decoder   s_i = LSTM or GRU (embedding of target i-1 [; h̃_{i-1}], s_{i-1})
    attention a, context = align(s_i, h);  h̃_i = tanh(W_c [context; s_i])
    logits    from h̃_i (without attention: s_i)

Encoder and decoder: Sutskever et al. 2014, Cho et al. 2014. Attention: Bahdanau et al. 2015, Luong et al. 2015. Between
them stands summary feeding (Cho et al. 2014): s_0 of the last layer takes the context's and h̃_{i-1}'s place in every
step, so that the decoder need not carry the source along.

The state of a step asks (Luong's order). Training feeds the true target words (teacher forcing). With input feeding or
coverage, each step depends on the one before beyond the recurrence, so the steps are taken one by one; without, the
whole target is unrolled at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradatim.config.settings_translators import Seq2SeqConfig
from gradatim.models.layers.alignment import Alignment
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.init import Init
from gradatim.models.layers.memory import Memory
from gradatim.models.layers.output import Head, Output
from gradatim.models.layers.recurrence import Recurrence
from gradatim.models.translator import Translator, needs_source, real_positions
from gradatim.text.batches import Source

Layers = tuple[tuple[Float[Tensor, "b d"], ...], ...]


@dataclass(frozen=True, slots=True)
class Seq2SeqState:
    """What a decoder remembers."""

    layers: Layers
    """Per layer the hidden vector and the LSTM's cell."""
    memory: Memory
    """Keys and encoder output ``[n s d]``; nothing without attention."""
    fed: Float[Tensor, "b d"] | None = None
    """The last attentional vector, or the summary of the source, where that is fed as input."""
    coverage: Float[Tensor, "b s"] | None = None
    """Attention each source position has had."""
    shows: bool = False
    """Whether attention weights are kept."""
    attention: Float[Tensor, "b one t s"] | None = None
    """Where the decoder looked while it read its last tokens."""

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows."""
        return replace(
            self,
            layers=tuple(tuple(part[rows] for part in layer) for layer in self.layers),
            memory=self.memory.select(rows),
            fed=None if self.fed is None else self.fed[rows],
            coverage=None if self.coverage is None else self.coverage[rows],
            attention=None if self.attention is None else self.attention[rows],
        )

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states."""
        memory = Memory.join([state.memory for state in states], [1] * len(states[0].memory.tensors))
        layers = zip(*(state.layers for state in states), strict=True)
        length = memory.real.shape[1]
        fed = [state.fed for state in states if state.fed is not None]
        covered = [F.pad(c, (0, length - c.shape[1])) for state in states if (c := state.coverage) is not None]
        return cls(
            tuple(tuple(torch.cat(parts) for parts in zip(*layer, strict=True)) for layer in layers),
            memory,
            torch.cat(fed) if fed else None,
            torch.cat(covered) if covered else None,
            all(state.shows for state in states),
        )


class Seq2Seq(Translator):
    """Encoder, bridge, decoder, output matrix."""

    context = None

    def __init__(self, config: Seq2SeqConfig, vocab_size: int, source_vocab_size: int | None = None) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.source_vocab_size = source_vocab_size or vocab_size
        self.label_smoothing = config.label_smoothing
        d, width, layers = config.d_model, config.d_embedding or config.d_model, config.n_layers
        self.source_embed = None if config.shared else Embedding(self.source_vocab_size, width)
        unroll = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.encoder = unroll(
            width, d // 2 if config.bidirectional else d, layers, batch_first=True,
            bidirectional=config.bidirectional, dropout=config.dropout if layers > 1 else 0.0,
        )  # fmt: skip
        parts = 2 if config.cell == "lstm" else 1
        self.bridge = nn.ModuleList(nn.ModuleList(nn.Linear(d, d) for _ in range(parts)) for _ in range(layers))
        self.embed = Embedding(vocab_size, width)
        into = width + (d if config.input_feeding or config.summary_feeding else 0)
        self.blocks = nn.ModuleList(Recurrence(config.cell, d if layer else into, d) for layer in range(layers))
        attends = config.attention != "none"
        self.alignment = Alignment(config.attention, d, config.coverage) if attends else None
        self.combine = nn.Linear(2 * d, d, bias=False) if attends or config.summary_feeding else None
        projection = nn.Linear(d, width, bias=False) if config.tied and width != d else None
        weight = self.embed.tokens.weight if config.tied else nn.Parameter(torch.empty(vocab_size, d))
        self.head = Head(Output(weight, vocab_size, bias=True), projection=projection)
        self.attention_names = ("decoder",) if attends else ()

    def initial(self, name: str) -> Init:
        """Matrices and vectors U(±1/√d_model); embeddings N(0, 0.1²), 0.05² where tied; biases 0, forget gates 1."""
        d = self.config.d_model
        if "bias_ih" in name and self.config.cell == "lstm":
            h = d // 2 if name.startswith("encoder") and self.config.bidirectional else d
            return Init("constant", 0.0, fixed=(h, 2 * h, 1.0))
        if "bias" in name or name == "alignment.covered":
            return Init("constant", 0.0)
        if name.endswith("tokens.weight"):
            tied = name == "embed.tokens.weight" and self.config.tied
            return Init("normal", 0.05 if tied else 0.1)
        return Init("uniform", d**-0.5)

    # ------------------------------------------------------------------ the source

    def encode(self, source: Source) -> tuple[Float[Tensor, "b s d"], Layers]:
        """The encoder's output at each position, and the decoder's first state."""
        embed = self.embed if self.source_embed is None else self.source_embed
        order = None
        ids = source.ids
        if self.config.reversed_source:
            place = torch.arange(ids.shape[1], device=ids.device)
            order = torch.where(place < source.lengths[:, None], source.lengths[:, None] - 1 - place, place)
            ids = ids.gather(1, order)
        # Packed: each direction of each row begins and ends at the row's own ends, whatever stands behind them.
        packed = pack_padded_sequence(
            self._drop(embed(ids)), source.lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        output, ends = self.encoder(packed)
        encoded, _ = pad_packed_sequence(output, batch_first=True, total_length=ids.shape[1])
        if order is not None:
            encoded = encoded.gather(1, order[:, :, None].expand_as(encoded))
        parts = ends if self.config.cell == "lstm" else (ends,)
        return encoded, tuple(self._bridged(layer, parts) for layer in range(self.config.n_layers))

    def _bridged(self, layer: int, parts: tuple[Float[Tensor, "n b h"], ...]) -> tuple[Float[Tensor, "b d"], ...]:
        """A decoder layer's first state (hidden vector, cell) from the encoder's last of the same layer."""
        bridges = cast(nn.ModuleList, self.bridge[layer])
        ends = [bridge(_side_by_side(part, layer, self.config.n_layers)) for bridge, part in zip(bridges, parts)]
        return (ends[0].tanh(), *ends[1:])

    def start(self, batch: int, source: Source | None = None, attention: bool = False) -> Seq2SeqState:
        """Encode, and compute what attention needs of the source once."""
        source = needs_source(source)
        encoded, layers = self.encode(source)
        real = real_positions(source)
        if self.alignment is None:
            summary = layers[-1][0] if self.config.summary_feeding else None
            return Seq2SeqState(layers, Memory((), real), summary, shows=attention)
        memory = Memory((self.alignment.keys(encoded), encoded), real)
        fed = encoded.new_zeros(len(real), self.config.d_model) if self.config.input_feeding else None
        covered = encoded.new_zeros(real.shape) if self.config.coverage else None
        return Seq2SeqState(layers, memory, fed, covered, attention)

    # ------------------------------------------------------------------ the target

    def read(self, source: Source, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """See ``Translator``: teacher forcing."""
        return self.hidden(ids, self.start(len(ids), source))[0]

    def hidden(
        self, ids: Int[Tensor, "b t"], state: Seq2SeqState | None = None
    ) -> tuple[Float[Tensor, "b t d"], Seq2SeqState]:
        """Attentional vectors (without attention or summary: the last layer's states), and the state behind them."""
        if state is None:
            raise ValueError("a translator starts from source sentences: start(batch, source)")
        x = self._drop(self.embed(ids))
        if self.alignment is None or (state.fed is None and state.coverage is None):
            y, weights, state = self._step(x, state)
        else:
            found = []
            for word in x.tensor_split(x.shape[1], dim=1):
                y, weights, state = self._step(word, state)
                found.append((y, weights))
            y = torch.cat([part for part, _ in found], 1)
            weights = torch.cat([part for _, part in found if part is not None], 1)
        shown = weights[:, None] if state.shows and weights is not None else None
        return self._drop(y), replace(state, attention=shown)

    def _step(
        self, x: Float[Tensor, "b t e"], state: Seq2SeqState
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"] | None, Seq2SeqState]:
        """Some tokens whose input is known: all there are, or one that the attentional vector before it goes with."""
        fed = None if state.fed is None else state.fed[:, None].expand(-1, x.shape[1], -1)
        if fed is not None:
            x = torch.cat([x, fed], 2)
        after = []
        for index, (block, before) in enumerate(zip(self.blocks, state.layers, strict=True)):
            x, layer = block(x if index == 0 else self._drop(x), before)
            after.append(layer)
        state = replace(state, layers=tuple(after))
        if self.combine is None:
            return x, None, state
        if self.alignment is None:
            assert fed is not None  # the summary
            return self.combine(torch.cat([fed, x], 2)).tanh(), None, state
        keys, encoded = state.memory.tensors
        context, weights = self.alignment(x, keys, encoded, state.memory.real, state.coverage)
        y = self.combine(torch.cat([context, x], 2)).tanh()
        last = None if fed is None else y[:, -1]
        covered = None if state.coverage is None else state.coverage + weights.sum(1)
        return y, weights, replace(state, fed=last, coverage=covered)

    def _drop(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return dropout(x, self.config.dropout, self.training)


def _side_by_side(part: Float[Tensor, "n b h"], layer: int, layers: int) -> Float[Tensor, "b d"]:
    """One layer's last state, its directions next to each other."""
    directions = len(part) // layers
    return part[layer * directions : (layer + 1) * directions].transpose(0, 1).flatten(1)
