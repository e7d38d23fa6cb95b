"""Self-contained HTML pages about models: no network, everything inside.

write_report       one or more models side by side, as `vireo demo` shows them; no scripts
write_run_report   one training run and its evaluations, as `vireo report` shows them
"""

from vireo.report.command import report_command, write_run_report
from vireo.report.models import ModelSection, Strip, write_report

__all__ = ["ModelSection", "Strip", "report_command", "write_report", "write_run_report"]
