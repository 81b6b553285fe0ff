"""gradatim: step by step from counting word pairs to training large Transformers.

Importing this package imports neither torch nor numpy; the parts are imported by name,
as in ``from gradatim.models import build_model``. ``docs/architecture.md`` is the map.
"""

__version__ = "0.1.0"
