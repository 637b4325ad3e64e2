"""How mailraft says no: one class a reason of error.proto, below one class a gRPC code.

    except errors.OverQuotaError      one reason
    except errors.NotFoundError       all reasons of a code, and ones that only a newer server knows
    except errors.MailraftError       everything

`retryable`: the same request, with the same request_id, may succeed after `retry_after_ms`.
The class of a reason is its name in camel case and "Error"; but INTERNAL_ERROR is InternalError and
NOT_IMPLEMENTED is UnimplementedError, which no builtin has as its name.
"""

from __future__ import annotations

import grpc

from mailraft.v1 import error_pb2
from mailraft.wire import _error_base

DOMAIN = _error_base.DOMAIN
STATUS_DETAILS_KEY = _error_base.STATUS_DETAILS_KEY
PUSHBACK_KEY = _error_base.PUSHBACK_KEY
MailraftError = _error_base.MailraftError
abort = _error_base.abort
by_reason = _error_base.by_reason
from_rpc_error = _error_base.from_rpc_error
from_status = _error_base.from_status


class UnavailableError(MailraftError):
    """Nothing was done, save under COMMIT_UNKNOWN; the same request may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class NoLeaderError(UnavailableError):
    """The shard has no leader at present: an election runs."""

    reason = error_pb2.ERROR_REASON_NO_LEADER
    retry_after_default_ms = 100


class NotLeaderError(UnavailableError):
    """This replica does not lead the shard."""

    reason = error_pb2.ERROR_REASON_NOT_LEADER
    detail_type = error_pb2.NotLeader


class QuorumUnavailableError(UnavailableError):
    """Fewer replicas are in contact than the level needs; nothing was written."""

    reason = error_pb2.ERROR_REASON_QUORUM_UNAVAILABLE
    retry_after_default_ms = 250
    detail_type = error_pb2.QuorumUnavailable


class ReplicaLaggingError(UnavailableError):
    """No asked replica is fresh enough."""

    reason = error_pb2.ERROR_REASON_REPLICA_LAGGING
    retry_after_default_ms = 50
    detail_type = error_pb2.ReplicaLagging


class StaleRouteError(UnavailableError):
    """Routed by an old cluster map."""

    reason = error_pb2.ERROR_REASON_STALE_ROUTE
    detail_type = error_pb2.StaleRoute


class ShuttingDownError(UnavailableError):
    """The process is stopping."""

    reason = error_pb2.ERROR_REASON_SHUTTING_DOWN


class CommitUnknownError(UnavailableError):
    """The write was proposed and its fate is not known."""

    reason = error_pb2.ERROR_REASON_COMMIT_UNKNOWN
    retry_after_default_ms = 100
    detail_type = error_pb2.CommitUnknown


class AbortedError(MailraftError):
    """What the request builds on has changed: read again, decide again."""

    code = grpc.StatusCode.ABORTED


class StateMismatchError(AbortedError):
    """The account is not at if_in_state."""

    reason = error_pb2.ERROR_REASON_STATE_MISMATCH
    detail_type = error_pb2.StateMismatch


class EtagMismatchError(AbortedError):
    """The object has changed since its etag was read."""

    reason = error_pb2.ERROR_REASON_ETAG_MISMATCH
    detail_type = error_pb2.EtagMismatch


class UidValidityMismatchError(AbortedError):
    """The mailbox has another UIDVALIDITY."""

    reason = error_pb2.ERROR_REASON_UID_VALIDITY_MISMATCH
    detail_type = error_pb2.UidValidityMismatch


class UploadOffsetMismatchError(AbortedError):
    """The upload must go on at another offset."""

    reason = error_pb2.ERROR_REASON_UPLOAD_OFFSET_MISMATCH
    detail_type = error_pb2.UploadOffsetMismatch


class EpochMismatchError(AbortedError):
    """The cluster map is not at if_epoch."""

    reason = error_pb2.ERROR_REASON_EPOCH_MISMATCH
    detail_type = error_pb2.StaleRoute


class OutOfRangeError(MailraftError):
    """What is asked for is no longer held."""

    code = grpc.StatusCode.OUT_OF_RANGE


class StateTooOldError(OutOfRangeError):
    """Changes since this state are no longer held: synchronise from nothing."""

    reason = error_pb2.ERROR_REASON_STATE_TOO_OLD


class ResourceExhaustedError(MailraftError):
    """A limit is reached; nothing was done."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class OverloadedError(ResourceExhaustedError):
    """A bounded queue is full."""

    reason = error_pb2.ERROR_REASON_OVERLOADED
    retryable = True
    retry_after_default_ms = 100


class OverQuotaError(ResourceExhaustedError):
    """The account's quota would be passed."""

    reason = error_pb2.ERROR_REASON_OVER_QUOTA
    detail_type = error_pb2.OverQuota


class RateLimitedError(ResourceExhaustedError):
    """This caller or account sends too much."""

    reason = error_pb2.ERROR_REASON_RATE_LIMITED
    retryable = True
    retry_after_default_ms = 1000


class DiskFullError(ResourceExhaustedError):
    """Nodes of the shard lack disk space for writes."""

    reason = error_pb2.ERROR_REASON_DISK_FULL
    retryable = True
    retry_after_default_ms = 5000


class LimitReachedError(ResourceExhaustedError):
    """A bounded number is reached."""

    reason = error_pb2.ERROR_REASON_LIMIT_REACHED


class ReplyFullError(ResourceExhaustedError):
    """The batch's reply has no room left; this read was not run."""

    reason = error_pb2.ERROR_REASON_REPLY_FULL
    retryable = True


class FailedPreconditionError(MailraftError):
    """Something must be changed before this can be done."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class MailboxNotEmptyError(FailedPreconditionError):
    """The mailbox holds messages and force is not set."""

    reason = error_pb2.ERROR_REASON_MAILBOX_NOT_EMPTY


class MailboxHasChildrenError(FailedPreconditionError):
    """The mailbox has children."""

    reason = error_pb2.ERROR_REASON_MAILBOX_HAS_CHILDREN


class LevelNotAllowedError(FailedPreconditionError):
    """The asked level is forbidden here, or the shard can never meet it."""

    reason = error_pb2.ERROR_REASON_LEVEL_NOT_ALLOWED


class RequestIdTooOldError(FailedPreconditionError):
    """The request_id was made before the window; nothing was done now."""

    reason = error_pb2.ERROR_REASON_REQUEST_ID_TOO_OLD


class NodeReachableError(FailedPreconditionError):
    """The node still answers: drain or decommission it instead."""

    reason = error_pb2.ERROR_REASON_NODE_REACHABLE


class AccountNotEmptyError(FailedPreconditionError):
    """The account holds messages and force is not set."""

    reason = error_pb2.ERROR_REASON_ACCOUNT_NOT_EMPTY


class LastMembershipError(FailedPreconditionError):
    """The change would leave a message in no mailbox."""

    reason = error_pb2.ERROR_REASON_LAST_MEMBERSHIP


class NotEnoughNodesError(FailedPreconditionError):
    """Too few nodes, hosts or zones would be left to place the replicas."""

    reason = error_pb2.ERROR_REASON_NOT_ENOUGH_NODES


class JobConflictError(FailedPreconditionError):
    """A job that contradicts this one is running."""

    reason = error_pb2.ERROR_REASON_JOB_CONFLICT


class JobFinishedError(FailedPreconditionError):
    """The job has finished already."""

    reason = error_pb2.ERROR_REASON_JOB_FINISHED


class FeatureNotEnabledError(FailedPreconditionError):
    """Not all nodes understand this yet: finish the upgrade."""

    reason = error_pb2.ERROR_REASON_FEATURE_NOT_ENABLED


class InvalidArgumentError(MailraftError):
    """The request can never be done as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class BadFieldError(InvalidArgumentError):
    """A field is malformed, missing, out of range or contradicts another."""

    reason = error_pb2.ERROR_REASON_BAD_FIELD


class RequestIdReusedError(InvalidArgumentError):
    """The request_id was used in this account with other content."""

    reason = error_pb2.ERROR_REASON_REQUEST_ID_REUSED


class MessageTooLargeError(InvalidArgumentError):
    """Above the message or request limit."""

    reason = error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE
    detail_type = error_pb2.MessageTooLarge


class BadPageTokenError(InvalidArgumentError):
    """The page_token is not of this server, or of another request."""

    reason = error_pb2.ERROR_REASON_BAD_PAGE_TOKEN


class FilterUnsupportedError(InvalidArgumentError):
    """The filter or sort cannot be answered here."""

    reason = error_pb2.ERROR_REASON_FILTER_UNSUPPORTED


class ContentMismatchError(InvalidArgumentError):
    """The bytes are not what the caller declared; nothing was stored."""

    reason = error_pb2.ERROR_REASON_CONTENT_MISMATCH


class NotFoundError(MailraftError):
    """There is no such resource."""

    code = grpc.StatusCode.NOT_FOUND


class AccountNotFoundError(NotFoundError):
    """There is no such account."""

    reason = error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND


class MailboxNotFoundError(NotFoundError):
    """There is no such mailbox."""

    reason = error_pb2.ERROR_REASON_MAILBOX_NOT_FOUND


class MessageNotFoundError(NotFoundError):
    """There is no such message."""

    reason = error_pb2.ERROR_REASON_MESSAGE_NOT_FOUND


class BlobNotFoundError(NotFoundError):
    """There is no such blob for this account."""

    reason = error_pb2.ERROR_REASON_BLOB_NOT_FOUND


class ShardNotFoundError(NotFoundError):
    """There is no such shard."""

    reason = error_pb2.ERROR_REASON_SHARD_NOT_FOUND


class ReplicaNotFoundError(NotFoundError):
    """The node does not hold this replica."""

    reason = error_pb2.ERROR_REASON_REPLICA_NOT_FOUND


class NodeNotFoundError(NotFoundError):
    """There is no such node."""

    reason = error_pb2.ERROR_REASON_NODE_NOT_FOUND


class JobNotFoundError(NotFoundError):
    """There is no such job."""

    reason = error_pb2.ERROR_REASON_JOB_NOT_FOUND


class AlreadyExistsError(MailraftError):
    """The resource is there already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class AccountExistsError(AlreadyExistsError):
    """The account exists."""

    reason = error_pb2.ERROR_REASON_ACCOUNT_EXISTS


class MailboxExistsError(AlreadyExistsError):
    """A sibling of that name exists."""

    reason = error_pb2.ERROR_REASON_MAILBOX_EXISTS


class MailboxRoleExistsError(AlreadyExistsError):
    """Another mailbox of the account has that role."""

    reason = error_pb2.ERROR_REASON_MAILBOX_ROLE_EXISTS


class NodeExistsError(AlreadyExistsError):
    """A node of that name or address exists."""

    reason = error_pb2.ERROR_REASON_NODE_EXISTS


class PermissionDeniedError(MailraftError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class MethodNotAllowedError(PermissionDeniedError):
    """This identity may not call this method."""

    reason = error_pb2.ERROR_REASON_METHOD_NOT_ALLOWED


class AccountNotAllowedError(PermissionDeniedError):
    """This identity may not act for this account."""

    reason = error_pb2.ERROR_REASON_ACCOUNT_NOT_ALLOWED


class UnauthenticatedError(MailraftError):
    """The caller is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED


class CredentialsMissingError(UnauthenticatedError):
    """No client certificate or token was sent where one is required."""

    reason = error_pb2.ERROR_REASON_CREDENTIALS_MISSING


class CredentialsInvalidError(UnauthenticatedError):
    """The credentials are expired, not yet valid, or of no trusted authority."""

    reason = error_pb2.ERROR_REASON_CREDENTIALS_INVALID


class DataLossError(MailraftError):
    """Stored data is damaged: tell the operator."""

    code = grpc.StatusCode.DATA_LOSS


class BlobCorruptError(DataLossError):
    """The bytes are damaged on every replica that could be asked."""

    reason = error_pb2.ERROR_REASON_BLOB_CORRUPT
    detail_type = error_pb2.BlobCorrupt


class TimedOutError(MailraftError):
    """The deadline passed. Without a reason, as gRPC says it, what was done is not known."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    retryable = True


class DeadlineExceededError(TimedOutError):
    """The deadline passed before anything was proposed; nothing was done."""

    reason = error_pb2.ERROR_REASON_DEADLINE_EXCEEDED


class UnimplementedError(MailraftError):
    """This server does not have the call or the option yet."""

    reason = error_pb2.ERROR_REASON_NOT_IMPLEMENTED
    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(MailraftError):
    """A bug of mailraft; metadata has the incident's number."""

    reason = error_pb2.ERROR_REASON_INTERNAL_ERROR
    code = grpc.StatusCode.INTERNAL
