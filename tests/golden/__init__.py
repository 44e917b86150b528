"""Checks nasjax against numbers made by the authors' own code: ``python -m tests.golden FILE``.

A file is ``STEM.json`` with ``STEM.npz`` beside it. Weights are not stored but drawn by name; the
cases say what came out. Each kind of file is one module of :mod:`tests.golden.kinds`.
"""
