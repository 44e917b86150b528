"""Errors of the interop layer."""

from nasjax.core.errors import NasjaxError


class WeightsError(NasjaxError):
    """A file cannot be read, or its tensors are not those of the network at hand."""
