"""Scan an image model that somebody else trained for backdoors, and show the evidence.

The public names are in `auditor.api`; the command line is `auditor.cli`.
"""

__version__ = "0.1.0"
