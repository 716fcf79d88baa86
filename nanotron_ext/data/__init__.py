"""The mixture loader: which tokens a step trains on, as a pure function of the recipe and the step."""

from nanotron_ext.data.errors import DataError
from nanotron_ext.data.loader import (
    MicroBatch,
    MixtureLoader,
    SourcePlan,
    SourceProgress,
    StepBatch,
    validation_batches,
)
from nanotron_ext.data.manifest import Manifest, Source, read_source

__all__ = [
    "DataError",
    "Manifest",
    "MicroBatch",
    "MixtureLoader",
    "Source",
    "SourcePlan",
    "SourceProgress",
    "StepBatch",
    "read_source",
    "validation_batches",
]
