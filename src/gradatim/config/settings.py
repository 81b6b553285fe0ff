"""Every setting of a run, once: its name, type, default and, in the sentence under it, its ``--help``.
Frozen dataclasses and nothing else: reading YAML is ``decode.py``, rules that join several fields are ``rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gradatim.config.settings_lora import LoraConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.settings_translators import TranslatorConfig

# --------------------------------------------------------------------------- models


@dataclass(frozen=True, kw_only=True, slots=True)
class NgramConfig:
    """Counts of word sequences, smoothed."""

    kind: Literal["ngram"] = "ngram"
    """n-gram: the next token depends on the last ``order - 1``."""
    order: int = 5
    """Longest sequence counted; 2 is a bigram."""
    smoothing: Literal["mle", "additive", "kneser-ney"] = "kneser-ney"
    """How unseen sequences get probability: not at all, a constant count, or modified Kneser-Ney."""
    additive_count: float = 1.0
    """What additive smoothing adds to every count (Laplace's is 1)."""
    discount_fallback: bool = False
    """Use discounts 0.5, 1, 1.5 where the counts admit none (small or character data) instead of refusing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """A feed-forward network over the last few tokens (Bengio et al., 2003)."""

    kind: Literal["window"] = "window"
    """Feed-forward model over a fixed window."""
    window: int = 8
    """How many tokens it sees."""
    d_model: int = 128
    """Width of a token's embedding."""
    d_ff: int = 512
    """Width of the hidden layer over the concatenated window."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    tied: bool = True
    """Use the input embedding as the output matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentConfig:
    """Embedding, recurrence unrolled in time, softmax."""

    kind: Literal["rnn", "lstm", "gru"] = "lstm"
    """Elman network, long short-term memory, or gated recurrent unit."""
    d_model: int = 256
    """Width of the hidden state."""
    d_embedding: int | None = None
    """Width of a token's embedding; null means d_model."""
    n_layers: int = 1
    """Recurrent layers on top of each other."""
    dropout: float = 0.0
    """Share of units dropped between layers and before the output."""
    locked_dropout: bool = True
    """Drop the same units at every time step (variational dropout) instead of others at each."""
    embedding_dropout: float = 0.0
    """Share of the vocabulary whose whole embedding is dropped in a step."""
    weight_drop: float = 0.0
    """Share of the recurrent weights dropped in a step (AWD-LSTM)."""
    tied: bool = True
    """Use the input embedding as the output matrix (through a projection where the widths differ)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GptConfig:
    """Decoder-only Transformer: GPT-2 and Llama shapes are settings of one model."""

    kind: Literal["gpt"] = "gpt"
    """Transformer that reads the past through causal self-attention."""
    d_model: int = 256
    """Width of the residual stream."""
    n_layers: int = 4
    """Transformer blocks."""
    n_heads: int = 4
    """Attention heads; each is d_model / n_heads wide."""
    n_kv_heads: int | None = None
    """Heads of keys and values, shared by groups of query heads; null means n_heads."""
    d_ff: int | None = None
    """Width inside the feed-forward layer; null means 4 d_model (swiglu: 8/3 d_model, rounded up to 64)."""
    dropout: float = 0.0
    """Share of activations dropped after embedding, attention and feed-forward."""
    tied: bool = True
    """Use the input embedding as the output matrix."""
    positions: Literal["learned", "rotary"] = "learned"
    """How order enters: a learned vector per position (GPT-2), or rotations of queries and keys (Llama)."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm (GPT-2) or RMSNorm (Llama), before attention and feed-forward."""
    norm_eps: float = 1e-5
    """Added to the variance inside the norm."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Non-linearity of the feed-forward layer."""
    bias: bool = True
    """Biases in linear layers and LayerNorm (GPT-2 has them, Llama does not)."""
    vocab_multiple: int = 64
    """The output matrix is padded up to a multiple of this; padding is masked and never predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig:
    """Encoder that reads both sides of a word, pretrained by filling in blanks (Devlin et al., 2018)."""

    kind: Literal["bert"] = "bert"
    """Transformer encoder with a masked-word and a sentence-pair head."""
    d_model: int = 256
    """Width of the residual stream."""
    n_layers: int = 4
    """Transformer blocks."""
    n_heads: int = 4
    """Attention heads; each is d_model / n_heads wide."""
    d_ff: int | None = None
    """Width inside the feed-forward layer; null means 4 d_model."""
    dropout: float = 0.1
    """Share of activations dropped after embedding, attention and feed-forward, and of attention's weights."""
    position_vectors: Literal["drawn", "sinusoidal"] = "drawn"
    """What learned vectors of positions begin as: random numbers, or waves (Vaswani et al., 2017) of length 1."""
    queries_and_keys: Literal["drawn", "alike"] = "drawn"
    """What their matrices begin as: two of random numbers, or one for both (after Trockman and Kolter, 2023), so that a
    position attends to words like its own."""
    norm_eps: float = 1e-12
    """Added to the variance inside the norm."""
    activation: Literal["gelu-erf", "gelu"] = "gelu-erf"
    """Non-linearity of the feed-forward layer: GELU itself (BERT's), or its tanh form (GPT-2's)."""
    vocab_multiple: int = 64
    """The output matrix is padded up to a multiple of this; padding is masked and never predicted."""
    masked: float = 0.15
    """Share of a row's tokens to be predicted: 80 % of them become [MASK], 10 % a random word, 10 % stay."""
    whole_words: bool = False
    """Choose words, not pieces, to be predicted."""
    pairs: Literal["next-sentence", "sentence-order", "none"] = "next-sentence"
    """Second task: does B follow A in the text or come from another document, are they in order (ALBERT), or none."""
    short: float = 0.1
    """Share of pairs that are shorter than the context, by a random length."""
    first_length: int | None = None
    """Most tokens of a row in the first steps (sequence-length warm-up, Li et al., 2021); null means the context."""
    first_steps: int = 0
    """How many steps those are."""


ModelConfig = NgramConfig | WindowConfig | RecurrentConfig | GptConfig | BertConfig | TranslatorConfig

# --------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """How text becomes ids."""

    kind: Literal["char", "word", "bpe", "wordpiece"] = "bpe"
    """Characters, whole words with one unknown word, byte-level byte-pair encoding, or WordPiece."""
    vocab_size: int | None = 8192
    """Most entries, special tokens included; null means no limit (char and word)."""
    split: Literal["whitespace", "words"] = "whitespace"
    """word only: cut at white space alone, or keep runs of letters and digits and drop punctuation."""
    lowercase: bool = False
    """word, bpe and wordpiece: fold to lower case before anything else (the text is then not recoverable)."""
    min_count: int = 1
    """word and char: rarer entries of the training text become the unknown one."""
    path: str | None = None
    """Use this tokenizer.json instead of training one."""
    source_path: str | None = None
    """Pairs with one vocabulary for each language: that of the source; path is then the target's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which text, and how it is cut."""

    train: tuple[str, ...] = ("python-manual",)
    """Files to learn from, or `python-manual` or `installed-docs`, which bring validation and test parts."""
    valid: tuple[str, ...] = ()
    """Files for validation while training; nothing is held out silently."""
    test: tuple[str, ...] = ()
    """Files for the final measurement."""
    document: Literal["line", "blank-line", "file"] = "file"
    """What a document is in plain text files: a line, a run of lines up to a blank one, or a file."""
    column: str = "text"
    """The text field of .jsonl, .parquet and Hugging Face data."""
    packing: Literal["across", "within"] = "across"
    """Whether a training sample may run across the end of a document."""
    source_language: str | None = None
    """Pairs: what is translated from; names the column of a table. null: the text is no pairs."""
    target_language: str | None = None
    """Pairs: what is translated into."""
    train_source: tuple[str, ...] = ()
    """Pairs in aligned files instead of data.train: the source sentences, one a line."""
    train_target: tuple[str, ...] = ()
    """Their translations, line by line."""
    valid_source: tuple[str, ...] = ()
    """Pairs in aligned files, for validation: the source sentences."""
    valid_target: tuple[str, ...] = ()
    """Their translations."""
    test_source: tuple[str, ...] = ()
    """Pairs in aligned files, for the final measurement: the source sentences."""
    test_target: tuple[str, ...] = ()
    """Their translations."""
    columns: tuple[str, ...] = ()
    """Columns of .tsv files, first to last, where no first line names them: languages of pairs; names of a task's."""
    split: Literal["given", "component"] = "given"
    """Pairs: component holds out part of the training pairs, keeping together what shares a sentence."""
    held_out: tuple[float, float] = (0.05, 0.05)
    """Pairs split by component: shares of validation and test."""
    joint: bool = True
    """Pairs: one vocabulary for both languages, or one for each."""
    tokenised: bool = False
    """Pairs: spaces stand between words and punctuation already; bleu_tokenised then counts what they separate."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes ids."""
    cache: str = "runs/.cache"
    """Where prepared token files are kept, one folder per combination of text and tokenizer."""


# --------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its learning rate."""

    lr: float = 3e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt", "warmup-stable-decay"] = "cosine"
    """How the rate moves after warm-up."""
    warmup: int = 0
    """Steps of linear rise from 0 to lr."""
    min_lr: float = 0.0
    """Where linear, cosine and warmup-stable-decay end."""
    decay_steps: int | None = None
    """Steps of the final fall of warmup-stable-decay; null means a tenth of the run."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    eps: float = 1e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings; vectors (biases, norms) have none."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; null means no clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """How a run is spread over processes; it never changes the mathematics."""

    tp: int = 1
    """Tensor-parallel size."""
    pp: int = 1
    """Pipeline-parallel size."""
    dp: int = 1
    """Data-parallel size."""
    chunks: int = 1
    """Model chunks per pipeline rank (interleaving)."""
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble"] = "1f1b"
    """Order of forward and backward work in the pipeline."""
    microbatch: int | None = None
    """Sequences per forward pass of one rank; null means all of its share at once."""
    sequence_parallel: bool = False
    """Split norms and dropout along the sequence over tp."""
    zero: Literal[0, 1, 2, 3] = 0
    """What is sharded over dp: 1, optimizer state; 2 (gradients) and 3 (weights) are for the planner alone."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of storing."""
    split: Literal["uniform", "by-cost"] | tuple[int, ...] = "uniform"
    """Layers of each model chunk, first to last: as even as can be, evening out embedding and head too, or a list."""
    timeout: float = 600.0
    """Seconds that a rank waits for another before the run is declared hung."""
    check: bool = False
    """Compare, bit by bit and in every step, what ranks are to hold alike, and stop where it differs (slow)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and on how much the model is judged while it trains."""

    every: int = 250
    """Steps between evaluations on the validation text; the last step is always evaluated."""
    tokens: int | None = None
    """Most validation tokens per evaluation; null means all."""
    patience: int | None = None
    """Stop after this many evaluations without a new best; null means never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the run is saved and how many saves are kept."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept; the best one by validation loss is kept besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard events into the run directory (extra `track`)."""
    wandb: str | None = None
    """Weights & Biases project to log to (extra `track`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run. Its training is a pure function of this and the data."""

    seed: int = 0
    """Everything random follows from this and the step number."""
    steps: int = 1000
    """Updates of the weights."""
    global_batch: int = 64
    """Sequences (or sentence pairs) per step."""
    batch_tokens: int | None = None
    """Pairs: instead of global_batch, most tokens a side per step, padding included; those of like length together."""
    context: int = 256
    """Tokens per sequence (pairs: of each side); for recurrent models, the length of truncated back-propagation."""
    model: ModelConfig = field(default_factory=GptConfig)
    """What is trained; `kind` says which, and each kind has fields of its own."""
    init_from: str | None = None
    """Start from the weights of this run or Hugging Face directory; its model fills in what the recipe leaves open."""
    word_vectors: Literal["drawn", "counted"] = "drawn"
    """What the embedding begins as: random numbers, or vectors counted from the neighbours of words in the text."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Whether the weights of init_from stay as they are and low-rank adapters beside them are trained."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What a Transformer is fine-tuned for."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which text, and how it is cut."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its learning rate."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """How the run is spread over processes."""
    cluster: str | None = None
    """What `layout: auto` plans for: a cluster's name or file (`gradatim calibrate` makes one); null: this machine."""
    precision: Literal["fp32", "fp64", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; bf16 multiplies bf16 copies of weights that are, like sums, fp32."""
    compile: bool = False
    """Compile the model's blocks with torch.compile."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """When and on how much the model is judged while it trains."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the run is saved and how many saves are kept."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Where metrics go besides metrics.jsonl."""
    max_skipped_steps: int = 10
    """Updates skipped for a loss or gradient that is not finite before the run gives up."""
