"""Failures that a user can cause or meet: one line each, and what to do about it."""

from __future__ import annotations

import enum

from mailraft.wire import feature_levels


class ExitCode(enum.IntEnum):
    """Exit statuses of the `mailraft` command. Scripts rely on them: never change one."""

    OK = 0
    FAILED = 1  # the operation was refused, or a check did not hold
    USAGE = 2  # an argument, a setting or a file is wrong: fix it and try again
    UNAVAILABLE = 3  # nobody answers, no leader, or not in time: the same command may work later
    NOT_FOUND = 4  # the account, mailbox or message that was named does not exist
    INTERRUPTED = 130  # Ctrl-C, as shells count it


class ClusterError(Exception):
    """An expected failure: `message` says what, `hint` what to do."""

    exit_code = ExitCode.FAILED
    reason = "FAILED"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class SettingsError(ClusterError):
    """A setting is missing or wrong; the message names it and where it came from."""

    exit_code = ExitCode.USAGE
    reason = "BAD_SETTING"


class MapFileError(ClusterError):
    """The cluster map file cannot be used."""

    exit_code = ExitCode.USAGE
    reason = "BAD_MAP_FILE"


class TooOldError(MapFileError):
    """The cluster has enabled what this version does not understand."""

    exit_code = ExitCode.FAILED
    reason = "FEATURE_NOT_ENABLED"

    def __init__(self, feature_level: int) -> None:
        super().__init__(
            f"the cluster is at feature level {feature_level}, this version understands "
            f"{feature_levels.LEVEL}",
            f"install {feature_levels.version_of(feature_level)} or newer (docs/upgrade.md)",
        )


class CertificateError(ClusterError):
    """A certificate or key file is missing or damaged."""

    exit_code = ExitCode.USAGE
    reason = "BAD_CERTIFICATE"


class NotConfirmedError(ClusterError):
    """What cannot be undone was not asked for twice."""

    exit_code = ExitCode.USAGE
    reason = "NOT_CONFIRMED"


class CorpusError(ClusterError):
    """There is no mail to read where it was looked for."""

    exit_code = ExitCode.USAGE
    reason = "BAD_CORPUS"


class FolderInUseError(ClusterError):
    """Another local cluster runs on this folder."""

    reason = "FOLDER_IN_USE"


class NotReadyError(ClusterError):
    """A process ended early, or the cluster did not get ready in time."""

    exit_code = ExitCode.UNAVAILABLE
    reason = "NOT_READY"
