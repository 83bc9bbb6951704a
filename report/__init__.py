"""From the results of a run to tables, figures and report.html."""
