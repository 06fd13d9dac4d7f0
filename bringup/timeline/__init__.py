"""Where the time of a start went: vLLM's log and the clock outside it, as stages without overlap. Pure."""

from bringup.timeline.build import Timeline, build
from bringup.timeline.events import Event, read_events
from bringup.timeline.points import Anchors
from bringup.timeline.show import Table, stage_table, tables

__all__ = ["Anchors", "Event", "Table", "Timeline", "build", "read_events", "stage_table", "tables"]
