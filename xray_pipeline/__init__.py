"""Check, retrain, evaluate, register: a nightly chest X-ray classifier with evidence for every decision."""

__version__ = "0.1.0"
