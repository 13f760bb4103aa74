"""The `report` stage: everything a run has found, on one self-contained page."""

from preproc.report.stage import ReportStage

__all__ = ["ReportStage"]
