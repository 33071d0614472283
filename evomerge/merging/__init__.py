"""Operators, and what writes a recipe's tensors into a model."""
