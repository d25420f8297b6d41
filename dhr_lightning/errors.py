"""Errors that a user can repair; the command line shows them as one line and exits with status 2."""


class DHRError(Exception):
    """Base of every error whose message says what is wrong, where, and what to do."""


class ConfigError(DHRError):
    """A configuration file or override cannot be used."""


class DataError(DHRError):
    """A dataset on disk is missing, incomplete or unreadable."""


class TagError(DataError):
    """A tag is unknown, or an image has no tag and the policy forbids it."""


class MaskError(DataError):
    """A mask holds values or a size that the dataset does not allow."""


class ArtifactError(DHRError):
    """A file made by an earlier step is absent, stale, incomplete or unreadable."""


class LockError(ArtifactError):
    """Another process is writing the same artifact folder or run."""


class CheckpointError(DHRError):
    """A checkpoint does not belong to this class list or network."""


class NonFiniteLossError(DHRError):
    """The training loss became NaN or infinite."""


class DependencyError(DHRError):
    """An optional package is needed for the chosen option and is not installed."""
