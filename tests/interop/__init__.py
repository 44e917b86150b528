"""Tests of nasjax.interop."""
