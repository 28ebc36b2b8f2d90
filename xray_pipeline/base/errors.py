"""Every error this package raises on purpose, as one tree.

    XrayError
    ├── Permanent                trying again changes nothing until a person has changed something
    │   ├── ConfigError          a setting, recipe or policy is wrong
    │   ├── AmendmentError       the dataset can't be amended as it was asked
    │   └── ModelRefused         a model artifact must not be loaded (pickle, unknown file, wrong digest)
    ├── StorageError             a store can't be used as asked
    │   ├── ObjectNotFound       the key isn't there
    │   └── StorageUnavailable   the store did not answer in time, or refused
    │       └── AccessDenied     no permission for this one object or folder
    ├── RadiographError          one file is not a radiograph we take (carries the quarantine reason)
    ├── DecoderUnavailable       no process to decode in could be started: this machine's fault, not the file's
    ├── DeliveryError            a whole delivery can't be judged (unknown class, ...), or changed before its commit
    ├── DatasetError             the dataset on disk disagrees with itself, the settings or this version of the code
    │   ├── RadiographErased     a radiograph was erased for data protection
    │   ├── RadiographDamaged    a stored radiograph is missing, can't be read or is not what its digest says
    │   └── Damaged              a file of the store is not what was written, or not what the record says that names it
    ├── WeightsError             pretrained weights are missing or not what their digest says
    ├── TrainingError            training can't go on
    │   ├── NonFiniteLoss        NaN or infinity in the loss
    │   └── OutOfMemory          no batch size fits the device
    ├── EvaluationError          a model can't be scored
    ├── LedgerError              the ledger is broken, or an entry lost the race for its place
    └── RegistryError            MLflow's registry does not hold what it should
        └── RegistryUnavailable  MLflow did not answer in time

A message says what was wrong, with the value and the place, and what to do next. No message holds patient data: files
of a delivery are named by their row in the intake table, never by their path.
"""

from __future__ import annotations

from xray_pipeline.base.text import without_passwords


class XrayError(Exception):
    """Root of the tree; `xray` prints it as one line and exits with 1. No message holds an address's password."""

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


class Permanent(XrayError):
    """Trying again changes nothing until a person has changed something: a task that raises it is not tried again."""


class ConfigError(Permanent):
    """A setting, recipe or policy is wrong."""


class AmendmentError(Permanent):
    """The dataset can't be amended as it was asked: nothing or too much is meant, or it is done already."""


class StorageError(XrayError):
    """A store can't be used as asked."""


class ObjectNotFound(StorageError):
    """The key is not in the store."""


class StorageUnavailable(StorageError):
    """The store did not answer in time, or refused."""


class AccessDenied(StorageUnavailable):
    """No permission for this one object or folder; the store itself may answer well."""


class RadiographError(XrayError):
    """One file is not a radiograph we take.

    `reason` is the quarantine reason: a short, stable code in kebab case; `detail` says it in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DecoderUnavailable(XrayError):
    """No process to decode in could be started."""


class DeliveryError(XrayError):
    """A whole delivery can't be judged, or changed before its commit."""


class DatasetError(XrayError):
    """The dataset on disk disagrees with itself, with the settings or with this version of the code."""


class RadiographErased(DatasetError):
    """A radiograph that was asked for was erased for data protection."""


class RadiographDamaged(DatasetError):
    """A stored radiograph is missing, can't be read or is not what its digest says."""


class Damaged(DatasetError):
    """A file of the store is missing a part, was changed, or is not what the record that names it says."""


class WeightsError(XrayError):
    """Pretrained weights are missing or not what their digest says."""


class TrainingError(XrayError):
    """Training can't go on."""


class NonFiniteLoss(TrainingError):
    """NaN or infinity in the loss."""


class OutOfMemory(TrainingError):
    """No batch size fits the device."""


class EvaluationError(XrayError):
    """A model can't be scored."""


class LedgerError(XrayError):
    """The ledger is broken, or an entry lost the race for its place."""


class RegistryError(XrayError):
    """MLflow's registry does not hold what it should."""


class RegistryUnavailable(RegistryError):
    """MLflow did not answer in time."""


class ModelRefused(Permanent):
    """A model artifact must not be loaded."""
