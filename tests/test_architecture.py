"""The rules of docs/architecture.md, held by reading the source and by looking at what gets imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradatim

ROOT = Path(gradatim.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST = 450
"""Lines of the longest file that still fits one sitting."""

TORCH_FREE = ("config", "shapes", "schedules", "plan")
FORBIDDEN = {
    "config": {
        "cli",
        "decode",
        "evaluate",
        "interop",
        "models",
        "objectives",
        "report",
        "serve",
        "shapes",
        "text",
        "train",
    },
    "shapes": {"cli", "decode", "evaluate", "interop", "models", "objectives", "report", "serve", "text", "train"},
    "text": {"cli", "decode", "evaluate", "interop", "models", "objectives", "report", "serve", "train"},
    "models": {"cli", "decode", "evaluate", "parallel", "report", "serve", "train"},
    "parallel": {"cli", "decode", "interop", "report", "serve"},
    "objectives": {"cli", "decode", "evaluate", "interop", "report", "serve", "train"},
    "decode": {"cli", "interop", "report", "serve"},
    "evaluate": {"cli", "report", "serve"},
    "train": {"cli", "report", "serve"},
    "interop": {"cli", "report", "serve"},
    "report": {"cli", "serve"},
    "serve": {"cli", "interop", "objectives", "report", "train"},
}
"""Folder → folders it must not import: data flows text → model → training → decoding, and imports follow."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_data(path: Path) -> None:
    folder = folder_of(path)
    imported = set(imports(parse(path)))
    if folder in TORCH_FREE:
        assert not {name for name in imported if name.split(".")[0] == "torch"}
    inner = {name.split(".")[1] for name in imported if name.startswith("gradatim.")}
    assert inner & FORBIDDEN.get(folder, set()) == set()


@pytest.mark.parametrize("path", [path for path in FILES if folder_of(path) == "parallel"], ids=name_of)
def test_parallel_knows_no_concrete_model(path: Path) -> None:
    concrete = {"gpt", "ngram", "recurrent", "window"}
    named = {
        name.split(".")[2] for name in imports(parse(path)) if name.startswith(("gradatim.models.", "gradatim.shapes."))
    }
    assert named & concrete == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_fits_one_sitting_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), "opens with what it is"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_or_executed(path: Path) -> None:
    tree = parse(path)
    modules = {name.split(".")[0] for name in imports(tree)}
    assert modules & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} == set()
    for name, call in calls(tree):
        assert name not in {"torch.load", "torch.save", "eval", "exec", "yaml.load", "yaml.unsafe_load"}
        if name.endswith((".load", ".loadtxt", ".memmap")):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("allow_pickle", "False") == "False"


def modules_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_torch_free_folders_do_not_load_torch_through_others() -> None:
    present = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in FILES
        if folder_of(path) in TORCH_FREE
    ]
    statement = "\n".join(f"import gradatim.{module}" for module in present)
    assert "torch" not in modules_after(statement)


def test_verbs_load_torch_only_when_they_run() -> None:
    verbs = [path.stem for path in FILES if folder_of(path) == "cli" and path.stem != "__init__"]
    loaded = modules_after("\n".join(f"import gradatim.cli.{verb}" for verb in verbs))
    assert loaded & {"torch", "matplotlib", "transformers", "datasets", "starlette", "uvicorn"} == set()


def test_the_package_itself_loads_nothing() -> None:
    assert modules_after("import gradatim") & {"torch", "numpy", "click", "yaml"} == set()
