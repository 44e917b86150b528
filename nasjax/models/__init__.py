"""Flax modules with named axes: the networks that spaces search."""
