"""ONNX files for tests."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn


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
