"""Pipeline schedules as data: built, lowered, validated, simulated, drawn. Without torch.

``build_schedule`` gives each rank's actions, ``lower`` adds sends and receives, and that one object is checked
(``validate``), timed (``simulate``), drawn (``draw_text``, ``draw_svg``) and run by the executor in ``parallel/``.
"""

from __future__ import annotations

from gradatim.schedules.actions import Action, Schedule, looped, peak_in_flight, v_shaped
from gradatim.schedules.build import SCHEDULES, bubble_formula, build_schedule, schedule_problems
from gradatim.schedules.draw import draw_svg, draw_text, timeline_rows, timeline_svg, timeline_text
from gradatim.schedules.lower import lower
from gradatim.schedules.simulate import Simulation, durations, simulate
from gradatim.schedules.validate import validate

__all__ = [
    "SCHEDULES",
    "Action",
    "Schedule",
    "Simulation",
    "bubble_formula",
    "build_schedule",
    "draw_svg",
    "draw_text",
    "durations",
    "looped",
    "lower",
    "peak_in_flight",
    "schedule_problems",
    "simulate",
    "timeline_rows",
    "timeline_svg",
    "timeline_text",
    "v_shaped",
    "validate",
]
