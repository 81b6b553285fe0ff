"""Token files: writing and random reading, beside Megatron-LM's own ``indexed_dataset.py`` in the same process.

The same documents (lengths log-normal, median 300 tokens, ids below 50,000) are written by both and read back one
document at a time in a random order; runs alternate. Both files are compared byte for byte, and each program's file
is read by the other.

    python benchmarks/token_file_speed.py --megatron PATH_TO_CHECKOUT
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common
from gradatim.text.tokenfile import TokenFile

VOCABULARY, BOUNDARY = 50_000, 0


def megatron_module(checkout: Path) -> Any:
    """The one file, with empty stand-ins for the modules that it imports only for object storage and logging."""

    def nothing(*_: object, **__: object) -> None:
        return None

    names = {
        "megatron.core.datasets.object_storage_utils": [
            "S3Config", "ObjectStorageConfig", "cache_index_file", "dataset_exists", "get_index_cache_path",
            "get_object_storage_access", "is_object_storage_path", "parse_s3_path",
        ],
        "megatron.core.msc_utils": ["MultiStorageClientFeature", "maybe_msc"],
        "megatron.core.utils": ["log_single_rank"],
    }  # fmt: skip
    for package in ("megatron", "megatron.core", "megatron.core.datasets"):
        sys.modules[package] = types.ModuleType(package)
    for name, attributes in names.items():
        module = types.ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, nothing)
        sys.modules[name] = module
    utilities = sys.modules["megatron.core.msc_utils"]
    utilities.MultiStorageClientFeature = types.SimpleNamespace(is_enabled=lambda: False)  # type: ignore[attr-defined]
    utilities.maybe_msc = types.SimpleNamespace(open=open)  # type: ignore[attr-defined]
    path = checkout / "megatron" / "core" / "datasets" / "indexed_dataset.py"
    spec = importlib.util.spec_from_file_location("megatron_indexed_dataset", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not there: --megatron names a checkout of Megatron-LM")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM to run beside")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(300), 0.8, options.documents).astype(int), 1, 20_000)
    documents = [np.append(draw.integers(1, VOCABULARY, n), BOUNDARY) for n in lengths]
    size = sum(map(len, documents)) * 2 / 1e6
    order = draw.permutation(len(documents))
    peer: Any = megatron_module(options.megatron) if options.megatron else None

    def ours_write(prefix: Path) -> None:
        TokenFile.write(prefix, documents, vocab_size=VOCABULARY, boundary=BOUNDARY, tokenizer="", text_bytes=0)

    def ours_read(file: TokenFile) -> int:
        return sum(len(file.document(i)) for i in order)

    def peer_write(prefix: Path) -> None:
        builder = peer.IndexedDatasetBuilder(f"{prefix}.bin", dtype=peer.DType.optimal_dtype(VOCABULARY))
        for document in documents:
            builder.add_document(document, [len(document)])
        builder.finalize(f"{prefix}.idx")

    def peer_read(data: Any) -> int:
        return sum(len(data[int(i)]) for i in order)

    times: dict[str, list[float]] = {"ours write": [], "ours read": [], "peer write": [], "peer read": []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs):
            mine, other = Path(folder) / f"ours{run}", Path(folder) / f"peer{run}"
            times["ours write"].append(seconds(lambda p=mine: ours_write(p)))  # type: ignore[misc]
            file = TokenFile.open(mine)
            times["ours read"].append(seconds(lambda f=file: ours_read(f)))  # type: ignore[misc]
            if peer is None:
                continue
            times["peer write"].append(seconds(lambda p=other: peer_write(p)))  # type: ignore[misc]
            data = peer.IndexedDataset(str(other))
            times["peer read"].append(seconds(lambda d=data: peer_read(d)))  # type: ignore[misc]
            for end in (".bin", ".idx"):
                same = Path(f"{mine}{end}").read_bytes() == Path(f"{other}{end}").read_bytes()
                assert same, f"the {end} files differ"
            assert np.array_equal(peer.IndexedDataset(str(mine))[5], TokenFile.open(other).document(5))
    rows = [
        ["write and sync, MB/s", *_rates(size, times["ours write"], times["peer write"])],
        ["read at random, documents/s", *_rates(len(order), times["ours read"], times["peer read"])],
    ]
    body = (
        f"{options.documents:,} documents, {size:.0f} MB of uint16, {options.runs} alternating runs, median (range).\n"
    )
    body += "Ours takes checksums and syncs its files to the disk; Megatron does neither.\n\n"
    body += common.table(["", "gradatim", "Megatron", "ratio of paired runs"], rows)
    common.write_result("token_file_speed", "Token files beside Megatron's", body)


def _rates(amount: float, ours: list[float], peer: list[float]) -> list[str]:
    def show(times: list[float]) -> str:
        return common.spread([amount / t for t in times]) if times else "not run"

    ratio = common.spread([b / a for a, b in zip(ours, peer)]) if peer else "not run"
    return [show(ours), show(peer), ratio]


if __name__ == "__main__":
    main()
