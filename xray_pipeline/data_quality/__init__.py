"""Does what came in resemble the dataset? Copies, drift, mislabels and outliers."""
