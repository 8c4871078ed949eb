"""The drawn signs of the built-in example."""

from __future__ import annotations

from pathlib import Path

from bench.zoo.data.base import DATA, Data, Part


@DATA.register("signs")
def signs(_: Path) -> Data:
    """The drawn signs of the built-in example, 17 classes, 32 px: nothing to download."""
    from auditor.demo.signs import CLASS_NAMES, draw

    train, test = draw(400, seed=1_000), draw(120, seed=1_001)
    return Data(names=CLASS_NAMES, train=Part(images=train[0], labels=train[1]),
                test=Part(images=test[0], labels=test[1]))  # fmt: skip
