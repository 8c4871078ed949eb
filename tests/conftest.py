"""Options of our test run, and a backdoored network with its benign twin, trained once."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
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
def suspect_pair() -> SuspectPair:
    """Trained on 8 of the classes in a few seconds on one core."""
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
