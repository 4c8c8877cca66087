"""Every exception that evenkeel raises on purpose, with the exit code of the command line; and its one warning."""

from __future__ import annotations


class EvenkeelError(Exception):
    """Base of all errors raised on purpose; the message is one line and says what to do."""

    exit_code = 4


class UsageError(EvenkeelError):
    """A call, flag or value that cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration whose fields contradict each other."""


class NotApplicable(UsageError):
    """A fault for which a model has no place; the message is the reason."""


class RecordError(UsageError):
    """A record that is of another model, of another version, or no record at all."""


class ModelError(EvenkeelError):
    """A model that cannot be read or run."""

    exit_code = 3


class DataError(EvenkeelError):
    """Data that cannot be read."""

    exit_code = 3


class NothingMeasuredError(EvenkeelError):
    """A run in which no site could be measured."""

    exit_code = 5


class RecordWarning(UserWarning):
    """A record's file can no longer be written; the run goes on, its readings are kept in memory."""
