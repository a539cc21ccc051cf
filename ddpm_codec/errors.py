"""The exceptions that this package raises on purpose.

    DdpmCodecError
    +-- BitstreamError
    |   +-- Truncated          the stream ends before its end mark
    |   +-- Corrupt            a check fails, or a field is out of its bounds
    |   +-- VersionMismatch    written by another version of the format
    |   +-- ModelMismatch      written with another model
    +-- CheckpointError        a checkpoint is missing, damaged or foreign
    +-- DataError              an image, folder or array can't be used
    +-- ConfigError            options that contradict each other or the model

A message says what came, what was expected and what to do. The command line prints
it as one line and exits with status 1.
"""


class DdpmCodecError(Exception):
    """Base of every error that this package raises on purpose."""


class BitstreamError(DdpmCodecError):
    """A stream can't be decoded."""


class Truncated(BitstreamError):
    """The stream ends before its end mark."""


class Corrupt(BitstreamError):
    """The stream's bytes contradict themselves or their checksum."""


class VersionMismatch(BitstreamError):
    """The stream was written by another version of the format."""


class ModelMismatch(BitstreamError):
    """The stream was written with another model."""


class CheckpointError(DdpmCodecError):
    """A checkpoint is missing, damaged or foreign."""


class DataError(DdpmCodecError):
    """An image, a folder of images or an array can't be used."""


class ConfigError(DdpmCodecError):
    """Options contradict each other, the model or the mathematics."""
