"""Simulated rooms whose image, depth map and binaural echo come from one geometry, in real data sets' formats."""

from simulation.writer import is_complete, is_simulated, write_dataset

__all__ = ["is_complete", "is_simulated", "write_dataset"]
