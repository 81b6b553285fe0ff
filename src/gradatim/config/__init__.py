"""Settings as data: dataclasses, strict YAML, rules and recipes. Nothing here imports torch."""
