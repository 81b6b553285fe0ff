"""The commands in README and docs run as they stand, in a folder of their own."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run by the tests: [^>]+ -->\n)?```bash\n(.*?)```", re.DOTALL)
BLOCKS = [
    pytest.param(found[2], id=f"{page.name}:{page.read_text(encoding='utf-8')[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    if not found[1]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, folder: Path, tmp_path: Path) -> None:
    """Blocks share prepared text (read once), and nothing else."""
    (tmp_path / "runs").mkdir()
    (folder / "cache").mkdir(exist_ok=True)
    (tmp_path / "runs" / ".cache").symlink_to(folder / "cache")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_exit_code_is_documented() -> None:
    from gradatim import errors

    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for error in errors.GradatimError.__subclasses__():
        assert f"| {error.exit_code} |" in text
        assert error.__name__ in text


def test_the_page_of_settings_is_up_to_date() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "settings.py"))
    for written, page in (("page", "PAGE"), ("clusters", "CLUSTERS")):
        assert module[written]() == module[page].read_text(encoding="utf-8"), "python docs/settings.py writes it anew"
