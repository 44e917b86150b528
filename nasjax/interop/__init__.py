"""Weights of other frameworks: reading their files, and moving between their trees and ours."""

from nasjax.interop.errors import WeightsError
from nasjax.interop.files import read_state_dict

__all__ = ["WeightsError", "read_state_dict"]
