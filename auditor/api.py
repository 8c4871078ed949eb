"""The public names in one import.

Example:
    from auditor.api import ScanOptions, choose_probes, load_model, open_images, scan

    model = load_model("suspect.pt")
    result = scan(model, choose_probes("standard").probes, open_images(Path("samples")))
    print(result.judgement.verdict, result.judgement.headline)

What is called here runs in the calling process, without a sandbox: a library does not start
processes behind its caller's back. The commands have all of it done by a confined worker
(`auditor.safety.supervisor.run_confined`); who opens suspects by this module and does not trust them
confines the process first: `auditor.safety.sandbox.confine`, before torch is imported.
"""

from __future__ import annotations

from auditor.attack import Options as AttackOptions
from auditor.attack import attack
from auditor.choosing import best_fitting
from auditor.images.labels import read_class_names
from auditor.images.opening import open_images
from auditor.images.source import CleanSet
from auditor.inputs import GivenInput, parse_input, parse_normalize
from auditor.models.load import load_model, resolve_device
from auditor.outputs import sidecar as attack_sidecar
from auditor.probes import Probe, load_probe
from auditor.probes import choose as choose_probes
from auditor.probes import from_image as probe_from_image
from auditor.purification.purify import Options as PurifyOptions
from auditor.purification.purify import purify
from auditor.purifiers import PURIFIERS, Purifier
from auditor.report import from_json, to_html, to_json, to_markdown
from auditor.results.attack import AttackResult
from auditor.results.facts import Verdict
from auditor.results.purify import PurifyResult
from auditor.results.scan import ScanResult
from auditor.scanning.scan import Options as ScanOptions
from auditor.scanning.scan import scan
from auditor.search.searches import INVERSIONS, SEARCHES
from auditor.triggers import TRIGGERS, Trigger
from auditor.verdict import judge, judge_purification, rejudge, rejudge_purification

__all__ = [
    "INVERSIONS",
    "PURIFIERS",
    "SEARCHES",
    "TRIGGERS",
    "AttackOptions",
    "AttackResult",
    "CleanSet",
    "GivenInput",
    "Probe",
    "Purifier",
    "PurifyOptions",
    "PurifyResult",
    "ScanOptions",
    "ScanResult",
    "Trigger",
    "Verdict",
    "attack",
    "attack_sidecar",
    "best_fitting",
    "choose_probes",
    "from_json",
    "judge",
    "judge_purification",
    "load_model",
    "load_probe",
    "open_images",
    "parse_input",
    "parse_normalize",
    "probe_from_image",
    "purify",
    "read_class_names",
    "rejudge",
    "rejudge_purification",
    "resolve_device",
    "scan",
    "search_tiers",
    "search_titles",
    "to_html",
    "to_json",
    "to_markdown",
]


def search_tiers() -> dict[str, str]:
    """Id of each search -> the smallest tier that includes it."""
    return {name: tier for name, (tier, _) in SEARCHES.items()}


def search_titles() -> dict[str, str]:
    """Id of each search -> what it does, in a line."""
    return {name: title for name, (_, title) in SEARCHES.items()}
