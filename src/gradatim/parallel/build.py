"""The part of a model that one rank holds: cut by stages, sharded by tensor parallelism, with its initial weights.

The whole model is made on the meta device, where it costs nothing, and loses what other ranks hold; then its layers are
exchanged for parallel ones as ``shapes/`` says of each parameter, and only what remains is drawn. Parameters keep their
names, so the model's own mathematics runs on, whole or shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gradatim.config.settings_lora import LoraConfig
from gradatim.config.tuned import AnyModelConfig
from gradatim.models import new_model
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.cross_attention import CrossAttention
from gradatim.models.layers.embedding import Positions, Segments, WholeSequence
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.init import draw, init_of, seed_of
from gradatim.models.layers.lora import AdaptedLinear, adapt
from gradatim.models.layers.output import Output
from gradatim.models.neural import NeuralModel, Recompute
from gradatim.parallel.adapted import adapted_columns, share
from gradatim.parallel.linear import ColumnLinear, RowLinear, WeightGradients, columns
from gradatim.parallel.mesh import Axis, Mesh
from gradatim.parallel.spec import ParameterSpec, specify
from gradatim.parallel.vocabulary import Gathered, PositionsShard, SegmentsShard, VocabEmbedding, VocabOutput
from gradatim.shapes import COLUMN, ROW, Split, parameters
from gradatim.shapes.lora import adapter_parameters, learned_heads
from gradatim.train.precision import own_gpu


@dataclass
class Chunk:
    """Some consecutive layers of a model, perhaps with an end."""

    model: NeuralModel
    """Cut, sharded, initialised; what an objective asks of it works as far as its parts go."""
    specs: dict[str, ParameterSpec]
    """By the name in ``model.named_parameters()``, in that order."""
    queue: WeightGradients | None = None
    """Where weight gradients wait that were not computed with the others; None unless deferred."""


def build_chunk(
    config: AnyModelConfig,
    vocab_size: int,
    context: int,
    *,
    layers: Sequence[int],
    embed: bool,
    head: bool,
    mesh: Mesh,
    sequence_parallel: bool = False,
    recompute: Recompute = "none",
    deferred: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    source_vocab_size: int | None = None,
    lora: LoraConfig | None = None,
    fixed_dtype: torch.dtype | None = None,
) -> Chunk:
    """Build this rank's part of a model.

    Its weights are, to the bit, those slices of ``build_model(config, vocab_size, context, seed)``.

    Args:
        config: of the whole model.
        vocab_size: words, without padding.
        context: most positions.
        layers: the blocks held, by their numbers in the whole model.
        embed: whether the embedding is held.
        head: whether norm and output matrix are held.
        mesh: this rank's place.
        sequence_parallel: whether activations between blocks are cut along the sequence over tp.
        recompute: what the backward pass computes again.
        deferred: whether weight gradients can wait (``Chunk.queue``), as zero-bubble schedules ask.
        seed: of the initial weights.
        dtype: of the weights.
        device: where they live; on ``meta`` they are not drawn.
        source_vocab_size: of a translator whose source has a vocabulary of its own.
        lora: adapters to be trained instead of the weights; those are then not drawn, and hold nothing yet.
        fixed_dtype: of the matrices that are not trained; default ``dtype``.
    """
    lora = lora or LoraConfig()
    device = torch.device(device)
    with torch.device("meta"):
        model = new_model(config, vocab_size, context, source_vocab_size)
        if lora.rank is not None:
            adapt(model, lora, learned_heads(config))
    shapes = {shape.name: shape for shape in parameters(config, vocab_size, context, source_vocab_size)}
    tied = "head.output.weight" in dict(model.named_parameters(remove_duplicate=False)).keys() - shapes.keys()
    shapes |= {shape.name: shape for shape in adapter_parameters(config, lora, vocab_size, context)}
    model.keep(layers, embed=embed, head=head)
    queue = WeightGradients() if deferred else None
    if mesh.tp.size > 1 or deferred:
        splits = {shape.name: shape.split for shape in shapes.values()}
        exchange_layers(model, splits, mesh.tp, sequence_parallel=sequence_parallel, queue=queue)
    specs: dict[str, ParameterSpec] = {}
    for name, parameter in model.named_parameters():
        copy = name not in shapes
        shape = shapes["embed.tokens.weight" if copy else name]
        assert tuple(parameter.shape) == shape.shape, name
        twin = tied and shape.name == "embed.tokens.weight" and embed != head
        specs[name] = specify(
            name, shape, mesh.tp, sequence_parallel=sequence_parallel, copy=copy, tied=twin and mesh.ends.size > 1
        )
    materialise(model, specs, seed, dtype, fixed_dtype or dtype, device)
    model.set_recompute(recompute)
    return Chunk(model.train(), specs, queue)


def exchange_layers(
    model: NeuralModel,
    splits: Mapping[str, Split],
    tp: Axis,
    *,
    sequence_parallel: bool,
    queue: WeightGradients | None,
) -> None:
    """Put a parallel layer in the place of each layer whose weight is split, with the same (still whole) parameters.

    Raises:
        ValueError: the model has layers that are not split, or too few heads to split.
    """
    if tp.size > 1 and not {COLUMN, ROW} & set(splits.values()):
        raise ValueError(f"{type(model).__name__} is not split over tensor-parallel ranks")
    whole = any(isinstance(module, WholeSequence) for module in model.modules())  # ahead of the head
    for name, module in list(model.named_modules()):
        split = splits.get(f"{name}.weight")
        new: nn.Module
        if isinstance(module, AdaptedLinear):
            if tp.size > 1 and split in (COLUMN, ROW):
                share(module, split, tp, sequence_parallel)
                module.random = partial(_shard_random, name, tp.index) if split == ROW else module.random
            continue
        if isinstance(module, nn.Linear) and split in (COLUMN, ROW):
            kind = ColumnLinear if split == COLUMN else RowLinear
            new = kind(module, tp, sequence_parallel=sequence_parallel, queue=queue)
        elif tp.size == 1:
            continue
        elif isinstance(module, nn.Embedding):
            new = VocabEmbedding(module, tp, sequence_parallel=sequence_parallel)
        elif isinstance(module, Output):
            new = VocabOutput(module, tp, sequence_parallel=sequence_parallel and not whole)
        elif isinstance(module, Positions) and sequence_parallel:
            new = PositionsShard(module, tp)
        elif isinstance(module, Segments) and sequence_parallel:
            new = SegmentsShard(module, tp)
        elif isinstance(module, WholeSequence) and sequence_parallel:
            new = Gathered(tp)
        else:
            continue
        model.set_submodule(name, new)
    for name, module in model.named_modules():
        if isinstance(module, FeedForward):
            module.project = adapted_columns if isinstance(module.up, AdaptedLinear) else columns
        if isinstance(module, CrossAttention) and tp.size > 1 and not sequence_parallel:
            module.core_random = partial(_shard_random, name, tp.index)
        if isinstance(module, SelfAttention) and tp.size > 1:
            kv_heads = module.qkv.weight.shape[0] // ((module.group + 2) * module.head_dim)
            if kv_heads % tp.size:
                raise ValueError(f"{name}: {kv_heads} key-value heads cannot be split over tp {tp.size}")
            if not sequence_parallel:
                module.core_random = partial(_shard_random, name, tp.index)


@contextlib.contextmanager
def _shard_random(name: str, index: int) -> Iterator[None]:
    """Random numbers of this shard's heads; outside, all shards of replicated activations go on drawing alike."""
    with torch.random.fork_rng(own_gpu()):
        torch.manual_seed(seed_of(torch.initial_seed(), name, index))
        yield


def materialise(
    model: NeuralModel,
    specs: dict[str, ParameterSpec],
    seed: int,
    dtype: torch.dtype,
    fixed_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Exchange every parameter for its local part, with initial weights; a tied matrix remains one parameter.

    What is not trained is to be read from somewhere: it is not drawn, and its matrices are of ``fixed_dtype``.
    """
    places = [
        (module, own, f"{path}.{own}" if path else own)
        for path, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
    ]
    made: dict[int, nn.Parameter] = {}
    for module, own, name in places:
        whole = module.get_parameter(own)
        if id(whole) not in made:
            spec = specs[name]
            if whole.requires_grad:
                made[id(whole)] = nn.Parameter(_initial(model, spec, seed, device).to(device, dtype))
            else:
                kept = fixed_dtype if len(spec.shape) > 1 else dtype
                made[id(whole)] = nn.Parameter(torch.empty(spec.local, dtype=kept, device=device), requires_grad=False)
        setattr(module, own, made[id(whole)])
    for buffer_name, buffer in list(model.named_buffers()):
        assert "." not in buffer_name
        setattr(model, buffer_name, buffer.to(device))


def _initial(model: NeuralModel, spec: ParameterSpec, seed: int, device: torch.device) -> torch.Tensor:
    return torch.empty(spec.local, device=device) if device.type == "meta" else initial(model, spec, seed)


def initial(model: NeuralModel, spec: ParameterSpec, seed: int) -> torch.Tensor:
    """The part held here of a parameter as it is drawn."""
    init = init_of(model, spec.global_name, spec.shape)
    first, stop = spec.offset[0], spec.offset[0] + spec.local[0]
    columns = slice(spec.offset[1], spec.offset[1] + spec.local[1]) if spec.split == 1 else None
    return draw(init, spec.global_name, spec.shape, seed, first, stop, columns)
