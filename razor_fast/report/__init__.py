"""Reports: what a run forgot, what it kept and what it changed, on one self-contained HTML page.

    save_report(ReportData(request={"concept": "seven"}, ...), "report.html", "report.json")
    save_report(report_from_log("runs/seven"), "report.html")

data.py says what a report holds, verdict.py what it claims, plots.py and page.py how it looks. Calls errors and atomic,
and run_directory for the log; knows no models. Figures need matplotlib (pip install 'razor-fast[report]').
"""

from __future__ import annotations

from ..atomic import atomic_files
from .data import ReportData, load_report, report_text
from .images import png_data_uri
from .log import report_from_log
from .svg import MissingPackageError
from .verdict import Verdict, judge

__all__ = ["ReportData", "Verdict", "MissingPackageError", "save_report", "load_report", "report_from_log",
           "report_html", "judge", "png_data_uri"]  # fmt: skip


def report_html(data) -> str:
    """The page as text. data: ReportData, or a dict of its fields. Equal data give equal text."""
    from .page import page

    return page(data if isinstance(data, ReportData) else ReportData(**data))


def save_report(data, path_html, path_json=None) -> None:
    """Write the page, and its data beside it where path_json is given; both appear whole, or not at all.

    data: ReportData, or a dict of its fields. Existing files are replaced. Raises ConfigError (data that do not fit),
    MissingPackageError (no matplotlib), EditError (the folder does not exist), all before anything is written.
    """
    data = data if isinstance(data, ReportData) else ReportData(**data)
    texts = [report_html(data)] + ([report_text(data)] if path_json is not None else [])
    paths = [path_html] + ([path_json] if path_json is not None else [])
    with atomic_files(*paths, overwrite=True) as temporaries:
        for temporary, text in zip(temporaries, texts):
            temporary.write_text(text, encoding="utf-8", newline="\n")
