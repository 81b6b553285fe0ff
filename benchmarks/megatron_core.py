"""Equal losses from equal weights: our tensor and pipeline parallelism beside Megatron Core's own, on CPUs.

Both sides train a small GPT in float64 from the same weights on the same sequences, in the same two processes of one
gloo group: split over tp 2, and over two stages with four microbatches (1F1B, each side's own schedule and transfers).
Losses of each step, and gradients of the first, are compared; updates are each side's AdamW, with the same settings.

    python benchmarks/megatron_core.py --megatron PATH_TO_CHECKOUT

Megatron Core asks for a GPU. Here it is told, at run time and without any change to its files, that the current device
is the CPU; its imports of Triton, of which this needs no kernel, find an empty stand-in; and its loss, which it takes
in fp32 whatever it is given, is taken in float64. Sequence parallelism is left out: there its norms are Apex's or
Transformer Engine's, which are for GPUs alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.overrides import TorchFunctionMode

import common
from gradatim.config.settings import GptConfig, LayoutConfig, OptimizerConfig
from gradatim.models import build_model
from gradatim.objectives.next_token import NextToken
from gradatim.parallel.build import Chunk, build_chunk
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh, create_mesh
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.pipeline import Microbatch, Pipeline
from gradatim.schedules import build_schedule, lower
from gradatim.text.batches import Batch

WIDTH, LAYERS, HEADS, VOCABULARY, TOKENS, ROWS, MICROBATCHES, STEPS = 64, 4, 4, 256, 32, 2, 4, 5
CONFIG = GptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, tied=False)
ADAMW = OptimizerConfig(lr=1e-3, clip=None, weight_decay=0.0)
CASES: dict[str, dict[str, Any]] = {
    "tp 2": {"tp": 2},
    "pp 2, 1F1B": {"pp": 2},
}
NAMES = {
    "embedding.word_embeddings.weight": "embed.tokens.weight",
    "embedding.position_embeddings.weight": "embed.positions.weight",
    "decoder.final_layernorm": "head.norm",
    "output_layer.weight": "head.output.weight",
    "input_layernorm": "norm1",
    "self_attention.linear_qkv": "attention.qkv",
    "self_attention.linear_proj": "attention.out",
    "pre_mlp_layernorm": "norm2",
    "mlp.linear_fc1": "mlp.up",
    "mlp.linear_fc2": "mlp.down",
}
"""Part of a parameter's name there: the same here. Both keep queries, keys and values of a head side by side."""


# ---------------------------------------------------------------------- Megatron on a CPU


class Absent(types.ModuleType):
    """A module that is not there, of which anything may be imported; what is decorated with it stays as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *given: Any, **_: Any) -> Any:
        """Decorate, or be whatever was asked for."""
        return given[0] if given and callable(given[0]) else self


def undisturbed(*_: Any) -> contextlib.AbstractContextManager[None]:
    """Random numbers as they come: nothing draws any."""
    return contextlib.nullcontext()


class NoGPU(TorchFunctionMode):
    """Tensors asked for on ``cuda`` are made on the CPU, and float64 is not rounded to fp32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        given = dict(kwargs or {})
        if given.get("device") == "cuda":
            given["device"] = "cpu"
        return function(*args, **given)


@contextlib.contextmanager
def on_cpu(checkout: Path) -> Iterator[None]:
    """Within, Megatron Core can be imported, and takes the CPU for its GPU."""
    import torch._dynamo  # which looks for Triton too, and is to find none

    sys.path.insert(0, str(checkout))
    for name in ("triton", "triton.language", "triton.language.extra", "triton.language.extra.libdevice"):
        if name not in sys.modules:
            sys.modules[name] = module = Absent(name)
            module.__spec__, module.__dict__["__version__"] = ModuleSpec(name, None), "3.0.0"
            if parent := name.rpartition(".")[0]:
                setattr(sys.modules[parent], name.rpartition(".")[2], module)
    cpu = torch.device("cpu")
    patches = {
        "current_device": lambda: cpu,
        "synchronize": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
        "set_device": lambda *_: None,
    }
    with contextlib.ExitStack() as stack:
        for name, function in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self))
        stack.enter_context(NoGPU())
        from megatron.core.tensor_parallel import random

        stack.enter_context(mock.patch.object(random.CudaRNGStatesTracker, "fork", undisturbed))
        yield


def theirs(layout: LayoutConfig, mesh: Mesh, whole: Mapping[str, Tensor], ids: Tensor) -> dict[str, Any]:
    """Megatron Core's losses of each step, and the gradients of the first."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(layout.tp, layout.pp)
    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, use_cpu_initialization=True,
        params_dtype=torch.float64, pipeline_dtype=torch.float64, hidden_dropout=0.0, attention_dropout=0.0,
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
        gradient_accumulation_fusion=False, bias_activation_fusion=False,
        masked_softmax_fusion=False, bias_dropout_fusion=False, persist_layer_norm=False,
        activation_func=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    )  # fmt: skip
    model = GPTModel(
        config=config, transformer_layer_spec=get_gpt_layer_local_spec(), vocab_size=VOCABULARY,
        max_sequence_length=TOKENS, pre_process=mesh.pp.index == 0, post_process=mesh.pp.index == mesh.pp.size - 1,
        share_embeddings_and_output_weights=False,
    ).double()  # fmt: skip
    first = mesh.pp.index * LAYERS // layout.pp
    parameters = {ours_of(name, first): p for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard(whole[name], parameter.shape, mesh))
    optimizer = torch.optim.AdamW(parameters.values(), lr=ADAMW.lr, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=0.0)
    positions = torch.arange(TOKENS)[None].expand(ROWS, -1)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)[None, None]  # what must not be seen

    def forward(batches: Iterator[Tensor], model: Any) -> tuple[Tensor, Any]:
        part = next(batches)
        out = model(part[:, :-1].contiguous(), positions, mask, labels=part[:, 1:].contiguous())

        def loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            mean = losses.mean()
            return mean, {"loss": mean.detach().clone()}  # which is divided in place

        return out, loss

    run = get_forward_backward_func()
    found: list[float] = []
    gradients: dict[str, Tensor] = {}
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        parts = run(
            forward_step_func=forward, data_iterator=iter(ids.split(ROWS)), model=model, seq_length=TOKENS,
            num_microbatches=MICROBATCHES, micro_batch_size=ROWS, forward_only=False,
        )  # fmt: skip
        gradients = gradients or {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        optimizer.step()
        total = torch.tensor([sum(float(part["loss"]) for part in parts) / MICROBATCHES], dtype=torch.float64)
        if layout.pp > 1:  # the last stage knows
            dist.broadcast(total, mesh.pp.ranks[-1])
        found.append(float(total))
    return {"losses": found, "gradients": gradients}


def ours_of(name: str, first: int) -> str:
    """Our name of a parameter of theirs; a stage counts its layers from 0."""
    for there, here in NAMES.items():
        name = name.replace(there, here)
    if name.startswith("decoder.layers."):
        _, _, number, rest = name.split(".", 3)
        name = f"blocks.{int(number) + first}.{rest}"
    return name


def shard(whole: Tensor, shape: torch.Size, mesh: Mesh) -> Tensor:
    """The part of a whole parameter that has this shape."""
    for dim in range(whole.dim()):
        if whole.shape[dim] != shape[dim]:
            return whole.chunk(mesh.tp.size, dim)[mesh.tp.index]
    return whole


# ---------------------------------------------------------------------- ours


def ours(layout: LayoutConfig, mesh: Mesh, ids: Tensor) -> dict[str, Any]:
    """The same of ours."""
    schedule = lower(build_schedule("1f1b", layout.pp, MICROBATCHES, 1))
    each = LAYERS // layout.pp
    chunk: Chunk = build_chunk(
        CONFIG, VOCABULARY, TOKENS, layers=range(mesh.pp.index * each, (mesh.pp.index + 1) * each),
        embed=mesh.pp.index == 0, head=mesh.pp.index == mesh.pp.size - 1, mesh=mesh,
        dtype=torch.float64,
    )  # fmt: skip
    gradients = Gradients([chunk], mesh)
    optimizer = ShardedAdamW(gradients, ADAMW)
    pipeline = Pipeline(
        schedule, {mesh.pp.index: chunk}, mesh.pp, NextToken(), width=WIDTH, dtype=torch.float64,
        last_backward=gradients.last_backward,
    )  # fmt: skip
    parts = [Microbatch(Batch(part[:, :-1].contiguous(), part[:, 1:].contiguous())) for part in ids.split(ROWS)]
    count = len(ids) * TOKENS
    found: list[float] = []
    first: dict[str, Tensor] = {}
    for _ in range(STEPS):
        gradients.begin()
        ran = pipeline.run(parts, {"nll": count})
        gradients.finish()
        first = first or {n: p.grad.clone() for n, p in chunk.model.named_parameters() if p.grad is not None}
        optimizer.step(ADAMW.lr, optimizer.norm(), None)
        total = ran.sums["nll"].reshape(1) / count
        if layout.pp > 1:
            dist.broadcast(total, mesh.pp.ranks[-1])
        found.append(float(total))
    return {"losses": found, "gradients": first}


# ---------------------------------------------------------------------- both


def worker(rank: int, checkout: Path, store: str, answer: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    ids = torch.randint(0, VOCABULARY, (ROWS * MICROBATCHES, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    whole = dict(build_model(CONFIG, VOCABULARY, TOKENS).double().named_parameters())
    found: dict[str, Any] = {}
    with on_cpu(checkout):
        for name, fields in CASES.items():
            layout = LayoutConfig(**fields)
            mesh = create_mesh(layout)
            mine, other = ours(layout, mesh, ids), theirs(layout, mesh, whole, ids)
            assert mine["gradients"].keys() == other["gradients"].keys()
            apart = torch.tensor(
                [
                    max(
                        float((gradient - other["gradients"][name]).norm() / other["gradients"][name].norm())
                        for name, gradient in mine["gradients"].items()
                        if not name.endswith("attention.qkv.bias")  # of keys it is zero but for rounding
                    )
                ],
                dtype=torch.float64,
            )
            dist.all_reduce(apart, dist.ReduceOp.MAX)
            found[name] = {"ours": mine["losses"], "theirs": other["losses"], "gradients": float(apart)}
    if rank == 0:
        torch.save(found, answer)
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, required=True, help="a checkout of Megatron-LM")
    options = parser.parse_args()
    if not (options.megatron / "megatron" / "core").is_dir():
        raise SystemExit(f"{options.megatron} holds no megatron/core: --megatron names a checkout of Megatron-LM")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its small fused functions, as they are written
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (options.megatron.absolute(), f"{folder}/store", f"{folder}/answer"), nprocs=2)
        found = torch.load(Path(folder) / "answer", weights_only=True)
    rows: list[list[object]] = []
    worst = 0.0
    for name, case in found.items():
        apart = max(abs(a - b) / b for a, b in zip(case["ours"], case["theirs"], strict=True))
        worst = max(worst, apart, case["gradients"])
        first, last = case["theirs"][0], case["theirs"][-1]
        rows.append([name, f"{first:.6f}", f"{last:.6f}", f"{apart:.0e}", f"{case['gradients']:.0e}"])
    columns = ["layout", "loss, step 1", f"loss, step {STEPS}", "losses apart", "gradients apart"]
    body = (
        f"{LAYERS} layers of width {WIDTH}, {HEADS} heads, {TOKENS} tokens, {MICROBATCHES} microbatches of {ROWS} "
        f"sequences, learned positions, untied, float64; 2 processes of 1 thread on gloo; {STEPS} steps of AdamW. "
        "Largest relative difference over the steps (losses) and over the parameters of the first step (gradients).\n\n"
    )
    common.write_result("megatron_core", "The same training as Megatron Core", body + common.table(columns, rows))
    return 0 if worst < 1e-10 else 1


if __name__ == "__main__":
    raise SystemExit(main())
