"""Writes `auditor/architectures/of_torchvision.json`: what torchvision's networks consist of.

python -m tests.torchvision_table
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torchvision

from auditor.architectures.of_torchvision import TABLE, Hollow, create, numbers_of
from auditor.architectures.shapes import COUNTER


def entry(name: str) -> dict[str, Any]:
    """The line of one network."""
    with Hollow():
        network = create(name, {})
    sizes = {k: tuple(t.shape) for k, t in network.state_dict().items() if not k.endswith(COUNTER)}
    parts = Counter(key.partition(".")[0] for key in sizes)
    return {"numbers": numbers_of(sizes), "parts": dict(parts)}


def names() -> list[str]:
    """All that torchvision has."""
    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return listed


def main() -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(entry(name))}" for name in names()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
