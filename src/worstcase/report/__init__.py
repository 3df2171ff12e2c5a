"""The paper's figures and tables from the records of finished runs, with the paper's numbers beside ours."""

from worstcase.report.rows import read_runs
from worstcase.report.training import method_tables
from worstcase.report.write import PAGE, SECTIONS, write_report

__all__ = ["PAGE", "SECTIONS", "method_tables", "read_runs", "write_report"]
