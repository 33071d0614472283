"""What is known of models from data: the texts that they read, and what is collected meanwhile."""

from evomerge.merging.calibration.statistics import Collected
from evomerge.merging.calibration.texts import CALIBRATION, Calibration, read_calibration

__all__ = ["CALIBRATION", "Calibration", "Collected", "read_calibration"]
