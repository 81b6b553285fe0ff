"""A cluster and its software as data: what ``plan/clusters/*.yaml`` and files of one's own hold. No torch.

Figures are datasheets' or measured ones; each packaged file names its sources. A file is read by the strict decoder of
configs: all problems at once, with line and nearest name.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from gradatim.config.decode import Decoder, nearest
from gradatim.config.describe import settings
from gradatim.config.tree import LARGEST, Written, read_tree
from gradatim.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator (or one process on a CPU)."""

    name: str = "A100-SXM4-80GB"
    """What it is called."""
    peak: float = 312e12
    """Datasheet FLOP/s of matrix products at the training precision, without sparsity; what MFU is measured against."""
    matmul: float = 271e12
    """Best FLOP/s that a matrix product has been seen to reach."""
    units: int = 108
    """Streaming multiprocessors, each working on one tile at a time."""
    bandwidth: float = 2.039e12
    """Datasheet bytes/s of its memory, read and written together."""
    memory: float = 80e9
    """Bytes of its memory (not GiB: 80e9 and 85e9 are both sold as 80 GB)."""
    vector: float = 19.5e12
    """Datasheet FLOP/s of its ordinary cores, which take products whose rows do not begin at 16 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Devices that share fast links and network cards."""

    devices: int = 8
    """Devices in a node."""
    link: float = 300e9
    """Datasheet bytes/s that a device sends over the links inside a node, in one direction."""
    latency: float = 3e-6
    """Seconds until the first byte is there, inside a node."""
    cards: int = 8
    """Network cards of a node, shared by its devices."""
    card: float = 25e9
    """Datasheet bytes/s that a card sends, in one direction: 400 Gb/s are 50e9."""
    network_latency: float = 10e-6
    """Seconds until the first byte is there, across nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The software that trains there: what it can do, how it does it, how well."""

    layers: Literal["megatron", "gradatim"] = "megatron"
    """Whose layers: what they keep for the backward pass. Our own are counted operation by operation."""
    attention: Literal["unfused", "fused-softmax", "flash"] = "fused-softmax"
    """Scores in memory with separate passes, with mask and softmax in one, or never in memory."""
    flash_forward: float = 0.6
    """Share of the best matmul rate that fused attention reaches forward."""
    flash_backward: float = 0.5
    """Likewise backward."""
    fused_dropout: bool = True
    """Fused attention drops weights, too; without, as on a CPU, our own layers keep the scores where weights drop."""
    causal_skip: bool = True
    """Fused attention skips the blocks above the diagonal."""
    fused: bool = True
    """Bias with GELU, bias with dropout and residual, norms are one pass each."""
    fused_loss: bool = False
    """The loss goes over the logits in a few passes; without, in one for each step, as Megatron-LM's parallel loss."""
    dropout: bool = True
    """Hidden and attention dropout are on."""
    operations_forward: int = 32
    """Operations that the host issues for a layer's forward pass."""
    operations_backward: int = 48
    """Likewise backward, without recomputation."""
    overlap_tensor: float = 0.0
    """Share of tensor-parallel communication that hides behind computation."""
    overlap_data: bool = False
    """Gradients are reduced while the last microbatch is still in its backward pass."""
    overlap_weights: bool = True
    """Where that is so, weights that ZeRO shards are gathered behind the next step's first forward pass."""
    scatters_gradients: bool = True
    """ZeRO-1 leaves each rank with its shard of the gradients' sum; without, with all of it, as without ZeRO."""
    bucket: float = 0.0
    """Bytes of weights whose gradients are reduced in one collective; 0: all of a rank in one."""
    copies_weights: bool = False
    """Gathered weights are put in place by a copy for each tensor and replica, one after the other."""
    adds_gradients: bool = False
    """Each microbatch's gradients are added to sums in fp32 in a pass of their own."""
    overlap_pipeline: bool = False
    """Pipeline transfers hide behind computation."""
    transfer_operations: int = 0
    """Operations that the host issues for a pipeline transfer while the device waits for it: nothing hides them."""
    scatter_gather: bool = True
    """Each tensor rank sends its share of a pipeline transfer; the receivers gather it over the node's links."""
    reduced_bytes: int = 4
    """Bytes of a gradient when it is reduced."""
    element_bytes: int = 2
    """Bytes of a number in an activation: what products read and give; the residual stream of our layers has four."""
    weight_bytes: int = 2
    """Bytes of a parameter as the passes use it."""
    gradient_bytes: int = 4
    """Bytes of a gradient as it is kept."""
    state_bytes: int = 12
    """Bytes of optimizer state for a parameter (master weight, two moments), which ZeRO shards."""
    keeps_gathered: bool = False
    """Under sequence parallelism the inputs that column-parallel matrices gather are kept, not gathered again."""
    keeps_norm_input: bool = True
    """Both a norm's input and its output are kept; without, one of them is computed from the other."""
    keeps_placeholders: bool = False
    """A gradient's place is taken by a tensor that stays, one for each shape of a layer's matrices, where products add
    to the sums themselves (Transformer Engine, from 2.3)."""
    logits_kept: int = 4
    """Bytes for each logit that the loss keeps for its backward pass."""
    logits_working: int = 4
    """Bytes for each logit that its backward pass needs besides."""
    schedules: tuple[str, ...] = ("gpipe", "1f1b", "interleaved")
    """Schedules that it runs."""
    chunks: int = 64
    """Most model chunks on a rank."""
    sequence_parallel: bool = True
    """Norms and dropout can be split along the sequence."""
    zero: tuple[int, ...] = (0, 1)
    """ZeRO stages that it has."""
    recompute: tuple[str, ...] = ("none", "selective", "full")
    """What it can compute again instead of storing."""
    splits: tuple[str, ...] = ("uniform",)
    """Splits of layers over stages that it has: ``uniform`` wants a divisor; with ``past-share`` a stage takes layers
    until the cost so far has passed its share."""
    multiplier: float = 1.0
    """Measured step time over predicted, fitted on runs of this stack; 1 where none were at hand."""
    multiplier_one_node: float | None = None
    """Likewise in one node, where those runs were another installation's; null means the same."""
    error: tuple[float, float] | None = None
    """Median and 90th percentile of |predicted/measured − 1| over measured runs that the multiplier has not seen."""
    seen: tuple[int, int] | None = None
    """Fewest and most devices of those runs."""
    runs: int = 0
    """How many those runs are; 0: not stated."""
    memory_error: tuple[float, float] | None = None
    """Median and largest |planned/measured − 1| of the peak memory of measured runs; null where none told it."""
    overhead: float = 2e9
    """Bytes of a device that the context, the communication library and the allocator keep."""

    @property
    def selects(self) -> bool:
        """Whether selective recomputation has anything to do: fused attention keeps no scores, but ours may go too."""
        return self.attention != "flash" or self.layers == "gradatim"


Curve = tuple[tuple[float, float], ...]
"""Bytes of a tensor and the seconds that it takes, in the order of size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What ``gradatim calibrate`` found this project's own operations to take here, in seconds; see ``measured.py``."""

    processes: int = 1
    """How many worked at once, each on a device of its own, while this was measured."""
    alone: float = 1.0
    """What a process takes that has the machine to itself, over what it takes beside the others."""
    product: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Of a matrix product besides its FLOPs: seconds, and the rows, columns and inner length at which half is lost."""
    forward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of a block besides products and attention: always, per element of a hidden state, per element inside a layer."""
    backward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Likewise of its backward pass."""
    core_forward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of attention itself: always, per score, per score and width of the head."""
    core_backward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Likewise of its backward pass."""
    embedding: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Always, per element of a hidden state, per element of the table (its gradient is written whole)."""
    head: tuple[float, float] = (0.0, 0.0)
    """Of head and loss besides products: always, per logit. Its gradients are computed in the forward pass."""
    accumulate: float = 0.0
    """Per parameter whose gradient is added to that of earlier microbatches."""
    update: tuple[float, float] = (0.0, 0.0)
    """Of norm, clipping and update: always, per parameter."""
    sum: Curve = ()
    """Inside a layer: the sum over ranks,"""
    gather: Curve = ()
    """the whole from its parts,"""
    scatter: Curve = ()
    """a part of the sum; bytes are the whole tensor's."""
    waiting: tuple[float, float] = (0.0, 0.0)
    """What ranks that share a block wait for one another: per message, per second of computing."""
    send: Curve = ()
    """From one stage to another."""
    reduce: Curve = ()
    """Of gradients: their sum,"""
    reduce_scatter: Curve = ()
    """a shard of their sum,"""
    all_gather: Curve = ()
    """and shards put together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Hardware and the software stack on it."""

    description: str = ""
    """What it is, and where its figures come from."""
    device: Device = field(default_factory=Device)
    """One accelerator."""
    node: Node = field(default_factory=Node)
    """Devices together."""
    stack: Stack = field(default_factory=Stack)
    """The software."""
    devices: int = 0
    """How many devices there are; ``--gpus`` overrides it; 0: not stated."""
    measured: Measured = field(default_factory=Measured)
    """Times measured here, which replace what is predicted from the figures above."""

    @property
    def calibrated(self) -> bool:
        """Whether there are measured times."""
        return self.measured != Measured()


def cluster_names() -> list[str]:
    """The packaged clusters."""
    return sorted(
        f.name.removesuffix(".yaml") for f in files("gradatim.plan.clusters").iterdir() if f.name.endswith(".yaml")
    )


START = "gradatim plan --show-cluster eos-h100 > mine.yaml"
"""How to come by a file to write one's own from."""
CLUSTER_FILE = Written("cluster file", "device: {…}", f"{START}, or gradatim calibrate --out here.yaml")
HARDWARE = ("device", "node")
"""Sections whose figures no other machine's can stand in for unsaid."""


def load_cluster(name: str | Path) -> Cluster:
    """A packaged cluster by its name, or a YAML file. Raises ConfigError with every problem at once."""
    return read_cluster(name)[0]


def read_cluster(name: str | Path) -> tuple[Cluster, list[str]]:
    """As ``load_cluster``, and the dotted names of hardware figures that the file leaves to the defaults."""
    text = str(name)
    found: list[Problem] = []
    decoder = Decoder(problems=found, names=lambda: [setting.path for setting in settings(Cluster)])
    tree = read_tree(_content(text), text, found, CLUSTER_FILE)
    cluster: Cluster = decoder.value(Cluster, tree)
    if not any(place.startswith("device.") for place in decoder.places) and "device" not in decoder.broken:
        what, allowed = "this cluster file says nothing of its devices", "device: {name: …, peak: …, memory: …, …}"
        found.append(Problem(where=text, what=what, got=tree.text(), allowed=allowed, attempt=START))
    found += _impossible(cluster, decoder)
    if found:
        raise ConfigError(*found)
    figures = [f"{section}.{field.name}" for section in HARDWARE for field in fields(getattr(cluster, section))]
    return cluster, [figure for figure in figures if figure not in decoder.places]


def assumed(cluster: Cluster, unstated: Sequence[str]) -> str:
    """What stands in for figures that a file does not state: ``device.units 108, node.link 3e+11``."""
    values = ((path, getattr(getattr(cluster, section), name)) for path in unstated
              for section, _, name in [path.partition(".")])  # fmt: skip
    return ", ".join(f"{path} {value:g}" if isinstance(value, float) else f"{path} {value}" for path, value in values)


def _content(name: str) -> bytes:
    return packaged(name) if name in cluster_names() else _read(Path(name))


def packaged(name: str) -> bytes:
    """The file of a packaged cluster, as it stands. Raises ConfigError where there is none of the name."""
    if name in cluster_names():
        return files("gradatim.plan.clusters").joinpath(f"{name}.yaml").read_bytes()
    what, names = "there is no such packaged cluster", cluster_names()
    guess = nearest(name, names) or names[0]
    raise ConfigError(Problem(where="--show-cluster", what=what, got=name, allowed=", ".join(names), attempt=guess))


def cluster_to_yaml(cluster: Cluster) -> str:
    """What ``load_cluster`` reads back, every field written out."""
    plain = asdict(cluster, dict_factory=lambda items: {name: _lists(value) for name, value in items})
    return str(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100))


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _read(path: Path) -> bytes:
    try:
        if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size <= LARGEST:
            return path.read_bytes()
        what, got = "this is no cluster file", "too large, or no file"
    except OSError as error:
        what, got = "there is no such cluster", str(error.strerror)
    guess = nearest(str(path), cluster_names())
    attempt = guess or f"{START} to write one's own from, or gradatim calibrate --out here.yaml to measure this machine"
    raise ConfigError(Problem(where=str(path), what=what, got=got, allowed=", ".join(cluster_names()), attempt=attempt))


KNOWN: dict[str, tuple[Any, ...]] = {
    "schedules": ("gpipe", "1f1b", "interleaved", "zero-bubble"),
    "zero": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
    "splits": ("uniform", "by-cost", "past-share"),
}
"""What may stand in a list of the stack,"""
POSITIVE = {
    "device": ("peak", "matmul", "units", "bandwidth", "memory", "vector"),
    "node": ("devices", "link", "cards", "card"),
    "stack": ("flash_forward", "flash_backward", "multiplier", "multiplier_one_node", "element_bytes", "weight_bytes"),
}
"""which figures are above 0,"""
OTHERS = {"stack.overlap_tensor": (0.0, 1.0), "stack.chunks": (1.0, math.inf), "measured.processes": (1.0, math.inf)}
"""and which have limits of their own; all the rest is 0 at least."""


def _impossible(cluster: Cluster, decoder: Decoder) -> list[Problem]:
    """Figures that no machine has, and names that nobody knows."""
    problems: list[Problem] = []

    def refuse(path: str, what: str, got: str, allowed: str) -> None:
        if path not in decoder.broken:
            section = path.partition(".")[0]
            where = decoder.places.get(path) or decoder.places.get(section, section)
            attempt = "" if path in decoder.places else f"state {path}"
            problems.append(Problem(where=where, what=what, got=got, allowed=allowed, attempt=attempt))

    figures = {"devices": cluster.devices}
    for section in ("device", "node", "stack", "measured"):
        part = getattr(cluster, section)
        figures |= {f"{section}.{field.name}": getattr(part, field.name) for field in fields(part)}
    for path, value in figures.items():
        section, _, name = path.partition(".")
        numbers = [number for number in _numbers(value) if not isinstance(number, bool)]
        least, most = OTHERS.get(path, (0.0, math.inf))
        above = name in POSITIVE.get(section, ())
        wrong = [n for n in numbers if not (least <= n <= most and n < math.inf and (n > 0 or not above))]
        if wrong:
            allowed = f"{least:g} to {most:g}" if most < math.inf else "above 0" if above else f"{least:g} or more"
            refuse(path, f"{path} is out of range", f"{wrong[0]:g}", allowed)
    for name, known in KNOWN.items():
        path, given = f"stack.{name}", getattr(cluster.stack, name)
        unknown = [str(each) for each in given if each not in known]
        if unknown or not given:
            what = f"{path} names what there is not" if given else f"{path} is empty"
            refuse(path, what, ", ".join(unknown) or "nothing", ", ".join(map(str, known)))
    if cluster.device.matmul > cluster.device.peak and not {"device.matmul", "device.peak"} & decoder.broken:
        what = "no product is faster than the datasheet's rate"
        got = f"matmul {cluster.device.matmul:g}" + " (not stated)" * ("device.matmul" not in decoder.places)
        refuse("device.matmul", what, got, f"at most peak {cluster.device.peak:g}")
    return problems


def _numbers(value: Any) -> list[float]:
    """All that are in it."""
    if isinstance(value, tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, (int, float)) else []
