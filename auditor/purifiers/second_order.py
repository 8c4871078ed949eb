"""Second derivatives, for methods that differentiate a gradient."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from torch.nn.attention import SDPBackend, sdpa_kernel

from auditor.errors import UnsuitableModel
from auditor.models.base import ModelHandle
from auditor.text import clean_text

NO_DERIVATIVE = re.compile(r"derivative for .* is not implemented")


@contextlib.contextmanager
def twice_differentiable(model: ModelHandle) -> Iterator[None]:
    """Attention by plain matrix products, since its fused kernels have no second derivative.

    Raises:
        UnsuitableModel: The network has another operation without one.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not NO_DERIVATIVE.search(str(error)):
            raise
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)} has an operation that cannot be differentiated "
            f"twice ({clean_text(str(error), limit=120)}), as this method needs it. Use "
            "another method, or the PyTorch file that it was exported from."
        ) from None
