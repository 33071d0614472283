"""Experiments: read from YAML, wired together, run."""
