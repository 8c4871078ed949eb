"""Make the zoo and judge the verdict by it.

python -m bench.zoo list
python -m bench.zoo train --data ../shared/data --out ~/zoo [--only 'signs-*'] [--where cpu]
python -m bench.zoo scan --data ../shared/data --out ~/zoo [--only ...]
python -m bench.zoo table --out ~/zoo
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import sys
import time
from pathlib import Path

import torch

from auditor.models.load import resolve_device
from bench.zoo.calibrate import CONDITIONS, read_cases, scan_all
from bench.zoo.data import DATA, Data
from bench.zoo.rows import Row, ZooError, read_rows
from bench.zoo.train import make, read_made

ROWS = Path(__file__).with_name("zoo.yaml")
RECORDS = Path(__file__).with_name("made.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.zoo", description=__doc__.splitlines()[0]
    )
    parser.add_argument("do", choices=["list", "train", "scan", "report", "table"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path.home() / "zoo")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", action="append", default=[], help="ids; * and ? are wildcards")
    parser.add_argument("--where", choices=["cpu", "gpu", "all"], default="cpu")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--images", action="append", choices=list(CONDITIONS), help="scan: clean images"
    )
    arguments = parser.parse_args()
    rows = [
        row
        for row in read_rows(arguments.rows)
        if arguments.where in ("all", row.where)
        and (
            not arguments.only
            or any(fnmatch.fnmatchcase(row.id, wanted) for wanted in arguments.only)
        )
    ]
    match arguments.do:
        case "list":
            for row in rows:
                print(f"{row.id:36} {row.network:12} {row.family}")
            return 0
        case "train":
            return _train(rows, arguments)
        case "scan":
            conditions = arguments.images or list(CONDITIONS)
            device = resolve_device(arguments.device)
            scan_all(rows, _loader(arguments.data), arguments.out, conditions, device)
            return 0
        case "report":
            from bench.zoo.report import report

            print(report(read_cases(rows, arguments.out)))
            return 0
        case _:
            from bench.zoo.table import write_table

            write_table(rows, arguments.out, RECORDS)
            return 0


def _train(rows: list[Row], arguments: argparse.Namespace) -> int:
    """Train every row that is missing; one that fails does not stop the others."""
    load, device = _loader(arguments.data), resolve_device(arguments.device)
    failed = 0
    for number, row in enumerate(rows, start=1):
        known = read_made(row, arguments.out) is not None
        begin = time.perf_counter()
        try:
            made = make(row, load(row.data), arguments.out, device=device)
        except ZooError as error:
            print(f"{number}/{len(rows)} {row.id}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        asr = "" if made.success is None else f", ASR {made.success:.1%} of {made.eligible}"
        if made.others is not None and made.bystanders:
            asr += f" (other classes {made.others / made.bystanders:.1%})"
        state = "was there" if known else f"{time.perf_counter() - begin:.0f} s"
        print(f"{number}/{len(rows)} {row.id}: ACC {made.accuracy:.1%}{asr} ({state})", flush=True)
    return 1 if failed else 0


def _loader(folder: Path) -> functools._lru_cache_wrapper[Data]:
    """Loads a data set by name, and keeps the last one."""

    @functools.lru_cache(maxsize=1)
    def load(name: str) -> Data:
        return DATA[name](folder)

    return load


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    sys.exit(main())
