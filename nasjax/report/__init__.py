"""Reports of a run: a terminal table, SVG figures and one self-contained ``report.html``.

Everything here reads the plain JSON files of a run's working directory, so a report can be made on
a machine without an accelerator, while the search is still running, or long after it ended. The
figures need matplotlib (``pip install "nasjax[report]"``); loading and tables do not.
"""

from nasjax.report.conflict import conflict_curve, conflict_plot, conflict_variants_plot
from nasjax.report.formats import format_accuracy, format_flops, format_params
from nasjax.report.html import write_report
from nasjax.report.oracle import anytime, format_oracle, oracle_plot, regret_plot
from nasjax.report.plots import (
    accuracy_size_plot,
    architecture_plot,
    mixture_plot,
    training_plot,
)
from nasjax.report.ranking import format_ranking, ranking_plot
from nasjax.report.record import Run
from nasjax.report.second_stage import (
    anytime_accuracy,
    anytime_plot,
    population_plot,
    probes_plot,
    search_seconds,
    searchers_plot,
)
from nasjax.report.tables import format_columns, format_table, html_table

__all__ = [
    "Run",
    "accuracy_size_plot",
    "anytime",
    "anytime_accuracy",
    "anytime_plot",
    "architecture_plot",
    "conflict_curve",
    "conflict_plot",
    "conflict_variants_plot",
    "format_accuracy",
    "format_columns",
    "format_flops",
    "format_oracle",
    "format_params",
    "format_ranking",
    "format_table",
    "html_table",
    "mixture_plot",
    "oracle_plot",
    "population_plot",
    "probes_plot",
    "ranking_plot",
    "regret_plot",
    "search_seconds",
    "searchers_plot",
    "training_plot",
    "write_report",
]
