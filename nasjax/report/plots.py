"""The figures of a report; each function returns the text of one standalone SVG image."""

from nasjax.report.mixture import mixture_plot
from nasjax.report.picture import architecture_plot
from nasjax.report.scatter import accuracy_size_plot
from nasjax.report.training import training_plot

__all__ = ["accuracy_size_plot", "architecture_plot", "mixture_plot", "training_plot"]
