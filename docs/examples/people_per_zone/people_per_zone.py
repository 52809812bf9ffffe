"""How many people stand in each zone of a camera's picture, and how full the busiest one is.

Settings of the app (apps.toml)::

    [shop]
    kpis = "people-per-zone"
    kpi_options = { label = "person", till = "0,0,320,480", door = "320,0,640,480" }

Each option but `label` is a zone: its name, and x0,y0,x1,y1 in pixels of the frame. A person stands where the middle of the box's lower
edge is. Results then carry ``"kpis": {"door": 2.0, "till": 5.0, "outside": 0.0, "balance": 3.0}``; `balance` (till less door) may be
negative.
"""

from __future__ import annotations

from typing import Any

Zone = tuple[float, float, float, float]


class PeoplePerZone:
    """Made once with the app's `kpi_options`, called with every answered frame."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._label = str(options.get("label", "person"))
        self._zones = {name: _zone(str(text)) for name, text in options.items() if name != "label"}

    def __call__(self, answer: Any) -> dict[str, float]:
        counts = dict.fromkeys((*self._zones, "outside"), 0.0)
        for found in answer.detections:
            if found.label == self._label and found.box is not None:
                counts[self._zone_of((found.box[0] + found.box[2]) / 2, found.box[3])] += 1.0
        names = list(self._zones)
        if len(names) >= 2:
            counts["balance"] = counts[names[0]] - counts[names[1]]
        return counts

    def _zone_of(self, x: float, y: float) -> str:
        for name, (x0, y0, x1, y1) in self._zones.items():
            if x0 <= x < x1 and y0 <= y <= y1:
                return name
        return "outside"


def _zone(text: str) -> Zone:
    x0, y0, x1, y1 = (float(part) for part in text.split(","))
    return x0, y0, x1, y1
