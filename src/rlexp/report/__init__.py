"""A report on many runs: tables with confidence intervals, figures and an HTML page. Imports no torch.

from rlexp.report import load_runs, make_report, write_report

report = make_report(load_runs(["outputs/hopper"]))
write_report(report, Path("report"))
"""

from rlexp.report.grouping import Group, group_runs
from rlexp.report.output import latex, markdown, write_report
from rlexp.report.report import Report, make_report
from rlexp.report.results import Comparison, Improvement, Result, compare, result_of
from rlexp.report.runs import ReportError, Run, load_runs
from rlexp.report.statistics import Estimate

__all__ = [
    "Comparison",
    "Estimate",
    "Group",
    "Improvement",
    "Report",
    "ReportError",
    "Result",
    "Run",
    "compare",
    "group_runs",
    "latex",
    "load_runs",
    "make_report",
    "markdown",
    "result_of",
    "write_report",
]
