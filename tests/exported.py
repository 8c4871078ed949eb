"""Networks as files of other formats, for tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import nn

from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.models.load import load_model


def exported(
    network: nn.Module,
    path: Path,
    *,
    side: int = 32,
    fixed: int | None = None,
    external: bool = False,
    forward_only: bool = False,
) -> Path:
    """A network as an ONNX file.

    Args:
        network: Takes ``(N, 3, side, side)``.
        path: The file.
        side: Of the images.
        fixed: Fix the batch size; any number if left out.
        external: Keep the weights in `weights.bin` beside it.
        forward_only: Let the scores pass through operators that auditor cannot differentiate.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(fixed or 2, 3, side, side),), path, dynamo=False,
            input_names=["images"], output_names=["scores"],
            dynamic_axes={} if fixed else {"images": {0: "n"}, "scores": {0: "n"}},
        )  # fmt: skip
    model = onnx.load(str(path))
    if forward_only:
        last = next(node for node in model.graph.node if "scores" in node.output)
        last.output[:] = ["inner"]
        model.graph.node.extend(
            [
                onnx.helper.make_node("SequenceConstruct", ["inner"], ["list"]),
                onnx.helper.make_node("Constant", [], ["first"], value_int=0),
                onnx.helper.make_node("SequenceAt", ["list", "first"], ["scores"]),
            ]
        )
        onnx.save(model, str(path))
    if external:
        onnx.save(
            model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
        )
    return path


def traced(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.rand(2, 3, 32, 32), check_trace=False).save(str(path))


def scripted(network: nn.Module, path: Path) -> None:
    torch.jit.script(network).save(str(path))


def frozen(network: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(network)).save(str(path))


def program(network: nn.Module, path: Path) -> None:
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), path
    )


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Path], object]]] = {
    "onnx": ("m.onnx", exported),
    "traced": ("m.pt", traced),
    "scripted": ("m.pt", scripted),
    "frozen": ("m.pt", frozen),
    "pt2": ("m.pt2", program),
}


def reopened(kind: str, network: nn.Module, folder: Path) -> Classifier:
    """A network that takes ``(N, 3, 32, 32)``, saved in one of `FORMATS` and opened again."""
    name, save = FORMATS[kind]
    save(network.eval(), folder / name)
    return Classifier(load_model(folder / name), blank_spec((3, 32, 32)), batch_size=64)
