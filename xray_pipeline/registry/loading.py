"""Registered models as classifiers: downloaded, audited, and loaded with our own code onto the CPU.

What only moves versions and aliases does without this module, and so without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xray_pipeline.models.classifier import Classifier
from xray_pipeline.registry import model_files
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.model_files import ModelVersion


def load(registry: Registry, target: str | int) -> Classifier:
    """Load what `target` names (see `Registry.resolve`). Raises as `Registry.download` does."""
    return _answering(registry, Classifier.load(registry.download(target)))


def load_exactly(registry: Registry, model: ModelVersion, digest: str) -> Classifier:
    """Load a resolved model whose classifier must have this model digest. Raises as `Registry.download` does."""
    return _answering(registry, Classifier.load(model_files.fetch(registry.kept(model), registry.cache), digest))


def _answering(registry: Registry, model: Classifier) -> Classifier:
    """Return a model that answers by the engine that the settings ask for."""
    return replace(model, engine=registry.settings.engine)


def prove(registry: Registry, version: int) -> str:
    """Load a version and keep nothing; return its artifact digest, the ledger's where that knows the version."""
    model = registry.kept(registry.resolve(version))
    with model_files.audited(model, registry.cache) as folder:
        Classifier.load(folder)
    return model.artifact


@dataclass(frozen=True)
class Champions:
    """The registry as a training asks it what to start from."""

    registry: Registry

    def champion(self) -> int | None:
        """Return the version in production, None without one. Raises LedgerError."""
        return self.registry.champion()

    def load(self, version: int) -> Classifier:
        """Return the model of a version. Raises as `load` does."""
        return load(self.registry, version)
