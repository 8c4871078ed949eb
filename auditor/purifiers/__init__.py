"""Purifiers, one a file: a suspect, clean images and what the scan found in, tensors out."""

import sys

from auditor.purifiers.base import PURIFIERS, Purifier
from auditor.registry import import_siblings

import_siblings(sys.modules[__name__])

__all__ = ["PURIFIERS", "Purifier"]
