"""What every command that opens a model is told, and what becomes of it."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.cli.options import Order, parse_batch_size
from auditor.endings import MODELS
from auditor.errors import UsageError
from auditor.outputs import STDOUT, check_outputs, parse_outputs, side_names
from auditor.safety import needed
from auditor.text import clean_text

if TYPE_CHECKING:
    from auditor.images.source import ImageSource
    from auditor.inputs import GivenInput
    from auditor.models.base import ModelHandle
    from auditor.probes import Selection
    from auditor.progress import Notify
    from auditor.scanning.scan import Options as ScanOptions


CHOOSING_SHARE = 0.25
"""Of a time budget, for finding out which network bare weights belong to."""


def _command_line() -> str:
    return shlex.join(["auditor", *sys.argv[1:]])


def _refuse_other_format(model: Path, output: Path) -> None:
    """A model is written in its own format, and its name shall not say another."""
    own, other = (MODELS.get(path.suffix.lower()) for path in (model, output))
    if own is not None and other is not None and own != other:
        raise UsageError(
            f"-o model={clean_text(str(output))}: what is written has the format of "
            f"{clean_text(model.name)}, and {output.suffix} says another ({other}). "
            f"End the name in {clean_text(model.suffix)}."
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The options that `scan`, `purify` and `attack` share, as they stand on the command line.

    Raises:
        UsageError: One makes no sense, alone or with another.
    """

    model: Path
    clean: Path | None = None
    arch: str | None = None
    labels: Path | None = None
    probes: str = "standard"
    trigger: Path | None = None
    mask: Path | None = None
    input_size: str | None = None
    normalize: str = "auto"
    channel_order: Order | None = None
    output: tuple[str, ...] = ()
    force: bool = False
    quiet: bool = False
    device: str = "auto"
    batch_size: str = "auto"
    seed: int = 0
    max_images: int
    trust: bool = False
    command: str = field(default_factory=_command_line)
    """The command line, for the record."""

    def __post_init__(self) -> None:
        parse_batch_size(self.batch_size)
        if self.mask is not None and self.trigger is None:
            raise UsageError("--mask needs --trigger: it says where the trigger image overwrites.")

    def outputs(
        self,
        formats: Sequence[str],
        defaults: Mapping[str, Path],
        more_inputs: Sequence[Path | None] = (),
        beside: Callable[[Path], Path] | None = None,
    ) -> dict[str, Path]:
        """Where the results go, format -> path; checked before the long work.

        Args:
            formats: What may be written.
            defaults: What is, where nothing is said.
            more_inputs: What is read besides, and must stay.
            beside: Path of the model -> that of what is written with it.

        Raises:
            UsageError: `-o` makes no sense.
            OutputError: A file cannot be written there, or would overwrite an input.
        """
        outputs = parse_outputs(self.output, formats, defaults)
        given = [path for path in more_inputs if path is not None]
        written = dict(outputs)
        if "model" in outputs:
            if outputs["model"] == STDOUT:
                raise UsageError("-o model=-: the model goes to a file, not to standard output.")
            _refuse_other_format(self.model, outputs["model"])
            own = {path.name.casefold() for path in self._external_data}
            names = side_names(outputs["model"].name, len(self._external_data), own)
            written |= {name: outputs["model"].with_name(name) for name in names}
            written |= {} if beside is None else {"beside": beside(outputs["model"])}
        check_outputs(written, force=self.force, inputs=[*self.inputs, *given])
        return outputs

    @property
    def inputs(self) -> list[Path]:
        """The files and folders that no output may replace."""
        named = (self.model, self.clean, self.trigger, self.mask, self.labels, self._code)
        given = [path for path in named if path is not None]
        return [*given, *self._probe_files, *self._external_data]

    def readable(self) -> list[Path]:
        """The files and folders that are needed to do what is asked."""
        named = [self.model, *self._external_data]
        named += [path for path in (self.clean, self.labels, self.trigger, self.mask) if path]
        if self.clean is not None and self.clean.is_dir():
            named += needed.linked_images(self.clean)
        if self._code is not None:
            named += needed.beside_code(self._code)
        for path in self._probe_files:
            named += needed.of_probes(path)
        return named

    @property
    def _code(self) -> Path | None:
        """The Python file of `--arch`."""
        if self.arch is None or ".py:" not in self.arch:
            return None
        return Path(self.arch.rpartition(":")[0])

    @property
    def _probe_files(self) -> list[Path]:
        """The files and folders of `--probes`."""
        named = [Path(item.strip()) for item in self.probes.split(",") if item.strip()]
        return [path for path in named if path.exists()]

    @cached_property
    def _external_data(self) -> list[Path]:
        return needed.external_data(self.model)

    def class_names(self) -> tuple[str, ...] | None:
        """What `--labels` says."""
        from auditor import api

        return None if self.labels is None else api.read_class_names(self.labels)

    def selection(self, *, exhibiting: bool) -> Selection:
        """What `--probes` and `--trigger` choose.

        Args:
            exhibiting: Something must be chosen that shows triggers; data-free margins alone do not.

        Raises:
            ProbeError: A name or a file of theirs is wrong.
            UsageError: Nothing is left.
        """
        from auditor import api

        chosen = api.choose_probes(self.probes, extras=api.search_tiers())
        if self.trigger is not None:
            own = api.probe_from_image(self.trigger, self.mask)
            chosen = chosen._replace(probes=(own, *chosen.probes))
        enough = api.INVERSIONS.intersection(chosen.extras) if exhibiting else chosen.extras
        if not chosen.probes and not enough:
            raise UsageError(f"--probes {clean_text(self.probes)}: nothing is left to try.")
        return chosen

    def given_input(self) -> GivenInput:
        """What is said of the input, checked."""
        from auditor import api

        channels, height, width = api.parse_input(self.input_size) or (None, None, None)
        api.parse_normalize(self.normalize, channels or 3)
        return api.GivenInput(
            channels=channels,
            height=height,
            width=width,
            normalize=None if self.normalize == "auto" else self.normalize,
            order=None if self.channel_order is None else self.channel_order.value,
        )

    def scan_options(self, searches: tuple[str, ...], names: tuple[str, ...] | None) -> ScanOptions:
        """How to scan."""
        from auditor import api

        return api.ScanOptions(
            given=self.given_input(),
            searches=searches,
            class_names=names,
            max_images=self.max_images,
            batch_size=parse_batch_size(self.batch_size),
            seed=self.seed,
            command=self.command,
        )

    def suspect(
        self, source: ImageSource | None, notify: Notify, budget: float = math.inf
    ) -> ModelHandle:
        """The model, on its device; of several networks that it may be, the one that fits best.

        A part of the seconds of `budget` are for finding that one. A GPU multiplies in full float32 from
        here on: what the ten bits of TF32 round away could be a backdoor.
        """
        import torch

        from auditor import api

        torch.backends.cudnn.allow_tf32 = False
        device = api.resolve_device(self.device)
        model = api.load_model(self.model, arch=self.arch, device=device)
        deadline = time.monotonic() + CHOOSING_SHARE * budget
        return api.best_fitting(
            model, source, self.given_input(), seed=self.seed, notify=notify, deadline=deadline
        )

    def images(self, names: tuple[str, ...] | None) -> ImageSource | None:
        """What `--clean` says."""
        from auditor import api

        return None if self.clean is None else api.open_images(self.clean, names)
