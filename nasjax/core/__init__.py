"""The idea: spaces, axis names, superposition, extraction, costs. Pure functions of trees."""
