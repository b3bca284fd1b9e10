"""Simulated rooms whose image, depth map and binaural echo come from one geometry, in real data sets' formats."""

from simulation.layouts import draw_files
from simulation.scenes import kind_of
from simulation.writer import is_complete, is_simulated, write_dataset

__all__ = ["draw_files", "is_complete", "is_simulated", "kind_of", "write_dataset"]
