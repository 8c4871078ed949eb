"""Does a damaged or forged model file ever end in anything but a clear message?

Takes a tiny valid file of each kind, changes it in thousands of ways (bits, truncations, swaps; and with
knowledge of the format: zip directories, pickle opcodes, JSON values, code, protobuf lengths), and has a
child process open each as `auditor scan` does (load, one call) and as `auditor inspect` does. Only errors
that auditor means to raise may come out. Children have limits of memory and time; one that dies or hangs
is counted with the seed of its file: a crash of a library's C++ is contained by the sandboxed worker.

    python -m bench.fuzz [--files 2000] [--kinds weights,onnx] [--seed 0] [--one KIND SEED]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import pickletools
import random
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import torch

from auditor.errors import AuditorError, UnsafeModel
from auditor.inputs import GivenInput, resolve_size
from auditor.inspecting.file import inspect_file
from auditor.models.load import load_model
from auditor.report import from_json, to_html, to_json, to_markdown
from tests.changeable import ARCH
from tests.hostile import archived, benign, members

HANG_SECONDS = 30
MEMORY = 8 << 30
BATCH = 200
"""Files that one child opens, unless it dies."""

KINDS = {
    "weights": ("weights", "m.pt"),
    "module": ("torch", "m.pt"),
    "legacy": ("legacy", "m.pt"),
    "script": ("script", "m.pt"),
    "frozen": ("frozen", "m.pt"),
    "pt2": ("pt2", "m.pt2"),
    "onnx": ("onnx", "m.onnx"),
    "onnx external": ("onnx", "m.onnx"),
    "safetensors": ("safetensors", "m.safetensors"),
}
"""Kind -> file of `tests.hostile.benign`, and its name."""
WHOLE = -2
"""Seed of the valid file itself."""
NEED_ARCH = ("weights", "legacy", "safetensors")
ODD_NUMBERS = (
    0,
    1,
    2,
    -1,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**200, 1e308, 0.5, "", "x" * 5000, "\x00",
    "\x1b[31m\u202e", "../../x", [], {}, [[]], {"a": 1}, [1, 2, 3], ["x"],
)  # fmt: skip


# ---- changes that know nothing of the format


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def swap(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 4, 16, 256))
    first, second = (chance.randrange(max(1, len(data) - size)) for _ in range(2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


def cut(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.choice((1, 2, 8, 64, 1024))]


def repeat(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    data[begin:begin] = data[begin : begin + chance.choice((1, 4, 64, 1024))]


def overwrite(data: bytearray, chance: random.Random) -> None:
    width = chance.choice((1, 2, 4, 8))
    number = chance.choice(ODD_NUMBERS) % (1 << 8 * width)
    place = chance.randrange(max(1, len(data) - width))
    data[place : place + width] = number.to_bytes(width, chance.choice(("little", "big")))


BLIND = (flip, flip, truncate, swap, cut, repeat, overwrite)


def blind(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data if len(data) > 1 else b"ab")
    chance.choice(BLIND)(made, chance)
    return bytes(made)


# ---- changes that know the format


def pickled(data: bytes, chance: random.Random) -> bytes:
    """Other opcodes and arguments, in their places."""
    places = []
    begin = 0
    stream = io.BytesIO(data)
    with contextlib.suppress(Exception):  # storages follow the pickles of a legacy file
        while begin < len(data) and len(places) < 5000:
            places += [
                place + begin for _, _, place in pickletools.genops(stream) if place is not None
            ]
            begin = stream.tell()
    if len(places) < 3:
        return blind(data, chance)
    places = [min(place, len(data) - 1) for place in places]
    made = bytearray(data)
    number = chance.randrange(len(places) - 1)
    begin, end = places[number], places[number + 1]
    match chance.randrange(5):
        case 0:
            made[begin] = ord(chance.choice([code.code for code in pickletools.opcodes]))
        case 1:
            del made[begin:end]
        case 2:
            made[begin:begin] = made[begin:end]
        case 3:
            other = chance.randrange(len(places) - 1)
            made[begin:end] = data[places[other] : places[other + 1]]
        case _:
            place = chance.randrange(begin, max(begin + 1, end))
            made[place] = chance.randrange(256)
    return bytes(made)


def rewritten(data: bytes, chance: random.Random) -> bytes:
    """JSON with other values."""
    document = json.loads(data)
    for _ in range(chance.choice((1, 1, 1, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        match chance.randrange(5):
            case 0 | 1:
                holder[key] = chance.choice(ODD_VALUES)
            case 2:
                del holder[key]
            case 3:
                other, their = chance.choice(places)
                holder[key] = copy.deepcopy(other[their])
            case _:
                if isinstance(holder, dict):
                    holder[chance.choice(("", "x", "a b", "name", "config"))] = holder.pop(key)
                else:
                    holder.append(copy.deepcopy(holder[key]))
    return json.dumps(document).encode()


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pending = [document]
    while pending:
        holder = pending.pop()
        if not isinstance(holder, dict | list):
            continue
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            pending.append(holder[key])


def coded(data: bytes, chance: random.Random) -> bytes:
    """Code in which words changed places, or are gone."""
    words = data.decode().split(" ")
    first, second = (chance.randrange(len(words)) for _ in range(2))
    if chance.random() < 0.5:
        words[first] = words[second]
    else:
        del words[first]
    return " ".join(words).encode()


def zipped(data: bytes, chance: random.Random) -> bytes:
    """An archive with right checksums whose members are others; or with another directory."""
    if chance.random() < 0.2:
        return _directory(data, chance)
    content = members(data)
    name = chance.choice([n for n in content if content[n]])
    match chance.randrange(10):
        case 0:
            del content[name]
        case 1:
            content[chance.choice(list(content))] = content[name]
        case 2:
            content[
                chance.choice(("x.pkl", "code/x.py", "data/99", "", "a/b/" * 50, name.upper()))
            ] = content[name]
        case _:
            important = [n for n in content if n.endswith((".pkl", ".json", ".py")) and content[n]]
            if important and chance.random() < 0.7:
                name = chance.choice(important)
            content[name] = _member(name, content[name], chance)
    return archived(content)


def _member(name: str, data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.25:
        return blind(data, chance)
    if name.endswith(".pkl"):
        return pickled(data, chance)
    if name.endswith(".json"):
        return rewritten(data, chance)
    if name.endswith(".py"):
        return coded(data, chance)
    return blind(data, chance)


def _directory(data: bytes, chance: random.Random) -> bytes:
    """A field of the central directory, of a local header or of the end record."""
    made = bytearray(data)
    mark = chance.choice((b"PK\x01\x02", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = []
    place = made.find(mark)
    while place >= 0:
        places.append(place)
        place = made.find(mark, place + 4)
    if places:
        place = chance.choice(places) + chance.randrange(4, 46)
        width = chance.choice((1, 2, 4))
        number = chance.choice(ODD_NUMBERS) % (1 << 8 * width)
        made[place : place + width] = number.to_bytes(width, "little")
    return bytes(made)


def headed(data: bytes, chance: random.Random) -> bytes:
    """A file of safetensors with another header."""
    (length,) = struct.unpack("<Q", data[:8])
    header = rewritten(data[8 : 8 + length], chance)
    size = len(header) if chance.random() < 0.9 else chance.choice(ODD_NUMBERS) % 2**64
    return struct.pack("<Q", size) + header + data[8 + length :]


def wired(data: bytes, chance: random.Random) -> bytes:
    """Protobuf with other keys, lengths and numbers, wherever they are."""
    made = bytearray(data)
    places = list(_varints(data, 0, len(data), 0))
    place = chance.choice(places)
    made[place] = chance.choice((made[place] ^ 1 << chance.randrange(8), 0, 1, 0x7F, 0xFF))
    return bytes(made)


def _varints(data: bytes, place: int, end: int, depth: int) -> Iterator[int]:
    """Where varints are; what looks like a message is taken for one."""
    while place < end:
        yield place
        key, place = _varint(data, place, end)
        if key & 7 == 0:
            yield place
            _, place = _varint(data, place, end)
        elif key & 7 == 2:
            yield place
            length, place = _varint(data, place, end)
            if 2 < length <= end - place and depth < 6 and length < 20_000:
                yield from _varints(data, place, place + length, depth + 1)
            place += length
        elif key & 7 in (1, 5):
            place += 8 if key & 7 == 1 else 4
        else:
            return


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while place < end:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if byte < 0x80:
            break
    return number, place


def graphed(data: bytes, chance: random.Random) -> bytes:
    """A graph with other operators, inputs, attributes, shapes and types."""
    model = onnx.load_from_string(data)
    nodes, tensors = model.graph.node, model.graph.initializer
    node, tensor = chance.choice(nodes), chance.choice(tensors)
    names = [name for entry in nodes for name in (*entry.input, *entry.output)]
    match chance.randrange(11):
        case 0:
            node.op_type = chance.choice([schema.name for schema in onnx.defs.get_all_schemas()])
        case 1 if node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice(names)
        case 2 if node.output:
            node.output[0] = chance.choice(names)
        case 3 if node.attribute:
            attribute = chance.choice(node.attribute)
            attribute.ints.append(chance.choice(ODD_NUMBERS) % 2**63)
            attribute.i = chance.choice(ODD_NUMBERS) % 2**63
        case 4:
            tensor.dims[:] = [
                chance.choice((0, 1, 3, -1, 2**40)) for _ in range(chance.randrange(5))
            ]
        case 5:
            tensor.data_type = chance.randrange(-1, 30)
        case 6:
            model.opset_import[0].version = chance.choice((0, 1, 5, 13, 27, 99, -1))
        case 7:
            model.graph.input[0].type.tensor_type.elem_type = chance.randrange(20)
        case 8:
            nodes.remove(node)
        case 9:
            nodes.append(node)
        case _:
            tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)]
    return model.SerializeToString()


def placed(data: bytes, chance: random.Random) -> bytes:
    """External data elsewhere."""
    model = onnx.load_from_string(data)
    tensor = chance.choice([entry for entry in model.graph.initializer if entry.external_data])
    entry = chance.choice(tensor.external_data)
    entry.value = chance.choice(
        ("", ".", "..", "/", "x", "m.onnx", "-1", "9" * 30, "1e3", "\0", "w" * 400, "weights")
    )
    if chance.random() < 0.2:
        entry.key = chance.choice(("location", "offset", "length", "checksum", ""))
    return model.SerializeToString()


AWARE: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    "legacy": (pickled,),
    "onnx": (wired, graphed),
    "onnx external": (wired, graphed, placed),
    "safetensors": (headed,),
}


def external(folder: Path) -> bytes:
    """An ONNX file whose numbers are beside it."""
    model = onnx.load_from_string(benign("onnx"))
    path = folder / "external.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights", size_threshold=0)
    return path.read_bytes()


def made(kind: str, seed: int, start: bytes) -> bytes:
    """The file of a seed; `WHOLE` changes nothing."""
    if seed == WHOLE:
        return start
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 - to be repeated, not to be secret
    if chance.random() < 0.3:
        return blind(start, chance)
    return chance.choice(AWARE.get(kind, (zipped,)))(start, chance)


# ---- opening them


def opened(path: Path, arch: str | None) -> str:
    """What comes of a file, in a few words."""
    try:
        handle = load_model(path, arch=arch)
        resolve_size(handle, None, GivenInput(channels=3, height=32, width=32), 0)
        outcome = "opened"
    except AuditorError as error:
        str(error).encode()
        outcome = type(error).__name__
    except Exception as error:
        return f"! load {_where(error)}"
    try:
        found = inspect_file(path)
        text = to_json(found)
        assert from_json(text) == found
        to_html(found)
        to_markdown(found)
    except AuditorError as error:
        return (
            outcome if outcome != "opened" else f"! opened, but inspect says {type(error).__name__}"
        )
    except Exception as error:
        return f"! inspect {_where(error)}"
    if found.dangerous and outcome != UnsafeModel.__name__:
        return f"! inspect calls it unsafe, load says {outcome}: {found.content.findings[0][:80]}"
    if outcome == UnsafeModel.__name__ and not found.dangerous:
        return "! load calls it unsafe, inspect does not"
    return outcome


def _where(error: Exception) -> str:
    own = [f for f in traceback.extract_tb(error.__traceback__) if "/auditor/" in f.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__} at {place}: {first[:100]}"


def _child(kind: str, seeds: list[int], start: bytes, folder: Path, out: int) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    arch = f"{folder / 'arch.py'}:build" if kind in NEED_ARCH else None
    path = folder / KINDS[kind][1]
    for seed in seeds:
        path.write_bytes(made(kind, seed, start))
        os.write(out, f"begin {seed}\n".encode())
        outcome = opened(path, arch)
        os.write(out, f"end {seed} {outcome}\n".encode("utf-8", "backslashreplace"))


def fuzz(kind: str, files: int, seed: int) -> dict[int, str]:
    """Seed -> what came of its file."""
    results: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arch.py").write_text(ARCH)
        start = external(folder) if kind == "onnx external" else benign(KINDS[kind][0])
        whole = _run(kind, [WHOLE], start, folder)[WHOLE]
        if whole != "opened":
            sys.exit(f"{kind}: the file without changes is not opened: {whole}")
        pending = list(range(seed, seed + files))
        while pending:
            batch = pending[:BATCH]
            ended = _run(kind, batch, start, folder)
            results |= ended
            pending = [entry for entry in pending if entry not in results]
    return results


def _run(kind: str, seeds: list[int], start: bytes, folder: Path) -> dict[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            _child(kind, seeds, start, folder, writer)
        except BaseException as error:
            os.write(writer, f"end {-1} ! the fuzzer itself: {_where(error)}\n".encode())  # type: ignore[arg-type]
        finally:
            os._exit(0)
    os.close(writer)
    results: dict[int, str] = {}
    current, read, hung = seeds[0], b"", False
    while True:
        ready, _, _ = select.select([reader], [], [], HANG_SECONDS)
        if not ready:
            hung = True
            os.killpg(child, signal.SIGKILL)
        part = os.read(reader, 1 << 16)
        if not part:
            break
        *lines, read = (read + part).split(b"\n")
        for line in lines:
            word, number, *rest = line.decode().split(" ", 2)
            if word == "begin":
                current = int(number)
            elif number == "-1":
                sys.exit(f"{rest[0]}, {kind} {current}")
            else:
                results[int(number)] = rest[0]
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if hung:
        results[current] = "hang"
    elif status:
        results[current] = f"crash by signal {os.waitstatus_to_exitcode(status)}"
    return results


def row(kind: str, results: dict[int, str]) -> str:
    counts = collections.Counter(
        outcome.split(" ")[0] if outcome.startswith(("!", "crash")) else outcome
        for outcome in results.values()
    )
    refused = ", ".join(
        f"{name} {count:,}"
        for name, count in sorted(counts.items())
        if name.endswith(("Model", "Error"))
    )
    return (
        f"| {kind} | {len(results):,} | {counts['opened']:,} | {refused} | {counts['crash']} | "
        f"{counts['hang']} | {counts['!']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000, help="of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SEED"), help="open one file, here")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]))
        return
    print("| kind | files | opened | refused | crashes | hangs | other |")
    print("|---|---:|---:|---|---:|---:|---:|")
    told: list[str] = []
    for kind in options.kinds.split(","):
        begin = time.monotonic()
        results = fuzz(kind, options.files, options.seed)
        print(row(kind, results), flush=True)
        seconds = time.monotonic() - begin
        odd = collections.defaultdict(list)
        for seed, outcome in results.items():
            if outcome.startswith(("!", "crash", "hang")):
                odd[outcome].append(seed)
        told += [f"{kind}: {outcome} [{len(seeds)}: {seeds[:4]}]" for outcome, seeds in odd.items()]
        print(f"{kind}: {seconds:.0f} s", file=sys.stderr)
    print("\n".join(["", *told]))


def one(kind: str, seed: int) -> None:
    """Open the file of a seed in this process, for a traceback; the file stays."""
    folder = Path(tempfile.mkdtemp(prefix="auditor-fuzz-"))
    (folder / "arch.py").write_text(ARCH)
    start = external(folder) if kind == "onnx external" else benign(KINDS[kind][0])
    path = folder / KINDS[kind][1]
    path.write_bytes(made(kind, seed, start))
    print(path)
    arch = f"{folder / 'arch.py'}:build" if kind in NEED_ARCH else None
    for step in (inspect_file, lambda file: load_model(file, arch=arch)):
        try:
            print(step(path))
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
