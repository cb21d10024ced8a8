"""Figures. Functions named after what they draw take `ax=` and return the axes they drew on.

Those named `..._figure` and `overview` put several together and return a figure of its own.
"""

from mnemo.plot.attributions import component_map, head_map, stream_map
from mnemo.plot.doses import dose_curve, dose_figure
from mnemo.plot.faithfulness import faithfulness_curve
from mnemo.plot.paths import path_map, trace_figure
from mnemo.plot.style import CONTROL, EFFECT, NECESSARY, OPPOSES, SUFFICIENT, SUPPORTS
from mnemo.plot.trajectories import concept_trajectory
from mnemo.plot.verdicts import evidence_bars, overview, swap_by_fact, verdict_overview

__all__ = [
    "CONTROL", "EFFECT", "NECESSARY", "OPPOSES", "SUFFICIENT", "SUPPORTS", "component_map", "concept_trajectory",
    "dose_curve", "dose_figure", "evidence_bars", "faithfulness_curve", "head_map", "overview", "path_map",
    "stream_map", "swap_by_fact", "trace_figure", "verdict_overview",
]  # fmt: skip
