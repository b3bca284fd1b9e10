"""matplotlib as it draws all pictures of this house: imported from here, so that each has the same settings."""

import matplotlib

matplotlib.use("Agg")  # no screen is needed, or asked for
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

matplotlib.rcParams["text.parse_math"] = False  # names with two dollars are no formulas

__all__ = ["MaxNLocator", "matplotlib", "plt"]
