"""Everything that can be wrong with what a user hands us.

    AuditorError
    ├── UsageError          an option or a combination of options that makes no sense
    ├── OutputError         a result cannot be written where it should go
    ├── ModelError          the file is not a model that we can call
    │   ├── UnreadableModel     missing, empty, truncated, not a model at all
    │   ├── UnsafeModel         opening it would run code from the file, or it deceives
    │   └── UnsuitableModel     opens, but is no image classifier (or does not fit --arch)
    ├── ProbeError          a probe file or a probe selection is wrong
    │   └── UnknownName         no such probe, trigger kind, tag …; names the nearest
    └── ImageError          the clean set cannot be used

A message says what is wrong, repeats the offending value, and says what to do. The command line
prints it and exits with code 2; an `UnsafeModel` is a finding, with reports and code 1. Anything
else that escapes is our bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class AuditorError(Exception):
    """Base of every error that is shown to a user as one message."""


class UsageError(AuditorError):
    """An option or a combination of options that makes no sense."""


class OutputError(AuditorError):
    """A result cannot be written where it should go."""


class ModelError(AuditorError):
    """The file is not a model that we can call."""


class UnreadableModel(ModelError):
    """Missing, empty, truncated, or not a model at all."""


class UnsafeModel(ModelError):
    """Opening the file would run code from it, or it was made to deceive whoever opens it.

    Args:
        message: For a person.
        findings: What it would do and what is deceptive, each for itself; the message alone if left out.
    """

    def __init__(self, message: str, findings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings) or (message,)


class UnsuitableModel(ModelError):
    """Opens, but is no image classifier, or does not fit the given architecture."""


class ProbeError(AuditorError):
    """A probe file or a probe selection is wrong."""


class UnknownName(ProbeError):
    """No such name in a registry."""


class ImageError(AuditorError):
    """The clean set cannot be used."""
