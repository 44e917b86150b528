"""The version of nasjax."""

__version__ = "0.1.0"
