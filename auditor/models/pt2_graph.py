"""The program of a `torch.export` archive, read from its JSON and run node by node.

`torch.export.load` evaluates and executes texts of the file (see `safety.pt2`), ties a program to
guards and to the version that wrote it, and gives modules that ignore hooks and refuse `eval()`.
The program itself is a list of calls of operators with plain arguments, so that we call those that
are known to compute on tensors and nothing else. Gradients flow as in any code that calls them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from auditor.models.graph_layers import Call, Value, read_by

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""As the schema numbers them (torch/_export/serde/schema.py)."""
STRIDED = 7
POSITIONAL, NAMED = 1, 2
"""Kinds of arguments; files of older versions say nothing of them."""
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}

_ATEN = """
    __and__ __or__ __xor__ _adaptive_avg_pool2d _assert_async _assert_scalar _assert_tensor_metadata
    _conv_depthwise2d _convolution _fused_rms_norm _local_scalar_dense _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _native_multi_head_attention
    _safe_softmax _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy
    _transformer_encoder_layer_fwd _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact2d abs absolute acos adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d add add_ addcdiv addcmul addmm
    addmm_ addmv alias all alpha_dropout amax amin any arange argmax argmin argsort asin asinh atan
    atan2 atanh atleast_1d avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm broadcast_tensors
    broadcast_to bucketize cat cdist ceil celu celu_ channel_shuffle chunk clamp clamp_ clamp_max
    clamp_max_ clamp_min clamp_min_ clip clip_ clone col2im column_stack concat concatenate
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution copy copy_ cos cosh cosine_similarity cumprod cumsum deg2rad detach
    detach_ diag diagonal diff div div_ dot dropout dropout_ dstack einsum elu elu_ embedding empty
    empty_like eq erf erf_ erfc erfinv exp exp_ expand expand_as expm1 eye feature_dropout fft_fft2
    fft_ifft2 fft_irfft2 fft_rfft2 fill fill_ flatten flip floor floor_ floor_divide fmod full
    full_like gather ge gelu gelu_ glu grid_sampler grid_sampler_2d group_norm gt hardshrink
    hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ hstack hypot im2col index
    index_add index_copy index_fill index_put index_put_ index_select instance_norm isfinite isin
    isinf isnan item layer_norm le leaky_relu leaky_relu_ lerp lift_fresh lift_fresh_copy
    linalg_norm linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax
    logaddexp logical_and logical_not logical_or logical_xor logit logsumexp lt mT masked_fill
    masked_fill_ masked_select matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices maximum mean median meshgrid min minimum mish mish_ mm moveaxis movedim
    mul mul_ multiply mv nan_to_num narrow native_batch_norm native_channel_shuffle native_dropout
    native_group_norm native_layer_norm ne neg neg_ negative new_empty new_full new_ones new_zeros
    norm numpy_T one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow pow_
    prelu prod ravel reciprocal reflection_pad1d reflection_pad2d relu relu6 relu6_ relu_ remainder
    repeat repeat_interleave replication_pad1d replication_pad2d reshape rms_norm roll rot90 round
    rsqrt rsqrt_ rsub scalar_tensor scaled_dot_product_attention scatter scatter_add select
    select_scatter selu selu_ sgn sigmoid sigmoid_ sign silu silu_ sin sinh slice slice_copy
    slice_scatter softmax softmin softplus softshrink sort special_erf special_expit split
    split_with_sizes sqrt sqrt_ square squeeze squeeze_ stack std std_mean sub sub_ sum swapaxes
    swapdims sym_constrain_range sym_constrain_range_for_size sym_numel sym_size t t_ take_along_dim
    tan tanh tanh_ tensor_split threshold threshold_ tile to topk transpose tril tril_indices triu
    triu_indices true_divide trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsqueeze unsqueeze_ upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d var var_mean view view_as vstack where zero_ zeros zeros_like
"""
ATEN = frozenset(_ATEN.split())
"""Operators that compute on tensors, none that draws random numbers, touches files, or asks where in memory
a tensor is: that is not kept."""
PRIMS = frozenset(("convert_element_type", "view_of", "iota", "where"))
DROPOUTS = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "native_dropout"}
BATCH_NORMS = {
    *("batch_norm", "native_batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
}


class UnsuitableProgram(ValueError):
    """A program that auditor cannot run; says what is in it."""


class TrainingProgram(UnsuitableProgram):
    """A program that was exported in train mode."""


@dataclass(frozen=True)
class Here:
    """The device on which the program runs, whichever it was exported on."""


@dataclass(frozen=True, kw_only=True)
class Node(Call):
    """One call of an operator, as it is run; `Here` may be among its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    """Arguments without names, of the functions that compute sizes."""
    written: tuple[str, ...]
    """Those of `named` that the operator changes in place."""
    last: tuple[str, ...] = ()
    """Values that no later node needs."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a file computes: from one batch of images and its stored tensors."""

    image: str
    sizes: tuple[int | None, ...]
    """Sizes of the image's axes, None where any will do."""
    dtype: torch.dtype
    stored: Mapping[str, str]
    """Value -> name of the parameter, buffer or constant."""
    given: Mapping[str, Any]
    """Other inputs, with the only values for which the program was exported."""
    nodes: Sequence[Node]
    outputs: tuple[Any, ...]

    def run(
        self,
        image: Tensor,
        stored: Mapping[str, Tensor],
        device: torch.device,
        keep: Sequence[str] = (),
    ) -> tuple[Any, list[Any]]:
        """Compute the outputs.

        Args:
            image: The batch.
            stored: Name -> tensor.
            device: Where all of them are.
            keep: Names of values that layers read, to hand over as well.

        Returns:
            The only output, or a list of them; and the values of `keep`, as the first layer reads them.

        Raises:
            UnsuitableProgram: It changes its own tensors.
        """
        values: dict[str, Any] = {value: stored[name] for value, name in self.stored.items()}
        own = {tensor.untyped_storage().data_ptr() for tensor in values.values()} - {0}
        in_place = any(node.written for node in self.nodes)
        values |= {**self.given, self.image: image.clone() if in_place else image}
        kept: dict[str, Any] = {}

        def resolved(argument: Any) -> Any:
            match argument:
                case Value(name=name):
                    return values[name]
                case Here():
                    return device
                case list():
                    return [resolved(entry) for entry in argument]
            return argument

        for node in self.nodes:
            read = read_by(node)
            if read is not None and read in keep and read not in kept:
                # a copy, since later calls may change it
                kept[read] = values[read].clone() if in_place else values[read]
            named = {key: resolved(argument) for key, argument in node.named.items()}
            if any(named[key].untyped_storage().data_ptr() in own for key in node.written):
                raise TrainingProgram(f"{node.operator} changes its own tensors")
            _check_statistics(node, named)
            result = node.function(*map(resolved, node.arguments), **named)
            results = (result,) if len(node.outputs) == 1 else result or ()
            for name, entry in zip(node.outputs, results, strict=bool(node.outputs)):
                if isinstance(name, list):
                    values |= zip(name, entry, strict=True)
                elif name is not None:
                    values[name] = entry
            for name in node.last:
                del values[name]
        outputs = [resolved(output) for output in self.outputs]
        return outputs[0] if len(outputs) == 1 else outputs, [kept[name] for name in keep]


def _check_statistics(node: Node, named: Mapping[str, Any]) -> None:
    """Refuse statistics of another length than the channels: some operators read on beyond their end.

    Raises:
        UnsuitableProgram: They are.
    """
    if node.operator.partition(".")[2] not in BATCH_NORMS:
        return
    channels = named["input"].shape[1]
    lengths = {
        len(named[key])
        for key in ("weight", "bias", "running_mean", "running_var")
        if isinstance(named.get(key), Tensor)
    }
    if lengths - {channels}:
        raise UnsuitableProgram(f"{node.operator} has statistics of another size than its input")


def read_program(document: Mapping[str, Any]) -> Program:
    """Understand the JSON of a program.

    Raises:
        UnsuitableProgram: It has other inputs than one batch of images, an operator that auditor
            does not know, or was exported in train mode.
        LookupError, TypeError, ValueError, AttributeError: The JSON is damaged.
    """
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    stored, given, images = _inputs(signature["input_specs"])
    if len(images) != 1:
        raise UnsuitableProgram(f"it takes {len(images)} tensors, not one batch of images")
    meta = graph["tensor_values"][images[0]]
    if len(meta["sizes"]) != 4:
        raise UnsuitableProgram(f"it takes a tensor of {len(meta['sizes'])} axes, not (N, C, H, W)")
    outputs = []
    for spec, output in zip(signature["output_specs"], graph["outputs"], strict=True):
        ((kind, _),) = spec.items()
        if kind != "user_output":
            raise TrainingProgram(f"it returns a {kind.replace('_', ' ')}")
        if "as_none" not in output:
            outputs.append(_argument(output))
    nodes = [_node(node) for node in graph["nodes"]]
    _check_order(nodes, outputs, {*stored, *given, *images})
    return Program(
        image=images[0],
        sizes=tuple(size.get("as_int") for size in meta["sizes"]),
        dtype=DTYPES[meta["dtype"]],
        stored=stored,
        given=given,
        nodes=_forgetting(nodes, outputs),
        outputs=tuple(outputs),
    )


def _inputs(specs: Sequence[Any]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Stored tensors, constants, and names of the images."""
    stored: dict[str, str] = {}
    given: dict[str, Any] = {}
    images: list[str] = []
    for spec in specs:
        ((kind, entry),) = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            stored[entry["arg"]["name"]] = entry[f"{kind}_name"]
        elif kind == "constant_input":
            given[entry["name"]] = _plain(entry["value"])
        elif kind == "user_input" and "as_tensor" in entry["arg"]:
            images.append(entry["arg"]["as_tensor"]["name"])
        else:
            raise UnsuitableProgram(f"it takes a {kind.replace('_', ' ')}, not one batch of images")
    return stored, given, images


def _plain(document: Mapping[str, Any]) -> Any:
    ((kind, value),) = document.items()
    return None if kind == "as_none" else value


def _node(document: Mapping[str, Any]) -> Node:
    library, name, function = _function(document["target"])
    inputs = [(entry["name"], _argument(entry["arg"])) for entry in document["inputs"]]
    named = {key: argument for key, argument in inputs if library in ("aten", "prims")}
    _check_places(function, document["inputs"])
    if _trains(name, named):
        raise TrainingProgram(f"{library}.{name} in train mode")
    return Node(
        operator=f"{library}.{name}",
        function=function,
        arguments=() if named else tuple(argument for _, argument in inputs),
        named=named,
        outputs=tuple(_output(output) for output in document["outputs"]),
        written=() if name in BATCH_NORMS else tuple(_written(function, named)),
    )


def _check_places(function: Callable[..., Any], inputs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse arguments that torch would take for others.

    It passes some without their names, in the order of the operator's schema, so that these must be the
    schema's first ones.

    Raises:
        ValueError: They are not, or a name is there twice or is none of the operator's.
    """
    schema = getattr(function, "_schema", None)
    if schema is None:
        return  # of sizes, which are always passed in their order
    kinds = {entry["name"]: entry.get("kind") for entry in inputs}

    def has_no_name(argument: Any) -> bool:
        kind = kinds.get(argument.name)
        required = not argument.has_default_value() and not argument.kwarg_only
        unnamed = kind == POSITIONAL or (kind != NAMED and required)
        return argument.name in kinds and unnamed

    names = [argument.name for argument in schema.arguments]
    unnamed = [argument for argument in schema.arguments if has_no_name(argument)]
    in_place = [argument.name for argument in unnamed] == names[: len(unnamed)]
    in_place = in_place and not any(argument.kwarg_only for argument in unnamed)
    if not in_place or len(kinds) != len(inputs) or not set(kinds) <= set(names):
        raise ValueError(f"the arguments of {schema.name} are not in their places")


def _written(function: Callable[..., Any], named: Mapping[str, Any]) -> Iterator[str]:
    schema = getattr(function, "_schema", None)
    for argument in schema.arguments if schema is not None else ():
        if argument.is_write and argument.name in named:
            yield argument.name


def _function(target: str) -> tuple[str, str, Callable[..., Any]]:
    """Library, name and function of an operator."""
    *path, name = target.split(".")
    if path in (["_operator"], ["math"]) or (path == ["torch"] and name.startswith("sym_")):
        function = getattr(importlib.import_module(path[0]), name)
        return path[0], name, function  # the names are those of `safety.pt2`
    _, _, library, operator, overload = target.split(".")
    known = {"aten": ATEN, "prims": PRIMS}.get(library, frozenset())
    if operator not in known:
        raise UnsuitableProgram(f"it uses the operator {library}.{operator}")
    return library, operator, getattr(getattr(getattr(torch.ops, library), operator), overload)


def _trains(name: str, named: Mapping[str, Any]) -> bool:
    if name in DROPOUTS:
        return bool(named.get("train")) and named.get("p") != 0
    if name in BATCH_NORMS:  # without running statistics it uses the batch's in eval mode, too
        return bool(named.get("training")) and named.get("running_mean") is not None
    if "attention" in name:
        return bool(named.get("dropout_p"))
    return False


def _argument(document: Mapping[str, Any]) -> Any:
    ((kind, value),) = document.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return Value(value["name"])
        case "as_tensors":
            return [Value(entry["name"]) for entry in value]
        case "as_optional_tensors":
            return [_argument(entry) for entry in value]
        case "as_optional_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _symbolic(value)
        case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_symbolic(entry) for entry in value]
        case "as_int" | "as_bool" | "as_string" | "as_ints" | "as_bools" | "as_strings":
            return value
        case "as_float":
            return float(value)  # infinities are texts
        case "as_floats":
            return [float(entry) for entry in value]
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return MEMORY_FORMATS[value]
        case "as_layout" if value == STRIDED:
            return torch.strided
        case "as_device":
            return Here()
    raise UnsuitableProgram(f"it passes an argument of the kind {kind}")


def _symbolic(document: Mapping[str, Any]) -> Any:
    if "as_name" in document:
        return Value(document["as_name"])
    return _argument(document)


def _output(document: Mapping[str, Any]) -> Any:
    output = _argument(document)
    if isinstance(output, list):
        return [entry.name for entry in output]
    return None if output is None else output.name


def _values(argument: Any) -> Iterator[str]:
    """Names of the values in an argument."""
    if isinstance(argument, Value):
        yield argument.name
    elif isinstance(argument, list | tuple):
        for entry in argument:
            yield from _values(entry)


def _needed(node: Node) -> set[str]:
    return {*_values(node.arguments), *_values(list(node.named.values()))}


def _made(node: Node) -> set[str]:
    names = [name if isinstance(name, list) else [name] for name in node.outputs]
    return {name for group in names for name in group if name is not None}


def _check_order(nodes: Sequence[Node], outputs: Sequence[Any], known: set[str]) -> None:
    """Refuse values that are used before they exist, or made twice.

    Raises:
        ValueError: There is one.
    """
    for node in nodes:
        if not _needed(node) <= known or _made(node) & known:
            raise ValueError(f"{node.operator} uses or makes a value out of order")
        known |= _made(node)
    if not set(_values(list(outputs))) <= known:
        raise ValueError("an output is never computed")


def _forgetting(nodes: Sequence[Node], outputs: Sequence[Any]) -> list[Node]:
    """The nodes, each with the values that can be forgotten after it, so that memory stays flat."""
    later = set(_values(list(outputs)))
    backwards = []
    for node in reversed(nodes):
        last = (_needed(node) | _made(node)) - later
        later |= last
        backwards.append(replace(node, last=tuple(sorted(last))))
    return backwards[::-1]
