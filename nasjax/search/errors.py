"""Errors of searching without training, each one sentence a user can act on."""

from __future__ import annotations

from nasjax.core.errors import NasjaxError


class SearchError(NasjaxError):
    """A search was asked for what it cannot do."""


class OracleError(NasjaxError):
    """A table of accuracies cannot be read, or does not know what it is asked for."""
