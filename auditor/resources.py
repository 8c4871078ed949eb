"""Where the shipped probes and templates are."""

from pathlib import Path


def resource_dir(name: str) -> Path:
    """Directory of a shipped resource, `probes` or `templates`.

    Wheels carry them in `auditor/_data`; a checkout keeps them beside the package.
    """
    packaged = Path(__file__).parent / "_data" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / name
