"""The record of which networks were made, as it is committed: no weights, but their hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.zoo.rows import Row
from bench.zoo.train import Made, read_made


def write_table(rows: Sequence[Row], folder: Path, path: Path) -> None:
    """Write a line a network; those that are not in `folder` keep the line that they had."""
    known = {made.id: made for made in read_table(path)}
    known |= {made.id: made for row in rows if (made := read_made(row, folder)) is not None}
    lines = [json.dumps(msgspec.to_builtins(known[key]), sort_keys=True) for key in sorted(known)]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    print(f"{len(lines)} networks in {path}")


def read_table(path: Path) -> list[Made]:
    """The committed records."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [msgspec.json.decode(line, type=Made) for line in lines]
