"""What may the names in a pickle become? An allow-list decides; nothing that the file says is run.

Tensors are rebuilt by torch's weights-only unpickler, layers are classes of torch and torchvision. What
training scripts keep beside the weights is not built: something inert takes its place, which
remembers only whether a tensor was put into it.
"""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MODULES = (
    "torch.nn.modules.",
    "torch.nn.parallel.",
    "torchvision.models.",
    "torchvision.ops.",
)
"""Where the classes of a pickled network may live; only `nn.Module` and `Enum` classes of them."""
OPTIMIZERS = "torch.optim."
"""Their classes stand beside the weights in many checkpoints; they become `Inert`."""
MAX_NAME = 200


class Inert:
    """What stands for a value that is no weight: nothing of it is built or run.

    It only remembers what it was given, so that tensors in it can be told of.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Of a call."""
        self.given: list[object] = [args, kwargs]

    def __setstate__(self, state: object) -> None:
        """What would be its attributes."""
        self.__dict__.setdefault("given", []).append(state)

    @property
    def holds_tensors(self) -> bool:
        """Whether a tensor, or a network, is anywhere in it."""
        return holds_tensors(self)


class InertOptimizer(Inert):
    """What optimizers and schedulers become: they hold the weights that they moved."""


class InertEnum(Inert):
    """What an Enum becomes that no network needs."""


class InertPartial(Inert):
    """What `functools.partial` becomes: torchvision's transformers keep one, and never call it."""


class Reference:
    """What a type becomes that a record may name (`defaultdict(int)`), and that nobody calls."""

    def __new__(cls, *args: object) -> Any:
        """No training script writes such a call: what it would make is hidden from a reader.

        Raises:
            UnpicklingError: Always.
        """
        raise UnpicklingError("it calls a type that is only to be named")


class PlainDict:
    """What other dictionaries are rebuilt by: their entries go into a plain one, the rest is dropped."""

    def __new__(cls, *args: object) -> Any:
        """An empty dict.

        Raises:
            UnpicklingError: There is more than a type of its default: entries that no reader would see.
        """
        if len(args) > 1 or not all(a is None or isinstance(a, type) for a in args):
            raise UnpicklingError("a dictionary is made of what is not its entries")
        return {}


class PlainList:
    """The same for a `deque`."""

    def __new__(cls, *args: object) -> Any:
        """An empty list.

        Raises:
            UnpicklingError: As of `PlainDict`.
        """
        if not all(a is None or a == () or isinstance(a, int) for a in args):
            raise UnpicklingError("a deque is made of what is not its entries")
        return []


REFERENCES = frozenset(
    {
        "numpy.ndarray",
        *(f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)),
        *(f"numpy.{kind}" for kind in ("bool", "bool_", "str_", "bytes_", "object_")),
        *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    }
)
"""Types that records name."""
RECORDS = frozenset(
    {
        "argparse.Namespace",
        "decimal.Decimal",
        "numpy.dtype",
        "torch.torch_version.TorchVersion",
        *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
        *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
        *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"{module}.PosixPath" for module in ("pathlib", "pathlib._local")),
        *(f"{module}.WindowsPath" for module in ("pathlib", "pathlib._local")),
        *(f"builtins.{kind}" for kind in ("bytes", "frozenset", "range", "slice")),
    }
)
"""What training scripts keep beside the weights: an accuracy, a setting, an index of images."""
DICTS = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
HARMLESS: dict[str, type[Any]] = {
    "builtins.set": set,
    "collections.deque": PlainList,
    "functools.partial": InertPartial,
    "torchvision.transforms.functional.InterpolationMode": InertEnum,
    **dict.fromkeys(DICTS, PlainDict),
    **dict.fromkeys(RECORDS, Inert),
    **dict.fromkeys(REFERENCES, Reference),
}


def allowed_global(name: str) -> type[Any] | None:
    """The class that a pickle's global may become, or None where it is not on the allow-list.

    Args:
        name: Full dotted name in Python 3, such as `torch.nn.modules.conv.Conv2d`.
    """
    if name in HARMLESS:
        return HARMLESS[name]
    if not name.startswith((*MODULES, OPTIMIZERS)) or len(name) > MAX_NAME:
        return None
    module, _, attribute = name.rpartition(".")
    try:
        entry = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    if not inspect.isclass(entry):
        return None
    home = f"{entry.__module__}."
    if home.startswith(OPTIMIZERS):
        return InertOptimizer if issubclass(entry, Optimizer | LRScheduler) else None
    sound = home.startswith(MODULES) and issubclass(entry, nn.Module | enum.Enum)
    # torch.fx makes code of what it is given
    return entry if sound and not issubclass(entry, GraphModule) else None


def holds_tensors(value: object) -> bool:
    """Whether a tensor, or a network, is anywhere in plain containers and in what is inert."""
    return any(isinstance(entry, Tensor | nn.Module) for entry in entries(value))


def hides_tensors(value: object) -> bool:
    """Whether some are in what is not built; optimizers are not asked."""
    inert = [e for e in entries(value, into=InertOptimizer) if isinstance(e, Inert)]
    return holds_tensors([vars(e) for e in inert if not isinstance(e, InertOptimizer)])


def entries(
    value: object,
    *,
    into: type[Inert] = Inert,
    past: Callable[[object], bool] = lambda entry: False,
) -> Iterator[object]:
    """A value and all that is in its plain containers, keys too, each once.

    Args:
        value: Anything of a file.
        into: Values of this kind are looked into, too.
        past: What is left out, with all that is in it.
    """
    stack: list[Any] = [value]
    visited: set[int] = set()
    while stack:
        entry = stack.pop()
        if id(entry) in visited or past(entry):
            continue
        visited.add(id(entry))
        yield entry
        if isinstance(entry, dict):
            stack += [*dict.keys(entry), *dict.values(entry)]
        elif isinstance(entry, list | tuple | set | frozenset):
            stack += entry
        elif isinstance(entry, into):
            stack += vars(entry).get("given", [])


def has_odd_attributes(container: object) -> bool:
    """Whether a dictionary of the file has attributes, by which its methods may be others'."""
    return bool(set(getattr(container, "__dict__", {})) - {"_metadata"})
