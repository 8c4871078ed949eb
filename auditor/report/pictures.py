"""Pictures of a result that a page can show: a PNG as a data URL, or nothing."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from markupsafe import Markup

PICTURE_SIDE = 128
"""Small pictures are enlarged by a whole factor to about this many CSS pixels."""
PICTURE_CHARACTERS = 700_000
"""What the pictures of one page may take; the others are counted, and are in the JSON."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture that a page can show."""

    url: Markup
    width: int
    height: int
    enlarged: bool


def read_image(png: str) -> Image | None:
    """A data URL, if the text is a PNG and nothing else."""
    try:
        head = base64.b64decode(png[:64], validate=True)
        base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return None
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if not (0 < width <= 4096 and 0 < height <= 4096):
        return None
    side = max(width, height)
    factor = PICTURE_SIDE // side if side <= PICTURE_SIDE else PICTURE_SIDE / side
    return Image(
        url=Markup("data:image/png;base64,") + png,
        width=max(1, round(width * factor)),
        height=max(1, round(height * factor)),
        enlarged=factor > 1,
    )
