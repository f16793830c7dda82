"""All shapes, sorted by what they need."""

from __future__ import annotations

from dagger_nb.tasks.shapes_calls import CALLS
from dagger_nb.tasks.shapes_numbers import LISTS, LOOPS, PLAIN
from dagger_nb.tasks.shapes_tables import CLASSES, TABLES
from dagger_nb.tasks.shapes_text import TEXT

LEAVES = LOOPS + LISTS + PLAIN + TEXT + TABLES
CALLING = CALLS

__all__ = ["CALLING", "CLASSES", "LEAVES"]
