"""The paper's figures and tables from the records of finished runs, with the paper's numbers beside ours."""

from worstcase.report.write import PAGE, SECTIONS, write_report

__all__ = ["PAGE", "SECTIONS", "write_report"]
