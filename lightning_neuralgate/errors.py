"""Exceptions. Each message names what is wrong and how to fix it."""

from __future__ import annotations


class NeuralGateError(Exception):
    """Base class of all exceptions of this package."""


class ModelLayoutError(NeuralGateError):
    """A model's text decoder, layer or MLP output projection could not be found."""


class SubjectNotFoundError(NeuralGateError):
    """A query does not contain the name of its subject."""


class DataFormatError(NeuralGateError, ValueError):
    """A data file, record or field is invalid."""


class DataLeakError(NeuralGateError):
    """A test split contains data that was used for editing."""


class GateMismatchError(NeuralGateError, ValueError):
    """A gate does not fit the model, layer or subject it is used with."""


class GateFormatError(NeuralGateError, ValueError):
    """A saved gate cannot be read."""


class KeysFormatError(NeuralGateError, ValueError):
    """A saved input covariance cannot be read."""


class SteeringFormatError(NeuralGateError, ValueError):
    """A saved steering cannot be read."""


class UnsupportedSetupError(NeuralGateError):
    """A combination of model, strategy and options that is not supported."""


class MissingDependencyError(NeuralGateError, ImportError):
    """An optional library or file is required but missing."""


class ResumeError(NeuralGateError):
    """The progress of an earlier run cannot be resumed."""


class WeightFilesError(NeuralGateError, ValueError):
    """The weights of a model folder cannot be read, or an edit was made for other weights."""


class DeltaFormatError(NeuralGateError, ValueError):
    """A saved edit cannot be read."""


class JudgeError(NeuralGateError):
    """A judge model cannot be reached, or its replies contain no verdict."""


class HubError(NeuralGateError):
    """Something cannot be shared on, or downloaded from, the Hugging Face hub, or its checksums differ."""
