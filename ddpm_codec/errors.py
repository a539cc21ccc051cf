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
        +-- OutOfReach         pictures that never come to the wanted PSNR

A message says what came, what was expected and what to do. The command line prints
it as one line and exits with status 1.
"""

from collections.abc import Sequence
from typing import Any


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


class OutOfReach(ConfigError):
    """Pictures never came to the wanted PSNR. `sent`: of every picture, in order, what was sent, or
    None."""

    def __init__(self, message: str, sent: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.sent = sent
