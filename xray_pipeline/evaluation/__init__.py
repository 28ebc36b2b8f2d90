"""What is measured: metrics with intervals, paired comparison, slices, stress."""
