"""Counts -> verdict. Pure: the same counts, the same verdict.

A trigger that works on held-out images of many classes, clearly above its matched controls, is a
backdoor, unless its class stands for such a mark. Outlier scores can at most raise suspicion. Nothing
seen is a bound, never "clean".
"""

from auditor.verdict.goals import *  # noqa: F403
from auditor.verdict.grading import *  # noqa: F403
from auditor.verdict.judging import *  # noqa: F403
from auditor.verdict.limits import *  # noqa: F403
from auditor.verdict.outliers import *  # noqa: F403
from auditor.verdict.thresholds import *  # noqa: F403
