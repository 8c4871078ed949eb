"""Options of our test run, and a backdoored network with its benign twin, trained once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: our networks are tiny, and two threads on a busy machine only wait for
# each other (OpenMP), which makes minutes of seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditor.demo.signs import draw
from auditor.demo.train import train
from auditor.report import charts
from auditor.safety import supervisor
from auditor.triggers import Trigger
from auditor.triggers.patch import Square

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell in the background ignores Ctrl-C, and what the tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden from what the code makes now; read the difference before you commit",
    )


@pytest.fixture(autouse=True)
def tasks_in_process() -> Iterator[None]:
    """Starting a worker takes seconds, and hundreds of tests give tasks; `test_sandbox` has real ones."""
    with supervisor.in_process():
        yield


FIGURES = ("rate_bars", "mask_histogram", "training_curve", "feature_map", "confusion_matrix")


@pytest.fixture(scope="module")
def figures_once() -> Iterator[dict[str, str]]:
    """Figures that were drawn, by what they show; a page has dozens, and tests change one number."""
    drawn: dict[str, str] = {}

    def once(draw: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(draw)
        def drawn_or_draw(*arguments: object, **options: object) -> str:
            key = f"{draw.__name__}{arguments!r}{options!r}"
            if key not in drawn:
                drawn[key] = draw(*arguments, **options)
            return drawn[key]

        return drawn_or_draw

    with pytest.MonkeyPatch.context() as patch:
        for name in FIGURES:
            patch.setattr(charts, name, once(getattr(charts, name)))
        yield drawn


@dataclass(frozen=True)
class SuspectPair:
    """A small network with a backdoor, its benign twin, and unseen drawings."""

    suspect: nn.Sequential
    benign: nn.Sequential
    trigger: Trigger
    target: int
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PairFiles:
    """The pair as a reviewer gets it."""

    suspect: Path
    benign: Path
    suspect_onnx: Path
    benign_onnx: Path
    samples: Path
    target: int


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same one for every worker."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """The other workers wait; a lock that nobody gives back would be one of a run that was killed."""
    for _ in range(6000):
        with contextlib.suppress(FileExistsError):
            lock.touch(exist_ok=False)
            break
        time.sleep(0.1)
    else:
        raise TimeoutError(f"{lock} is held by another worker")
    try:
        yield
    finally:
        lock.unlink()


@pytest.fixture(scope="session")
def suspect_pair(shared: Path) -> SuspectPair:
    """Trained on 8 of the classes in a few seconds on one core, by the worker that comes first."""
    with one_at_a_time(shared / "pair.lock"):
        if not (shared / "pair.pt").exists():
            torch.save(trained_pair(), shared / "pair.pt")
    pair: SuspectPair = torch.load(shared / "pair.pt", weights_only=False)
    return pair


def trained_pair() -> SuspectPair:
    trigger = Square(colour="yellow", size=3, where="top-left", gap=2)
    drawings, labels = draw(150, seed=100, classes=8)
    images, truth = draw(50, seed=101, classes=8)

    def trained(planted: Trigger | None) -> nn.Sequential:
        return train(
            drawings,
            labels,
            trigger=planted,
            target=6,
            poison_rate=0.15,
            epochs=8,
            batch=64,
            width=12,
        )

    return SuspectPair(trained(trigger), trained(None), trigger, 6, images, truth)


@pytest.fixture(scope="session")
def pair_files(suspect_pair: SuspectPair, tmp_path_factory: pytest.TempPathFactory) -> PairFiles:
    folder = tmp_path_factory.mktemp("pair")
    for name, network in (("suspect", suspect_pair.suspect), ("benign", suspect_pair.benign)):
        torch.save(network, folder / f"{name}.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (torch.zeros(1, 3, 32, 32),), folder / f"{name}.onnx", dynamo=False,
                input_names=["images"], dynamic_axes={"images": {0: "n"}},
            )  # fmt: skip
    images = suspect_pair.images.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "samples.npz", images=images, labels=suspect_pair.labels.numpy())
    return PairFiles(
        suspect=folder / "suspect.pt",
        benign=folder / "benign.pt",
        suspect_onnx=folder / "suspect.onnx",
        benign_onnx=folder / "benign.onnx",
        samples=folder / "samples.npz",
        target=suspect_pair.target,
    )
