"""Settings as data: dataclasses, strict YAML, rules and recipes. Nothing here imports torch."""

from gradatim.config.load import (
    check_config,
    config_to_yaml,
    load,
    load_config,
    recipe_names,
    recipe_summary,
)
from gradatim.config.settings import RunConfig

__all__ = [
    "RunConfig",
    "check_config",
    "config_to_yaml",
    "load",
    "load_config",
    "recipe_names",
    "recipe_summary",
]
