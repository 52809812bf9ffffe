"""Sinks: where an app's answers go. `fan_out` wires them, `port` says what one is; each kind has a file of its own."""

from .fan_out import Sinks
from .files import JsonLines

__all__ = ["JsonLines", "Sinks"]
