"""One page per candidate, its model card and figures."""
