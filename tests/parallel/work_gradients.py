"""What the workers do for test_gradients.py and test_optimizer.py."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from fakes import FakeChunk, backward, build, microbatches
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradatim.config.settings import GptConfig, LayoutConfig, OptimizerConfig
from gradatim.parallel import gradients as module
from gradatim.parallel.build import build_chunk
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh, create_mesh, single
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.spec import ParameterSpec

ADAMW = OptimizerConfig(lr=0.01, weight_decay=0.1, clip=1.0, eps=1e-8)
Box = tuple[tuple[int, ...], tuple[int, ...]]


def mesh_of(sizes: tuple[int, int, int]) -> Mesh:
    pp, dp, tp = sizes
    return create_mesh(LayoutConfig(pp=pp, dp=dp, tp=tp))


def one_step(chunks: list[FakeChunk], gradients: Gradients, mesh: Mesh, step: int) -> None:
    """Backward passes of all microbatches, the last of each chunk announced as pipelines do."""
    gradients.begin()
    count = microbatches(step, mesh.dp.index)
    for microbatch in range(count):
        for chunk in reversed(chunks):
            if microbatch == count - 1:
                gradients.last_backward(chunk)  # type: ignore[arg-type]
            backward(chunk, mesh, step, microbatch)
    gradients.finish()


def train(
    rank: int,
    world: int,
    sizes: tuple[int, int, int],
    zero: int,
    steps: int,
    bucket_bytes: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Some steps; weights, moments and last gradients of this rank as (name, local offset, values)."""
    mesh = mesh_of(sizes) if world > 1 else single()
    chunks = build(mesh, **options)
    gradients = Gradients(chunks, mesh, zero=zero, bucket_bytes=bucket_bytes)  # type: ignore[arg-type]
    optimizer = ShardedAdamW(gradients, ADAMW)
    norms = []
    for step in range(steps):
        one_step(chunks, gradients, mesh, step)
        norms.append(optimizer.norm())
        last = list(pieces(optimizer, "gradient"))
        optimizer.step(ADAMW.lr, norms[-1], ADAMW.clip)
    whole = [
        (chunk.specs[name], "model", 0, parameter.detach().flatten().clone())
        for chunk in chunks
        for name, parameter in chunk.model.named_parameters()
    ]
    found = whole + last + list(pieces(optimizer, "exp_avg")) + list(pieces(optimizer, "exp_avg_sq"))
    gradients.close()
    return {"norms": norms, "found": found, "buckets": len(gradients.buckets)}


def pieces(optimizer: ShardedAdamW, what: str) -> list[tuple[ParameterSpec, str, int, Tensor]]:
    """Runs of what this rank holds of gradients or moments."""
    found = []
    for leaf in optimizer.leaves:
        tensor = leaf.weight.grad if what == "gradient" else optimizer.moments(leaf)[what]
        assert tensor is not None
        found += [(part.spec, what, part.begin, leaf.of(part, tensor).clone()) for part in leaf.parts]
    return found


# --------------------------------------------------------------------------- a real network, against PyTorch's own


def network() -> nn.Sequential:
    torch.manual_seed(3)
    sizes = [16, 24, 24, 24, 8]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.Tanh()]
    return nn.Sequential(*layers).double()


def as_chunk(model: nn.Module) -> FakeChunk:
    specs = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        specs[name] = ParameterSpec(name, name, shape, (0,) * len(shape), shape, None, False)
    return FakeChunk(model, specs)


def batch(rank: int, step: int, microbatch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + 10 * microbatch + rank)
    x = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    return x, torch.randn(5, 8, generator=generator, dtype=torch.float64)


def against_torch(rank: int, world: int, zero: int) -> tuple[float, float, bool]:
    """Largest differences of gradients to DDP's and of weights to ZeroRedundancyOptimizer's, over three steps of two
    microbatches; whether ours are the same bits on all ranks.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of something else when imported

    mesh = mesh_of((1, world, 1))
    ours, theirs = network(), network()
    chunk = as_chunk(ours)
    gradients = Gradients([chunk], mesh, zero=zero, bucket_bytes=2000)  # type: ignore[list-item]
    optimizer = ShardedAdamW(gradients, OptimizerConfig(lr=0.01, weight_decay=0.0))
    ddp = DistributedDataParallel(theirs, bucket_cap_mb=0.002)
    peer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.AdamW, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    differs_gradient = differs_weight = 0.0
    for step in range(3):
        gradients.begin()
        for microbatch in range(2):
            x, y = batch(rank, step, microbatch)
            if microbatch == 1:
                gradients.last_backward(chunk)  # type: ignore[arg-type]
            ((ours(x) - y).square().sum() / (10 * world)).backward()
        gradients.finish()
        peer.zero_grad()
        with ddp.no_sync():
            x, y = batch(rank, step, 0)
            ((ddp(x) - y).square().sum() / 10).backward()
        x, y = batch(rank, step, 1)
        ((ddp(x) - y).square().sum() / 10).backward()
        reference = dict(theirs.named_parameters())
        for leaf in optimizer.leaves:
            assert leaf.weight.grad is not None
            for part in leaf.parts:
                wanted = reference[part.spec.name].grad
                assert wanted is not None
                own = leaf.of(part, leaf.weight.grad)
                differs_gradient = max(
                    differs_gradient, float((own - wanted.flatten()[part.begin : part.end]).abs().max())
                )
        optimizer.step(0.01, optimizer.norm(), None)
        peer.step()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            differs_weight = max(differs_weight, float((a - b).abs().max()))
    flat = torch.cat([p.detach().flatten() for p in ours.parameters()])
    everyone = [torch.empty_like(flat) for _ in range(world)]
    dist.all_gather(everyone, flat)
    gradients.close()
    return differs_gradient, differs_weight, all(torch.equal(flat, other) for other in everyone)


def order(rank: int, world: int, zero: int) -> tuple[list[str], list[str]]:
    """What happened in the first and in the last of two microbatches: backward of which layer, sum of which bucket."""
    mesh = mesh_of((1, world, 1))
    model = network()
    chunk = as_chunk(model)
    gradients = Gradients([chunk], mesh, zero=zero, bucket_bytes=1)  # type: ignore[list-item]
    events: list[str] = []
    name = "reduce_scatter_" if zero else "all_reduce_"
    real = getattr(module, name)
    number = {bucket.flat.data_ptr(): index for index, bucket in enumerate(gradients.buckets)}

    def spy(flat: Tensor, axis: Any) -> Any:
        events.append(f"sum {number[flat.data_ptr()]}")
        return real(flat, axis)

    def watched(layer: int, _grad: Tensor) -> None:
        events.append(f"backward {layer}")

    setattr(module, name, spy)
    try:
        gradients.begin()
        both = []
        for microbatch in range(2):
            events = []
            x, y = batch(rank, 0, microbatch)
            hidden = x
            for layer, part in enumerate(model):
                hidden = part(hidden)
                if layer % 3 == 2:
                    hidden.register_hook(lambda grad, layer=layer // 3: watched(layer, grad))
            if microbatch == 1:
                gradients.last_backward(chunk)  # type: ignore[arg-type]
            (hidden - y).square().sum().backward()
            both.append(events)
        gradients.finish()
    finally:
        setattr(module, name, real)
        gradients.close()
    return both[0], both[1]


def queued(rank: int, world: int, zero: int, deferred: bool) -> tuple[list[str], list[Tensor]]:
    """A GPT's step in two microbatches, with input and weight gradients apart or together: what happened after the last
    one's activations' gradients, and the weights' gradients that this rank has.
    """
    mesh = mesh_of((1, world, 1))
    config = GptConfig(d_model=16, n_layers=2, n_heads=2, vocab_multiple=8)
    chunk = build_chunk(
        config, 50, 12, layers=range(2), embed=True, head=True, mesh=mesh, deferred=deferred, dtype=torch.float64
    )
    events: list[str] = []
    gradients = Gradients([chunk], mesh, zero=zero, bucket_bytes=1)
    optimizer = ShardedAdamW(gradients, ADAMW)
    name = "reduce_scatter_" if zero else "all_reduce_"
    real = getattr(module, name)

    def spy(flat: Tensor, axis: Any) -> Any:
        events.append("sum")
        return real(flat, axis)

    setattr(module, name, spy)
    ids = torch.randint(0, 50, (2, 3, 13), generator=torch.Generator().manual_seed(rank))
    try:
        gradients.begin()
        for microbatch in range(2):
            loss = chunk.model.nll(chunk.model.run(chunk.model.enter(ids[microbatch, :, :-1])), ids[microbatch, :, 1:])
            if not deferred:
                if microbatch == 1:
                    gradients.last_backward(chunk)
                loss.backward()
                continue
            assert chunk.queue is not None
            with chunk.queue.hold():
                loss.backward()
            pending = chunk.queue.pop()
            if microbatch == 1:
                assert not events
                chunk.queue.on_ready(lambda parameter: events.append("weight"))
                gradients.last_backward(chunk)
            chunk.queue.run(pending)
        events.append("finish")
        gradients.finish()
    finally:
        setattr(module, name, real)
        gradients.close()
    return events, [values for _, _, _, values in pieces(optimizer, "gradient")]


def idle(rank: int, world: int, zero: int) -> list[float]:
    """A step in which the last rank has nothing to learn from, and one parameter gets no gradient anywhere."""
    mesh = mesh_of((1, world, 1))
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(2, 2))})
    model["unused"] = nn.Parameter(torch.ones(5))
    chunk = as_chunk(model)
    gradients = Gradients([chunk], mesh, zero=zero)  # type: ignore[list-item]
    optimizer = ShardedAdamW(gradients, ADAMW)
    for _ in range(2):  # the second time buckets hold the first's gradients
        gradients.begin()
        gradients.last_backward(chunk)  # type: ignore[arg-type]
        if rank < world - 1:
            (model["a"].sum() + 2 * model["b"].sum()).backward()
        gradients.finish()
    return [optimizer.norm()]


def not_finite(rank: int, world: int, zero: int, value: float) -> float:
    """The norm where one number of one rank is not finite."""
    mesh = mesh_of((1, world, 1))
    model = network()
    chunk = as_chunk(model)
    gradients = Gradients([chunk], mesh, zero=zero)  # type: ignore[list-item]
    optimizer = ShardedAdamW(gradients, ADAMW)
    gradients.begin()
    gradients.last_backward(chunk)  # type: ignore[arg-type]
    x, y = batch(rank, 0, 0)
    if rank == world - 1:
        y[2, 3] = value
    (model(x) - y).square().sum().backward()
    gradients.finish()
    return optimizer.norm()
