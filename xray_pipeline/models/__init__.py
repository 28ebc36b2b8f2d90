"""Backbones, the classifier, and the bundle that travels with a logged model."""
