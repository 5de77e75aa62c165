"""Errors that a user can act on: each says what, where, which value and what to do.

They are `ValueError`s. A job prints the message as the last line of its log, without a traceback;
any other exception is a bug or a broken machine and keeps its traceback.
"""


class CinesynthError(ValueError):
    """Base of all errors that are the user's to resolve."""


class ConfigError(CinesynthError):
    """A configuration that cannot run: unknown key, wrong type, value out of range, missing input."""


class IdentityError(CinesynthError):
    """A run name that is already taken by a run with another identity."""


class StorageError(CinesynthError):
    """A storage location that is missing, of the wrong kind or unreadable."""


class DatasetError(CinesynthError):
    """A clips dataset that is missing, incomplete, of another schema version or too small."""


class ModelError(CinesynthError):
    """A base model folder or hub id that is missing, damaged or not a Wan image-to-video model."""


class AdapterError(CinesynthError):
    """An adapter that is missing, damaged, made for another base, or that changes nothing."""


class MediaError(CinesynthError):
    """A video or image that cannot be read or written."""


class AttemptFailed(CinesynthError):
    """What says nothing about its input, and may succeed the next time: a time limit, a crash, memory, a store."""


class WeightsUnavailable(CinesynthError):
    """Metric weights that are neither in the cache, nor fetchable, nor given by path."""
