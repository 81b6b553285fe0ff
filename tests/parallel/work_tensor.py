"""What the workers do for test_tensor.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gradatim.config.settings import GptConfig, LayoutConfig
from gradatim.models import build_model
from gradatim.models.layers.output import Output
from gradatim.parallel import collectives
from gradatim.parallel.build import Chunk, build_chunk
from gradatim.parallel.mesh import Mesh, create_mesh, single
from gradatim.parallel.vocabulary import VocabOutput

VOCAB, CONTEXT, SEED = 71, 16, 3
LLAMA: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "tied": False}
CONFIGS = {
    "gpt2": GptConfig(d_model=32, n_layers=3, n_heads=4, vocab_multiple=32),
    "llama": GptConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=48, vocab_multiple=32, **LLAMA),
    "llama4": GptConfig(d_model=32, n_layers=2, n_heads=8, n_kv_heads=4, d_ff=48, vocab_multiple=32, **LLAMA),
    "dropout": GptConfig(d_model=32, n_layers=2, n_heads=4, vocab_multiple=32, dropout=0.3),
}
"""71 words in 96 rows: over two ranks the second has padding, over four the last has nothing else."""


@functools.cache
def mesh_of(tp: int) -> Mesh:
    """One mesh per size, for groups are made for good."""
    return single() if tp == 1 else create_mesh(LayoutConfig(tp=tp))


def build(name: str, mesh: Mesh, dtype: torch.dtype = torch.float64, **options: Any) -> Chunk:
    config = CONFIGS[name]
    return build_chunk(
        config, VOCAB, CONTEXT, layers=range(config.n_layers), embed=True, head=True, mesh=mesh, seed=SEED,
        dtype=dtype, **options,
    )  # fmt: skip


def batch(b: int = 3, t: int = CONTEXT, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and targets, some of which are not to be learned, one row in all."""
    generator = torch.Generator().manual_seed(seed)
    ids, targets = (torch.randint(0, VOCAB, (b, t), generator=generator) for _ in range(2))
    targets[0, t // 2 :] = -100
    targets[-1] = -100
    return ids, targets


def disturb(chunk: Chunk, whole: nn.Module | None = None) -> None:
    """Replace biases and norms by random numbers, alike in shards and whole, so that mistakes with them show."""
    for name, parameter in (whole or chunk.model).named_parameters():
        if parameter.dim() == 1:
            shape = parameter.shape if whole is not None else chunk.specs[name].shape
            values = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float64)
            if whole is None:
                spec = chunk.specs[name]
                values = values[spec.offset[0] : spec.offset[0] + spec.local[0]]
            parameter.data.copy_(values * 0.3 + 0.5)


def serial(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole model."""
    model = build_model(CONFIGS[name], VOCAB, CONTEXT, seed=SEED).to(dtype).train()
    disturb(None, model)  # type: ignore[arg-type]
    ids, targets = batch()
    loss = model.nll(model.hidden(ids)[0], targets)
    (loss / 7).backward()
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def whole_gradient(chunk: Chunk, mesh: Mesh, name: str) -> Tensor:
    """A gradient in the shape of the whole parameter, from what the ranks have."""
    spec, parameter = chunk.specs[name], chunk.model.get_parameter(name)
    assert parameter.grad is not None, name
    grad = parameter.grad.clone()
    if mesh.tp.size == 1:
        return grad
    if spec.partial:
        dist.all_reduce(grad, group=mesh.tp.group)
    parts = list(collectives.stack_of_ranks(grad, mesh.tp).unbind(0))
    if spec.split is not None:
        return torch.cat(parts, spec.split)
    assert all(torch.equal(part, parts[0]) for part in parts), f"{name} differs over tp"
    return parts[0]


def step(rank: int, world: int, name: str, options: dict[str, Any], low: bool = False, deferred: bool = False) -> float:
    """Loss and gradients against the whole model's; the largest relative difference, by the issue's measure."""
    mesh = mesh_of(world)
    dtype = torch.float32 if low else torch.float64
    chunk = build(name, mesh, dtype, deferred=deferred, **options)
    disturb(chunk)
    expected, gradients = serial(name, dtype)
    ids, targets = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = chunk.model.nll(chunk.model.run(chunk.model.enter(ids)), targets)
    assert loss.dtype == dtype
    if deferred:
        assert chunk.queue is not None
        with chunk.queue.hold():
            (loss / 7).backward()
        late = {key for key, p in chunk.model.named_parameters() if p.grad is None}
        split = {key for key, p in chunk.model.named_parameters() if key.startswith("blocks") and p.dim() == 2}
        assert late == split
        ready: list[nn.Parameter] = []
        chunk.queue.on_ready(ready.append)
        chunk.queue.run(chunk.queue.pop())
        assert {id(p) for p in ready} == {id(chunk.model.get_parameter(key)) for key in split}
        assert chunk.queue.pop() == []
        assert not any(p.grad.requires_grad for p in ready if p.grad is not None)
    else:
        (loss / 7).backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in chunk.model.parameters())
    total = torch.stack([g.norm() for g in gradients.values()]).norm() / len(gradients) ** 0.5
    loss = loss.detach()
    worst = float((loss - expected).abs() / expected)
    for key, gradient in gradients.items():
        difference = (whole_gradient(chunk, mesh, key).detach() - gradient).norm()
        worst = max(worst, float(difference / torch.maximum(gradient.norm(), total)))
    losses = collectives.stack_of_ranks(loss.reshape(1), mesh.tp)
    assert (losses == losses[0]).all()
    return worst


def evaluated(rank: int, world: int, name: str, sequence_parallel: bool) -> tuple[float, float]:
    """Largest differences of ``log_prob`` and, where activations are whole, of the table, from the whole model's."""
    mesh = mesh_of(world)
    model = build_model(CONFIGS[name], VOCAB, CONTEXT, seed=SEED).double().eval()
    chunk = build(name, mesh, sequence_parallel=sequence_parallel)
    ids, targets = batch()
    with torch.no_grad():
        found, _ = chunk.model.eval().log_prob(ids, targets, None)
        expected, _ = model.log_prob(ids, targets, None)
        logits = chunk.model.head.output.logits(chunk.model.head(chunk.model.run(chunk.model.enter(ids))))
        table = model.head.output.logits(model.head(model.hidden(ids)[0]))
    return float((found - expected).abs().max()), float((logits - table).abs().max())


def cross_entropy(rank: int, world: int, words: int, rows: int, sequence_parallel: bool, ignored: bool) -> float:
    """Vocabulary-parallel loss and gradients against torch's; the largest difference."""
    mesh = mesh_of(world)
    generator = torch.Generator().manual_seed(1)
    b, t, d = 2, 8, 5
    hidden = torch.randn(b, t, d, dtype=torch.float64, generator=generator)
    weight = torch.randn(rows, d, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, words, (b, t), generator=generator)
    targets[0, 3:6] = -100
    if ignored:
        targets[:] = -100
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = F.cross_entropy((h @ w[:words].t()).flatten(0, 1), targets.flatten(), reduction="sum")
    (expected * 3).backward()
    size = rows // world
    own = nn.Parameter(weight[rank * size : (rank + 1) * size].clone())
    output = VocabOutput(Output(own, words), mesh.tp, sequence_parallel=sequence_parallel)
    part = slice(rank * (t // world), (rank + 1) * (t // world)) if sequence_parallel else slice(None)
    mine = hidden[:, part].clone().requires_grad_()
    loss = output.nll(mine, targets)
    (loss * 3).backward(retain_graph=True)
    assert h.grad is not None and w.grad is not None and mine.grad is not None and own.grad is not None
    differences = [loss - expected, mine.grad - h.grad[:, part], own.grad - w.grad[rank * size : (rank + 1) * size]]
    first = own.grad.clone()
    (loss * 3).backward()  # a second time through one graph
    differences.append(own.grad - 2 * first)
    return max(float(difference.abs().max()) for difference in differences)


def dropped(
    rank: int, world: int, options: dict[str, Any], seed: int
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """With dropout on: loss, output of every block, gradients of this rank."""
    mesh = mesh_of(world)
    chunk = build("dropout", mesh, **options)
    ids, targets = batch()
    torch.manual_seed(seed + (rank if options.get("sequence_parallel") else 0))
    outputs: list[Tensor] = []
    for block in chunk.model.blocks:
        block.register_forward_hook(lambda module, given, x: outputs.append(x.detach().clone()))
    loss = chunk.model.nll(chunk.model.run(chunk.model.enter(ids)), targets)
    forward = list(outputs)
    loss.backward()
    return loss.detach(), forward, {key: p.grad for key, p in chunk.model.named_parameters() if p.grad is not None}


def attention_masks(rank: int, world: int, layer: int) -> tuple[Tensor, Tensor]:
    """What an attention core's dropout lets through on this rank, and what the default generator draws after it."""
    chunk = build("dropout", mesh_of(world), torch.float32)
    attention = list(chunk.model.blocks)[layer].attention
    attention.core_dropout = 0.5
    torch.manual_seed(5)
    size = 64
    q = torch.zeros(1, 1, size, size)
    y = attention._core(q, q, torch.eye(size)[None, None], None)[0, 0]  # the dropped attention weights themselves
    return (y != 0).tril(), torch.rand(4)


def functions(rank: int, world: int) -> list[str]:
    """What is wrong with f, g and their siblings: values, gradients, tensors of somebody else that they change."""
    axis = mesh_of(world).tp
    wrong = []

    def leaf(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def expect(what: str, found: Tensor | None, wanted: Tensor) -> None:
        if found is None or not torch.allclose(found, wanted, rtol=1e-14, atol=1e-14):
            wrong.append(what)

    b, s, d = 2, 3, 4
    t = s * world
    whole = [leaf(r, b, t, d) for r in range(world)]
    parts = [leaf(10 + r, b, s, d) for r in range(world)]
    own = slice(rank * s, (rank + 1) * s)
    grads = [leaf(20 + r, b, t, d) for r in range(world)]
    part_grads = [leaf(30 + r, b, s, d) for r in range(world)]
    for function, given, after, before, back in [
        (collectives.spread, whole, whole[rank], grads, sum(grads)),
        (collectives.combine, whole, sum(whole), grads, grads[rank]),
        (collectives.gather, parts, torch.cat(parts, 1), grads, sum(grads)[:, own]),  # type: ignore[index]
        (collectives.scatter, whole, sum(whole)[:, own], part_grads, torch.cat(part_grads, 1)),  # type: ignore[index]
    ]:
        name = function.__name__
        x = given[rank].clone().requires_grad_()
        incoming = x * 1.0
        kept = incoming.detach().clone()
        y = function(incoming, axis)
        expect(f"{name}: value", y, after)  # type: ignore[arg-type]
        expect(f"{name}: input changed", incoming, kept)
        other = torch.ones_like(y, requires_grad=True)
        (y + other).backward(before[rank])  # one gradient handed to two places
        expect(f"{name}: gradient", x.grad, back)  # type: ignore[arg-type]
        expect(f"{name}: gradient of another", other.grad, before[rank])
    return wrong
