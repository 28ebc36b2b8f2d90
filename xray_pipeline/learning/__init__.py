"""The parts of training: recipes, fitting, checkpoints, features, calibration, reproducing."""
