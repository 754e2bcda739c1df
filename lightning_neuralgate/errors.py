"""The exceptions of this package. Every one names the thing that is wrong and the way out."""

from __future__ import annotations


class NeuralGateError(Exception):
    """Base of all errors raised on purpose by this package."""


class ModelLayoutError(NeuralGateError):
    """A model's text decoder, layer or MLP output projection could not be found."""


class SubjectNotFoundError(NeuralGateError):
    """The words that name the subject do not occur in a query."""


class DataFormatError(NeuralGateError, ValueError):
    """A data file, record or field is not what it has to be."""


class DataLeakError(NeuralGateError):
    """Something that was used for editing also stands in a test split."""


class GateMismatchError(NeuralGateError, ValueError):
    """A gate does not fit the model, layer or subject it is used with."""


class GateFormatError(NeuralGateError, ValueError):
    """A saved gate cannot be read."""


class UnsupportedSetupError(NeuralGateError):
    """A combination of model, strategy and options that cannot be done right, and so is refused."""


class MissingDependencyError(NeuralGateError, ImportError):
    """An optional library or file is needed and not there."""


class ResumeError(NeuralGateError):
    """What an earlier run has left cannot be gone on with."""


class WeightFilesError(NeuralGateError, ValueError):
    """The weights of a model folder cannot be read, or are not those that an edit belongs to."""


class DeltaFormatError(NeuralGateError, ValueError):
    """A saved edit cannot be read."""


class JudgeError(NeuralGateError):
    """A model that is to judge answers cannot be asked, or gives no verdict."""
