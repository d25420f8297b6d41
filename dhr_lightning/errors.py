"""Errors that a user can repair; the command line shows them as one line and exits with status 2."""

import errno
from collections.abc import Iterable, Mapping

_FULL = "Free some space and run the same command again; finished files are kept"
_RIGHTS = "Give this user rights to it, or choose another folder (--workspace, --root, --output)"
_REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOTDIR: "A part of this path is a file; choose another folder",
    errno.EISDIR: "It is a folder; name a file",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EMFILE: "Allow more open files (`ulimit -n 4096`), or load with fewer workers (--data.num_workers 0)",
    errno.EIO: "The disk or network drive failed; look at it before you go on",
    errno.ESTALE: "The network drive lost the file; run the same command again",
}


class DHRError(Exception):
    """Base of every error whose message says what is wrong, where, and what to do."""


class ConfigError(DHRError):
    """A configuration file or override cannot be used."""


def check_keys(given: Iterable[str], known: Iterable[str], section: str) -> None:
    """Check the names of some settings.

    Args:
        given: names.
        known: those that there are.
        section: what they are settings of.

    Raises:
        ConfigError: if one is unknown; shows all known ones.
    """
    names = list(known)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(f"Unknown {section}.{unknown[0]}. Known: {', '.join(names)}.")


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


def machine_error(error: OSError) -> str | None:
    """What a refusal of the machine means, as one sentence with the path, or `None` for one that is no such thing."""
    remedy = _REMEDIES.get(error.errno or 0)
    return None if remedy is None else f"{error.filename or 'A file'}: {error.strerror}. {remedy}."


_PLAIN = "python -m dhr_lightning run"
_command = _PLAIN


def run_command() -> str:
    """The command that makes what is missing, with the data and changes of the command that runs now."""
    return _command


def set_run_command(command: str = _PLAIN) -> None:
    """Tell messages which recipe this process is about; without an argument they name the plain command."""
    global _command
    _command = command
