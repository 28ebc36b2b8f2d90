"""A snapshot and a recipe to a candidate."""
