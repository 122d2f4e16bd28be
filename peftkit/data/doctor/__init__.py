"""The data doctor: finds, counts and places what is wrong with rows, for every task, and mends what can be mended.

    case = open_case(run.data, run.task)
    findings = examine(case, chosen())
    fixed, changes = mend(case, chosen())

Adding a check is one file in `checks/` and one line in its `__init__`. Findings never hold what stands in a row: only
numbers of rows and names of columns and labels.
"""

from peftkit.data.doctor import checks as _registered  # noqa: F401  (importing them registers them)
from peftkit.data.doctor.check import CHECKS, Check, check, chosen, examine
from peftkit.data.doctor.finding import Finding, Remedy, Severity
from peftkit.data.doctor.mend import Change, mend
from peftkit.data.doctor.open import open_case
from peftkit.data.doctor.sheet import Case, Reading, Sheet
from peftkit.data.doctor.write import write_fixed

__all__ = [
    "CHECKS",
    "Case",
    "Change",
    "Check",
    "Finding",
    "Reading",
    "Remedy",
    "Severity",
    "Sheet",
    "check",
    "chosen",
    "examine",
    "mend",
    "open_case",
    "write_fixed",
]
