"""The parts of the report: plots, Grad-CAM, words."""
