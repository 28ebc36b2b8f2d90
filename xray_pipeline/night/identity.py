"""Store, ledger, registry and dataset must be each other's before anything is written."""

from __future__ import annotations

import logging
from pathlib import Path

from xray_pipeline.base.errors import DatasetError, RegistryUnavailable
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry

log = logging.getLogger(__name__)


def compare(run: Run, *, mend: bool = True) -> None:
    """Compare the identities of store, ledger and registry; comes before the first write of whatever writes.

    A damaged dataset.json that follows from the settings is put back, unless `mend` says that nothing may be changed.
    Raises RegistryError when they are not each other's, DatasetError for a store that lost its dataset, LedgerError,
    RegistryUnavailable, StorageUnavailable.
    """
    dataset = Dataset(run.settings)
    is_there = dataset.begun()
    ledger, uri = run.compared if is_there else Ledger(run.store()), run.settings.tracking_uri
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database and not database.exists() and not any(ledger.store.list()):
        return  # before the first candidate: nothing knows anything, and asking would make a database
    if ledger.entries() and not is_there:
        raise DatasetError(
            f"{run.settings.store} holds a ledger but no dataset/dataset.json: is all of the store mounted? If it is, "
            f"restore the dataset from a backup; nothing was written"
        )
    if is_there and mend:
        dataset.mend()  # only to what the first commit names
    Registry(run.settings, ledger).aliases()


def vouch(run: Run) -> None:
    """Have the registry remember the newest commit; where it does not answer, the next night does.

    Raises LedgerError, RegistryError.
    """
    if Ledger(run.store()).identity(make=False):
        try:
            run.registry().model.vouch()
        except RegistryUnavailable as error:
            log.warning("the registry does not know of the newest commit yet: %s", error)
