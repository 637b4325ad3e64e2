"""Who may call what: one table of RPC to roles. mailraft.wire.guard goes by it on every port.

A role is the OU of a certificate that the cluster's authority signed. Only a router may say on
whose behalf it calls (PRINCIPAL_KEY); that role then counts. What is not in the table is refused to
everybody. Plain text (--insecure, loopback only) knows no roles: everybody is believed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mailraft.wire import accounts, errors
from mailraft.wire.accounts import Accounts

PRINCIPAL_KEY = "x-mailraft-principal"  # role/name


class Role(enum.StrEnum):
    """Who presents a certificate: its OU."""

    NODE = "node"
    ROUTER = "router"
    SERVICE = "service"
    OPERATOR = "operator"
    AUDITOR = "auditor"

    @property
    def serves(self) -> bool:
        """True if others connect to it."""
        return self in (Role.NODE, Role.ROUTER)


# What release 0.1.0 called them; its certificates stay valid until they expire.
_OLD_NAMES = {"client": Role.SERVICE, "admin": Role.OPERATOR}
EVERYBODY = frozenset(Role)
_MAIL = frozenset({Role.ROUTER, Role.SERVICE, Role.OPERATOR})
OPERATE = frozenset({Role.OPERATOR})
_LOOK = frozenset({Role.OPERATOR, Role.AUDITOR})
_MEMBERS = frozenset({Role.NODE})

# By service, and what calls to it go by; a call that differs is named below it.
_MAIL_CALLS = {
    "AccountService": "CreateAccount GetAccount ListAccounts UpdateAccount DeleteAccount",
    "MailboxService": "CreateMailbox GetMailbox ListMailboxes UpdateMailbox DeleteMailbox",
    "MessageService": (
        "DeliverMessages AppendMessages GetMessage BatchGetMessages BatchGetThreads ListMessages "
        "ListUids SearchMessages ModifyKeywords UpdateMemberships MoveMessages CopyMessages "
        "ExpungeMessages UndeleteMessages ListChanges ListMailboxChanges Watch WatchShard "
        "WaitCommitted"
    ),
    "BlobService": "GetBlob UploadBlob DownloadBlob GetStructure",
    "BatchService": "Execute",
}
_LOOKING = {
    "AdminService": "GetClusterStatus GetSettings",
    "JobService": "GetJob ListJobs WatchJob",
}
_OPERATING = {
    "AdminService": (
        "AddNode DrainNode UndrainNode DecommissionNode RemoveNode TransferLeadership MoveShard "
        "Rebalance FinalizeUpgrade UpdateSettings"
    ),
    "JobService": "StartJob CancelJob",
}
_CLUSTER = {
    "ClusterService": (
        "GetClusterMap WatchClusterMap ListNodes GetShard ListShards Locate GetCapabilities"
    ),
}
_INTERNAL_MEMBERS = {
    "PeerService": "Exchange InstallSnapshot GetDigests GetPosition",
    "ControlService": "Report ChangeMembers HandOver",
}
_INTERNAL_LOOKING = {
    "AuditService": "AuditBodies Scrub",
    "InspectService": "Hot",
    "RecoveryService": "Survey",
}
_INTERNAL_OPERATING = {
    "BackupService": "ReadShard ReadLog CreateRestored",
    "InspectService": "HotNamed Measure",
    "RecoveryService": "Force",
}
_INTERNAL_BOTH = {"InspectService": "Ping"}
_COMMON = {
    "grpc.health.v1.Health": "Check List Watch",
    "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo",
}


def _paths(package: str, calls: Mapping[str, str]) -> Iterable[str]:
    return (f"/{package}{service}/{name}" for service in calls for name in calls[service].split())


TABLE: Mapping[str, frozenset[Role]] = {
    **dict.fromkeys(_paths("mailraft.v1.", _MAIL_CALLS), _MAIL),
    **dict.fromkeys(_paths("mailraft.v1.", _CLUSTER), EVERYBODY),
    **dict.fromkeys(_paths("mailraft.v1.", _LOOKING), _LOOK),
    **dict.fromkeys(_paths("mailraft.v1.", _OPERATING), OPERATE),
    **dict.fromkeys(_paths("mailraft.internal.v1.", _INTERNAL_MEMBERS), _MEMBERS),
    **dict.fromkeys(_paths("mailraft.internal.v1.", _INTERNAL_LOOKING), _LOOK),
    **dict.fromkeys(_paths("mailraft.internal.v1.", _INTERNAL_OPERATING), OPERATE),
    **dict.fromkeys(_paths("mailraft.internal.v1.", _INTERNAL_BOTH), _MEMBERS | _LOOK),
    **dict.fromkeys(_paths("", _COMMON), EVERYBODY),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the role and the name (CN) of a certificate, and the accounts it is limited to."""

    role: Role
    name: str
    accounts: Accounts = accounts.ALL

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"


def role_of(unit: str) -> Role | None:
    """The role that an OU names; None: no role of ours."""
    try:
        return _OLD_NAMES.get(unit) or Role(unit)
    except ValueError:
        return None


_caller: ContextVar[Principal | None] = ContextVar("mailraft_principal", default=None)


def call_for(caller: Principal | None) -> None:
    """What runs here from now on is on somebody's behalf."""
    _caller.set(caller)  # gRPC runs each call in a task of its own: nothing to put back


def check_account(account_id: str) -> None:
    """Of a stream's message. Raises AccountNotAllowedError unless its caller may act on it."""
    caller = _caller.get()
    if caller is not None:
        caller.accounts.check(account_id)


def metadata() -> tuple[tuple[str, str], ...]:
    """What a router adds to a call that it forwards for one caller (of many together: nothing)."""
    caller = _caller.get()
    return () if caller is None else ((PRINCIPAL_KEY, str(caller)),)


# An OU in a subject as RFC 4514 writes it: a comma within a value has a backslash before it.
_UNIT = re.compile(r"(?:^|(?<!\\),)OU=([a-z]+)(?=,|$)")


def authenticated(context: Any) -> Principal | None:
    """Whose certificate a call came with; None: plain text, so nobody's.

    Raises CredentialsInvalidError for a certificate that names no role, or more than one.
    """
    shown: Mapping[str, Iterable[bytes]] = context.auth_context()
    names = [each.decode("utf-8", "replace") for each in shown.get("x509_common_name", ())]
    subjects = [each.decode("utf-8", "replace") for each in shown.get("x509_subject", ())]
    if not names and not subjects:
        if shown.get("transport_security_type", [b""]) == [b"ssl"]:
            raise errors.CredentialsMissingError("no certificate was shown")
        return None
    units = _UNIT.findall(subjects[0]) if len(subjects) == 1 else []
    role = role_of(units[0]) if len(units) == 1 else None
    if role is None or len(names) != 1 or not names[0]:
        raise errors.CredentialsInvalidError("the certificate names no role of mailraft, or nobody")
    try:
        uris = [each.decode() for each in shown.get("peer_uri", ())]
        limited_to = accounts.of_uris(uris)
    except ValueError:
        raise errors.CredentialsInvalidError("the certificate's accounts make no sense") from None
    if limited_to.limited and role is not Role.SERVICE:
        raise errors.CredentialsInvalidError("only a service is limited to accounts")
    return Principal(role, names[0], limited_to)


def admitted(
    method: str, caller: Principal | None, metadata: Iterable[tuple[str, str | bytes]]
) -> Principal | None:
    """On whose behalf a call may go on, by whose certificate was shown. Raises
    MethodNotAllowedError.
    """
    if caller is None:
        return None
    told = [value for key, value in metadata if key == PRINCIPAL_KEY]
    if told:
        if caller.role is not Role.ROUTER or len(told) != 1:
            raise errors.MethodNotAllowedError(f"{PRINCIPAL_KEY} is for a router to set, once")
        unit, _, name = str(told[0]).partition("/")
        role = role_of(unit)
        if role is None:
            raise errors.MethodNotAllowedError(f"{PRINCIPAL_KEY} names no role")
        caller = Principal(role, name)
    if caller.role not in TABLE.get(method, ()):
        raise errors.MethodNotAllowedError(f"{method} is not for the role {caller.role}")
    return caller


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a call that is recorded: every refusal, and every action of an operator."""

    method: str
    caller: Principal | None  # None: not known
    peer: str  # its address, as gRPC writes it
    refused: str = ""  # why; empty: it was let through
