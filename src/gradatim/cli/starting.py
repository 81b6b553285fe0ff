"""The model behind ``init_from``, as far as a config must know it: its kind and shape, read without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from gradatim.config import load_config
from gradatim.config.derived import OF_TRAINING
from gradatim.config.describe import scalar_text
from gradatim.config.origin import is_hugging_face, is_run
from gradatim.errors import GradatimError


def source_model(source: str) -> dict[str, str]:
    """The fields of ``model`` that weights prescribe, as a recipe would spell them; none where there is no such source.

    What is wrong with the source is told by whoever reads its weights.
    """
    path = Path(source)
    try:
        if is_run(path):
            model = load_config(path / "config.yaml", to_train=False).model
        elif is_hugging_face(path):
            from gradatim.interop.huggingface.adapter_config import is_adapter_directory, read_adapter_config
            from gradatim.interop.huggingface.settings import read_settings

            path = read_adapter_config(path).base if is_adapter_directory(path) else path
            facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
            _, model, _, _ = read_settings(path / "config.json", facts)
        else:
            return {}
    except (GradatimError, OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: scalar_text(value) for name, value in asdict(model).items() if name not in OF_TRAINING}
