"""What the workers do for test_rehearse.py: a real step of a real engine, observed."""

from __future__ import annotations

from typing import Any

from work_layouts import make_text, mesh_of

from gradatim.config.settings import RunConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.parallel.observe import Observer
from gradatim.parallel.rehearse import counted


def step(rank: int, world: int, config: RunConfig) -> dict[str, Any]:
    """Parameters, bytes and collectives of one step, and the most that was held at once."""
    observer = Observer()
    with observer:
        engine = LayoutEngine(config, make_text(), mesh_of(config.layout))
        engine.optimizer.allocate(0)
        parameters = [parameter for chunk in engine.chunks.values() for parameter in chunk.model.parameters()]
        weights = [*parameters, *engine.optimizer._flat]
        buckets = [bucket.flat for bucket in engine.gradients.buckets]
        moments = [tensor for state in engine.optimizer.inner.state.values() for tensor in state.values()]
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda parameter: observer.keep(parameter.grad))
        for kind, tensors in (("weights", weights), ("gradients", buckets), ("optimizer", moments)):
            for tensor in tensors:
                observer.label(tensor, kind)
        observer.start()
        engine.step(0)
        gradients = observer.bytes_of([*buckets, *(parameter.grad for parameter in parameters)])
    microbatches = engine.schedule.microbatches
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights_bytes": observer.bytes_of(weights),
        "gradient_bytes": gradients,
        "optimizer_bytes": observer.bytes_of(moments),
        "collectives": counted(observer.messages, microbatches, microbatches),
        "peak": observer.peak(),
    }
