"""DeliverMessages: many mails for many accounts of many shards, an answer for each recipient.

A delivery becomes one command in each shard that its recipients are in, and all commands of the
call are proposed at once: what arrives during one flush is one log entry.

Whose fault it is decides who is refused. The form of the call (counts, options) refuses the call.
A delivery's request_id, content or number of recipients, or an account that it lists twice, refuse
that delivery: the others may come from other callers, since clients and routers regroup them. A
recipient's own fields, its account, its shard refuse that recipient.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.shard import Replica
from mailraft.v1 import common_pb2, delivery_pb2
from mailraft.wire import bodies, errors, limits, observed, tokens, tracing

from . import blob_source, convert, levels, mutations, validate, write_levels
from .base import Accepted, Call, Shards, to_error
from .content import Budget, Prepared, given_or_derived, prepare

_WHAT = "DeliverMessages"


@dataclass(slots=True)
class _Proposal:
    """One delivery's part in one shard."""

    replica: Replica
    delivery: delivery_pb2.Delivery
    content: Prepared | None = None
    recipients: list[command_pb2.DeliverRecipient] = field(default_factory=list)
    results: list[delivery_pb2.RecipientResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _ByBlob:
    """A recipient that names bytes of its own account."""

    replica: Replica
    delivery: delivery_pb2.Delivery
    recipient: command_pb2.DeliverRecipient
    blob: tuple[int, int]
    result: delivery_pb2.RecipientResult


class Delivery:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def DeliverMessages(
        self, request: delivery_pb2.DeliverMessagesRequest, call: Call
    ) -> delivery_pb2.DeliverMessagesResponse:
        _check_form(request)
        options = request.write_options
        response = delivery_pb2.DeliverMessagesResponse()
        budget, dictionary = Budget(), bodies.dictionary_at(self._shards.cluster.feature_level)
        proposals: list[_Proposal] = []
        by_blob: list[_ByBlob] = []
        for delivery in request.deliveries[:]:
            asked = delivery.recipients[:]
            add = response.results.add().recipients.add
            results = [add() for _ in asked]
            try:
                _check_delivery(delivery, asked)
                ours, theirs = self._plan(delivery, asked, results)
                if ours:
                    derived = delivery.derived if delivery.HasField("derived") else None
                    content = await prepare(
                        delivery.content, derived, budget, "content", dictionary
                    )
                    proposals += [_with_content(each, content) for each in ours]
                by_blob += theirs
            except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
                _refuse(results, to_error(error, _WHAT))
        await asyncio.gather(
            *(self._propose(each, call, options) for each in proposals),
            *(self._propose_blob(each, call, options, budget) for each in by_blob),
        )
        level = observed.level_of(request)
        codes = Counter([each.code for told in response.results for each in told.recipients[:]])
        for code, count in codes.items():
            observed.answered("recipient", level, code, count)
        return response

    def _plan(
        self,
        delivery: delivery_pb2.Delivery,
        recipients: Sequence[delivery_pb2.Recipient],
        results: Sequence[delivery_pb2.RecipientResult],
    ) -> tuple[list[_Proposal], list[_ByBlob]]:
        by_shard: dict[int, _Proposal] = {}
        by_blob: list[_ByBlob] = []
        for asked, result in zip(recipients, results, strict=True):
            try:
                recipient = _recipient(asked)
                replica = self._shards.replica_for_account(asked.account_id)
                levels.check_leading(replica)
                if asked.blob_id:
                    blob = validate.blob_id(asked.blob_id)
                    by_blob.append(_ByBlob(replica, delivery, recipient, blob, result))
                    continue
                proposal = by_shard.get(replica.group)
                if proposal is None:
                    proposal = by_shard[replica.group] = _Proposal(replica, delivery)
                proposal.recipients.append(recipient)
                proposal.results.append(result)
            except errors.MailraftError as error:
                _refuse([result], error)
        return list(by_shard.values()), by_blob

    async def _propose(
        self, proposal: _Proposal, call: Call, options: common_pb2.WriteOptions
    ) -> None:
        command = _command(proposal)
        assert proposal.content is not None
        packed = (proposal.content.packed,)
        try:
            with tracing.span(
                "commit",
                {"shard": proposal.replica.group, "node": self._shards.node_name},
                parent=proposal.delivery.traceparent,
            ):
                reply, served = await mutations.write(
                    self._shards, proposal.replica, command, call, packed, options
                )
            answers = reply.deliver.recipients[:]
            for answer, result in zip(answers, proposal.results, strict=True):
                if answer.HasField("refusal"):
                    _refuse([result], convert.refusal(answer.refusal))
                else:
                    _accept(result, answer.message, answer.state, served)
        except Accepted as accepted:
            for result in proposal.results:
                result.served.CopyFrom(accepted.served)
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            _refuse(proposal.results, to_error(error, _WHAT))

    async def _propose_blob(
        self, asked: _ByBlob, call: Call, options: common_pb2.WriteOptions, budget: Budget
    ) -> None:
        """As an Append of one message: only apply can tell if the account may read the blob."""
        account_id = asked.recipient.account_id
        try:
            row = await blob_source.readable(asked.replica, account_id, asked.blob, call)
            first = blob_source.bodies_of(row)[0]  # the header is in there
            budget.take(first.size_bytes)
            head = await blob_source.opened(self._shards, asked.replica, first)
            given = asked.delivery.derived if asked.delivery.HasField("derived") else None
            item = command_pb2.AppendItem(
                blob=record_pb2.BodyPosition(index=row.index, ordinal=row.ordinal),
                targets=asked.recipient.targets,
                keywords=asked.recipient.keywords,
                internal_time_ms=asked.delivery.internal_time_ms,
                derived=given_or_derived(given, head),
            )
            del head  # a whole mail, perhaps, while others are on their way
            command = command_pb2.Command(
                request_id=asked.delivery.request_id,
                fingerprint=_fingerprint(asked.delivery, asked.recipient, row.sha256),
                append=command_pb2.Append(account_id=account_id, items=[item]),
            )
            reply, served = await mutations.write(
                self._shards, asked.replica, command, call, (), options
            )
            _accept(asked.result, reply.append.messages[0], reply.state, served)
        except Accepted as accepted:
            asked.result.served.CopyFrom(accepted.served)
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            _refuse([asked.result], to_error(error, _WHAT))


# ---- what is asked -------------------------------------------------------------------------------


def _check_form(request: delivery_pb2.DeliverMessagesRequest) -> None:
    write_levels.check(request.write_options)
    if request.write_options.if_in_state:
        raise validate.bad("write_options.if_in_state", "must be empty: it is of one account")
    if not 1 <= len(request.deliveries) <= limits.DELIVERIES_PER_CALL_MAX:
        raise validate.bad("deliveries", f"1 to {limits.DELIVERIES_PER_CALL_MAX}")
    check_counts([request])


def check_counts(requests: Iterable[delivery_pb2.DeliverMessagesRequest]) -> None:
    """What one reply can answer: of a call, or of all the calls in a batch."""
    recipients = targets = 0
    for request in requests:
        for delivery in request.deliveries:
            for each in delivery.recipients[:]:
                recipients += 1
                targets += len(each.targets)
    if recipients > validate.RECIPIENTS_PER_CALL_MAX:
        what = f"at most {validate.RECIPIENTS_PER_CALL_MAX} recipients in all"
        raise validate.bad("deliveries", what)
    if targets > validate.TARGETS_PER_CALL_MAX:
        raise validate.bad("deliveries", f"at most {validate.TARGETS_PER_CALL_MAX} targets in all")


def _check_delivery(
    delivery: delivery_pb2.Delivery, recipients: Sequence[delivery_pb2.Recipient]
) -> None:
    validate.request_id(delivery.request_id)
    validate.internal_time(delivery.internal_time_ms, "internal_time_ms")
    if not 1 <= len(recipients) <= limits.RECIPIENTS_PER_DELIVERY_MAX:
        raise validate.bad("recipients", f"1 to {limits.RECIPIENTS_PER_DELIVERY_MAX}")
    if len(recipients) > 1:
        validate.unique((each.account_id for each in recipients), "recipients")


def _recipient(asked: delivery_pb2.Recipient) -> command_pb2.DeliverRecipient:
    account_id = asked.account_id
    validate.account_id(account_id)
    recipient = command_pb2.DeliverRecipient()
    recipient.account_id = account_id
    if asked.targets:
        recipient.targets.extend(validate.targets(asked.targets, "targets"))
    if asked.keywords:
        recipient.keywords.extend(validate.keywords(asked.keywords, "keywords"))
    return recipient


# ---- commands ------------------------------------------------------------------------------------


def _with_content(proposal: _Proposal, content: Prepared) -> _Proposal:
    proposal.content = content
    for recipient in proposal.recipients:
        recipient.fingerprint = _fingerprint(proposal.delivery, recipient, content.sha256)
    return proposal


def _fingerprint(
    delivery: delivery_pb2.Delivery, recipient: command_pb2.DeliverRecipient, sha256: bytes
) -> bytes:
    where = mutations.placement(recipient.targets, recipient.keywords, delivery.internal_time_ms)
    return mutations.fingerprint("deliver", sha256, where)


def _command(proposal: _Proposal) -> command_pb2.Command:
    content, delivery = proposal.content, proposal.delivery
    assert content is not None
    command = command_pb2.Command()  # filled so in half the time that its constructor takes
    command.request_id = delivery.request_id
    command.fingerprint = proposal.recipients[0].fingerprint
    deliver = command.deliver
    content.tell(deliver.body, ordinal=0)
    deliver.internal_time_ms, deliver.derived = delivery.internal_time_ms, content.derived
    deliver.thread_keys.extend(content.thread_keys)
    deliver.recipients.extend(proposal.recipients)
    return command


# ---- answers -------------------------------------------------------------------------------------


def _accept(
    result: delivery_pb2.RecipientResult,
    stored: command_pb2.StoredMessage,
    state: command_pb2.AccountState,
    served: common_pb2.Served,
) -> None:
    result.message_id = tokens.message_id(stored.message)
    result.memberships.extend(convert.memberships(stored))
    result.state = convert.state_token(state)
    body = stored.body
    result.blob_id = tokens.blob_id(body.index, body.ordinal)
    result.thread_id = tokens.thread_id(stored.thread)
    result.served.CopyFrom(served)


def _refuse(results: Iterable[delivery_pb2.RecipientResult], error: errors.MailraftError) -> None:
    for result in results:
        result.Clear()
        result.code = error.code.value[0]
        result.reason = error.reason
        result.message = error.message[:256]
        result.retry_after_ms = error.retry_after_ms or 0
