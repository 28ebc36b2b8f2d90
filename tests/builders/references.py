"""What a delivery is compared with, of rows that a test makes."""

import pandas as pd

from xray_pipeline.dataset.history import Reference
from xray_pipeline.intake.drift import measured


def reference(rows: pd.DataFrame) -> Reference:
    """Return rows (digest, patient, label, statistics, age_years) as all that a dataset holds."""
    ages = rows["age_years"].value_counts(dropna=False)
    return Reference(rows, measured(rows)["patient"].nunique(), rows["label"].value_counts(), ages)
