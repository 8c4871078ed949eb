"""Counts -> verdict. Pure: the same counts, the same verdict.

An exhibited trigger that works on held-out images, clearly above its matched controls, is a
backdoor. Outlier scores can at most raise suspicion. Nothing seen is a bound, never "clean".
"""

from auditor.verdict.goals import *  # noqa: F403
from auditor.verdict.grading import *  # noqa: F403
from auditor.verdict.judging import *  # noqa: F403
from auditor.verdict.limits import *  # noqa: F403
from auditor.verdict.outliers import *  # noqa: F403
from auditor.verdict.thresholds import *  # noqa: F403
