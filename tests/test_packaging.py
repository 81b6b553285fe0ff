"""The pins of constraints.txt cover what pyproject.toml asks for, and nothing of the tested environment is unpinned."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PINS = {
    canonicalize_name(name): Version(version)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for name, version in [line.split("==")]
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
OF_TORCH = ("nvidia-", "cuda-", "triton")
"""What only torch's CUDA build brings; torch pins it itself."""


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_a_pin_lies_in_the_declared_range(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_plain_versions() -> None:
    assert all(version.local is None for version in PINS.values())


def test_everything_installed_for_us_is_pinned() -> None:
    waiting, reached = [r.name for r in DECLARED], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in reached or name.startswith(OF_TORCH):
            continue
        reached.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    assert reached - set(PINS) == set()
