"""Rates with their intervals, and numbers as people read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from auditor.text import clean_text

Z95 = 1.959963984540054


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion, for display. (0, 1) where nothing was counted.

    Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    if total <= 0:
        return 0.0, 1.0
    share = hits / total
    scale = 1 + Z95 * Z95 / total
    middle = (share + Z95 * Z95 / (2 * total)) / scale
    spread = (
        Z95 / scale * math.sqrt(max(0.0, share * (1 - share) / total + (Z95 / (2 * total)) ** 2))
    )
    low = 0.0 if hits <= 0 else max(0.0, middle - spread)
    high = 1.0 if hits >= total else min(1.0, middle + spread)
    return low, high


@dataclass(frozen=True)
class Rate:
    """Hits of a total, as a share with its interval."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        """0 where nothing was counted."""
        return self.hits / self.total if self.total > 0 else 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return wilson(self.hits, self.total)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return wilson(self.hits, self.total)[1]


def percent(value: float) -> str:
    """A share as a percentage with one decimal; never "0.0%" or "100.0%" for what is not."""
    if not math.isfinite(value):
        return "no number"
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value * 100:.1f}%"


def fine_percent(value: float) -> str:
    """The size of a small change as a percentage with two decimals; never "0.00%" for some change."""
    if 0 < value < 0.00005:
        return "<0.01%"
    return f"{value * 100:.2f}%" if abs(value) < 100 else f"{number(value * 100)}%"


def interval(rate: Rate) -> str:
    """The 95% interval of a rate, as "91.5–97.2%"."""
    low, high = percent(rate.low), percent(rate.high)
    return (
        f"{low.removesuffix('%')}–{high}"
        if low[0].isdigit() and high[0].isdigit()
        else f"{low}–{high}"
    )


def number(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value) or abs(value) >= 1e29:
        return "not finite"
    if 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value else "0"


def byte_size(value: int) -> str:
    """A size in decimal units."""
    if value < 1000:
        return f"{value} bytes"
    size, unit = float(value), "bytes"
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007
        size /= 1000
        if size < 999.95:
            break
    return f"{size:.1f} {unit}"


def duration(value: float) -> str:
    """Seconds, or minutes and hours where that reads better."""
    if not math.isfinite(value) or value < 0:
        return "unknown"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(text: str) -> str:
    """An ISO 8601 time in UTC, for people."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?Z", text)
    return f"{match[1]} {match[2]} UTC" if match else clean_text(text, limit=40)
