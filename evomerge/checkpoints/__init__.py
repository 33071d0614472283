"""Checkpoints: opened lazily, understood, compared, written whole or not at all."""
