"""What the commands have done by a worker: all that touches the suspect.

A task gets what `orders.plain` makes of its request, and returns a result as JSON. Model files it
leaves in the folder of its site; who gave the task puts them where they belong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.cli.requests import AttackRequest, InspectRequest, PurifyRequest, ScanRequest
from auditor.cli.setup import Setup
from auditor.errors import ModelError, UnsafeModel, UsageError
from auditor.safety import orders
from auditor.safety.orders import Site
from auditor.safety.supervisor import Notify
from auditor.text import clean_text

if TYPE_CHECKING:
    from auditor.probes import Probe

Task = Callable[[Any, Site, Notify], str]


def scan(request: Any, site: Site, notify: Notify) -> str:
    """Scan the suspect."""
    from auditor import api

    asked = orders.built(request, ScanRequest)
    setup = asked.setup
    names = setup.class_names()
    selection = setup.selection(exhibiting=False)
    options = replace(setup.scan_options(selection.extras, names), time_budget=asked.time_budget)
    refuse_code(setup.model, site)
    source = setup.images(names)
    suspect = setup.suspect(source, notify, asked.time_budget)
    return api.to_json(api.scan(suspect, selection.probes, source, options, notify))


def purify(request: Any, site: Site, notify: Notify) -> str:
    """Purify the suspect."""
    from auditor import api

    asked = orders.built(request, PurifyRequest)
    setup, how = asked.setup, asked.how
    names = setup.class_names()
    selection = setup.selection(exhibiting=True)
    methods, judged_by = how.purifiers(), how.judge_probes()
    scan_options = setup.scan_options(selection.extras, names)
    refuse_code(setup.model, site)
    source = setup.images(names)
    assert source is not None  # noqa: S101 - --clean is required
    suspect = setup.suspect(source, notify)
    result = api.purify(
        suspect,
        selection.probes,
        source,
        _output(asked.model, site),
        api.PurifyOptions(
            methods=methods,
            time_budget=how.time_budget,
            scan=scan_options,
            holdout=how.holdout,
            max_images=setup.max_images,
            max_asr=how.max_asr,
            max_acc_drop=how.max_acc_drop,
            judge_probes=judged_by,
            baseline=how.baseline,
            stress=how.stress,
            anyway=how.anyway,
            write_anyway=how.write_anyway,
            arch=setup.arch,
            seed=setup.seed,
            command=setup.command,
        ),
        notify,
        None if how.judge is None else api.open_images(how.judge, names),
    )
    return api.to_json(result)


def attack(request: Any, site: Site, notify: Notify) -> str:
    """Plant a backdoor in a copy of the model."""
    from auditor import api

    asked = orders.built(request, AttackRequest)
    setup, how = asked.setup, asked.how
    names = setup.class_names()
    probe = _probe(setup)
    options = api.AttackOptions(
        trigger_number=how.trigger_number,
        poison_rate=how.poison_rate,
        steps=how.steps,
        min_asr=how.min_asr,
        max_acc_drop=how.max_acc_drop,
        scan=setup.scan_options((), names),
        max_images=setup.max_images,
        write_anyway=how.write_anyway,
        arch=setup.arch,
        seed=setup.seed,
        command=setup.command,
    )
    refuse_code(setup.model, site)
    source = setup.images(names)
    assert source is not None  # noqa: S101 - --clean is required
    suspect = setup.suspect(source, notify)
    output = _output(asked.model, site)
    return api.to_json(api.attack(suspect, probe, how.target, source, output, options, notify))


def inspect(request: Any, site: Site, notify: Notify) -> str:
    """Say what a model file is; nothing in it is executed, with or without a sandbox."""
    from auditor.inspecting.file import inspect_file
    from auditor.report import to_json

    asked = orders.built(request, InspectRequest)
    return to_json(inspect_file(asked.model))


def or_inspected(task: Task) -> Task:
    """The task; where the suspect would run code or deceives, its result is the record of that."""

    @functools.wraps(task)
    def wrapped(request: Any, site: Site, notify: Notify) -> str:
        try:
            return task(request, site, notify)
        except UnsafeModel as error:
            from auditor.inspecting.file import refused_file
            from auditor.report import to_json

            return to_json(refused_file(Path(request["setup"]["model"]), error))

    return wrapped


def refuse_code(path: Path, site: Site) -> None:
    """Without a sandbox, refuse files that bring code of their own, unless they are trusted.

    Raises:
        ModelError: It is one, or no model file at all.
    """
    if site.unguarded is None:
        return
    from auditor.safety.structure import Kind, identify

    kind = identify(path).kind
    if kind in (Kind.TORCHSCRIPT, Kind.PT2):
        raise ModelError(
            f"{clean_text(path.name)} is {kind}: such files carry code, and there is no sandbox here to run "
            f"it in ({site.unguarded}). If you trust whoever made it, add --trust; else open it on Linux "
            "5.19 or later with Landlock, or ask for the weights alone or an ONNX file."
        )


def _probe(setup: Setup) -> Probe:
    """The one probe that is named.

    Raises:
        UsageError: Several are.
    """
    from auditor import api

    if setup.trigger is not None:
        return api.probe_from_image(setup.trigger, setup.mask)
    chosen = api.choose_probes(setup.probes).probes
    if len(chosen) != 1:
        shown = ", ".join(probe.id for probe in chosen[:3])
        raise UsageError(
            f"--probe {clean_text(setup.probes)} names {len(chosen)} probes"
            f"{f' ({shown} …)' if chosen else ''}. Name one."
        )
    return chosen[0]


def _output(name: str | None, site: Site) -> Path | None:
    return None if name is None else site.place / name


TASKS: Mapping[str, Task] = {
    "scan": or_inspected(scan),
    "purify": or_inspected(purify),
    "attack": or_inspected(attack),
    "inspect": inspect,
}
"""All that a worker can be told to do."""
