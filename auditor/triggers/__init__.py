"""Triggers, one file a kind. `TRIGGERS` maps the kinds that probes name to their classes."""

import sys

from auditor.registry import import_siblings
from auditor.triggers.base import TRIGGERS, Trigger

import_siblings(sys.modules[__name__])

__all__ = ["TRIGGERS", "Trigger"]
