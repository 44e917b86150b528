"""Errors of training, each one sentence a user can act on."""

from __future__ import annotations

from nasjax.core.errors import NasjaxError


class NonFiniteError(NasjaxError):
    """The loss or a gradient has not been finite for several steps in a row."""


class CheckpointError(NasjaxError):
    """A checkpoint cannot be written or does not belong to this run."""


class Stopped(Exception):
    """The run was interrupted, has saved its state, and continues when started again."""
