"""Feature levels: nothing reaches a node that would not understand it, and no level ever falls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import grpc
import pytest

from mailraft.cluster import mapfile
from mailraft.cluster.control.admin import Admin
from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.jobs import Jobs
from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.control.observed import Observed
from mailraft.cluster.control.overview import overview
from mailraft.cluster.control.upgrades import level_to_enable
from mailraft.cluster.errors import TooOldError
from mailraft.cluster.maps import FILE_NAME, ClusterMaps
from mailraft.internal.v1 import meta_pb2, peer_service_pb2_grpc, raft_pb2
from mailraft.node.engine.errors import UnknownFormatError as UnknownFolderError
from mailraft.node.engine.store import Store
from mailraft.node.mailstore.errors import UnknownFormatError
from mailraft.node.services.base import Call
from mailraft.v1 import admin_pb2, cluster_pb2
from mailraft.wire import errors, feature_levels
from meta_driver import Meta, first_map, refused
from seen_cluster import seen, silent
from three_nodes import Nodes, until

ZONE = "mailraft.v1.Node.zone"  # stands for what came later
DRAINED = "mailraft.v1.NodeState.NODE_STATE_DRAINED"
MOVES = "mailraft.v1.Settings.concurrent_moves"


def old_map() -> cluster_pb2.ClusterMap:
    """As 0.2.0 made it."""
    made = first_map()
    made.ClearField("feature_level")
    return made


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A field, a value of an enum and a setting came with level 2."""
    monkeypatch.setattr(feature_levels, "GATED", dict.fromkeys((ZONE, DRAINED, MOVES), 2))
    feature_levels._may_hold.cache_clear()
    yield
    feature_levels._may_hold.cache_clear()


# ---- what a command needs


@pytest.mark.usefixtures("gated")
def test_what_a_command_holds_decides_its_level() -> None:
    """However deep it lies: a field that is set, an enum's value, a name in an update mask."""
    admit = meta_pb2.MetaCommand(admit_node=meta_pb2.AdmitNode(node=cluster_pb2.Node(name="n1")))
    assert feature_levels.level_of(admit) == 1
    admit.admit_node.node.zone = "z"
    assert feature_levels.level_of(admit) == 2
    state = meta_pb2.SetNodeState(node_id=1, state=cluster_pb2.NODE_STATE_DRAINING)
    assert feature_levels.level_of(state) == 1
    state.state = cluster_pb2.NODE_STATE_DRAINED
    assert feature_levels.level_of(state) == 2
    assert feature_levels.level_of(meta_pb2.ChangeSettings(), [MOVES]) == 2


@pytest.mark.usefixtures("gated")
def test_a_command_of_a_later_level_waits_for_it() -> None:
    """Refused below its level, with what to do; allowed at it."""
    admit = meta_pb2.AdmitNode(node=cluster_pb2.Node(zone="z"))
    with pytest.raises(errors.FeatureNotEnabledError, match=r"bring every node to 0\.3\.0"):
        feature_levels.check(admit, 1)
    feature_levels.check(admit, 2)


@pytest.mark.usefixtures("gated")
async def test_a_node_proposes_nothing_above_the_level(tmp_path: Path) -> None:
    """A leader refuses it before it has a place in the log, and goes on with the rest."""
    nodes = Nodes(tmp_path)
    nodes.map.ClearField("feature_level")
    for number in (1, 2, 3):
        await nodes.start(number)
    await until(lambda: nodes.leader != 0)
    try:
        async with nodes.client() as mail:
            await mail.create_account("alice")
            replica = next(iter(nodes.running[nodes.leader].replicas()))
            later = meta_pb2.AdmitNode(node=cluster_pb2.Node(zone="z"))
            last = replica.applied_index
            with pytest.raises(errors.FeatureNotEnabledError):
                await replica.propose(later, deadline_s=nodes.running[nodes.leader].now_s() + 5)
            assert replica.applied_index == last
            await mail.create_account("bob")
    finally:
        for number in list(nodes.running):
            await nodes.stop(number)


# ---- the meta group


def test_a_level_is_enabled_once_and_never_falls() -> None:
    """The map tells it under a new epoch; again changes nothing, lower is refused."""
    meta = Meta(old_map())
    assert meta.map.feature_level == 0
    epoch = meta.map.epoch
    for _ in range(2):
        assert not refused(meta.run(enable_level=meta_pb2.EnableLevel(feature_level=2)))
        assert (meta.map.feature_level, meta.map.epoch) == (2, epoch + 1)
    lower = meta.run(enable_level=meta_pb2.EnableLevel(feature_level=1))
    assert refused(lower) == "FEATURE_NOT_ENABLED"
    assert meta.map.feature_level == 2


def test_a_replica_that_does_not_understand_a_level_stops() -> None:
    """It applies nothing that its peers would read otherwise."""
    meta = Meta(old_map())
    with pytest.raises(UnknownFormatError, match="understands 2"):
        meta.run(enable_level=meta_pb2.EnableLevel(feature_level=3))


def test_a_new_cluster_begins_at_the_level_of_its_version() -> None:
    """All its nodes are of this version or a newer one; a map of 0.2.0 stays at the first."""
    assert Meta(first_map()).map.feature_level == feature_levels.LEVEL
    assert Meta(old_map()).head.feature_level == 0


def test_settings_that_came_later_are_told_from_their_level_on() -> None:
    """A leader of 0.2.0 lets them change without a new epoch; so does a replica of this version."""
    meta = Meta(old_map())
    epoch = meta.map.epoch
    assert not refused(meta.change("undelete_window_ms", undelete_window_ms=1_000))
    assert (meta.map.epoch, meta.map.policy.undelete_window_ms) == (epoch, 0)
    meta.run(enable_level=meta_pb2.EnableLevel(feature_level=2))
    assert (meta.map.epoch, meta.map.policy.undelete_window_ms) == (epoch + 1, 1_000)


# ---- who may raise it


def at_level_1(*levels: int) -> Observed:
    """A cluster at level 1 whose nodes understand these."""
    told = seen()
    told.map.ClearField("feature_level")
    for number, level in enumerate(levels, 1):
        told.reports[number].feature_level = level
        told.reports[number].version = f"0.{level + 1}.0"
    return told


@pytest.mark.parametrize(("asked", "levels"), [(0, (2, 2, 2)), (2, (2, 2, 2)), (2, (2, 3, 2))])
def test_what_all_nodes_understand_can_be_enabled(asked: int, levels: tuple[int, ...]) -> None:
    """Asked by number, or for the highest."""
    assert level_to_enable(at_level_1(*levels), asked) == 2


@pytest.mark.parametrize("asked", [0, 2])
def test_a_node_that_is_too_old_is_named(asked: int) -> None:
    """Every one, with what it runs."""
    with pytest.raises(errors.FeatureNotEnabledError, match=r"n1 \(0\.2\.0, level 1\), n3") as told:
        level_to_enable(at_level_1(1, 2, 1), asked)
    assert "n2" not in told.value.message


def test_a_silent_node_is_in_the_way() -> None:
    """What it would understand once it is back is not known. One that has left does not count."""
    there = silent(at_level_1(2, 2, 2), 3)
    with pytest.raises(errors.QuorumUnavailableError, match="n3"):
        level_to_enable(there, 0)
    there.map.nodes[2].state = cluster_pb2.NODE_STATE_REMOVED
    assert level_to_enable(there, 0) == 2


def test_the_level_in_force_is_no_error() -> None:
    """Finalize can be repeated, also while a node is away; above this version it is refused."""
    assert level_to_enable(silent(seen(), 3), feature_levels.LEVEL) == feature_levels.LEVEL
    assert level_to_enable(seen(), 0) == feature_levels.LEVEL
    with pytest.raises(errors.FeatureNotEnabledError):
        level_to_enable(at_level_1(3, 3, 3), 3)


def test_the_status_tells_levels_and_who_is_too_old() -> None:
    """A node below the cluster's level is an alarm: its peers refuse it."""
    there = seen()
    assert overview(there).feature_level == feature_levels.LEVEL
    there.reports[2].feature_level, there.reports[2].version = 1, "0.2.0"
    told = overview(there)
    assert [each.feature_level for each in told.nodes] == [feature_levels.LEVEL, 1, 2]
    assert [each.id for each in told.alarms] == ["node-too-old/2"]


class _Deciding:
    """A meta group, and a controller that sees it, whose map changes behind the first look."""

    deadline_s = 1.0

    def __init__(self) -> None:
        self.commands: list[meta_pb2.MetaCommand] = []
        self.epoch = 4

    async def look(self, *, deadline_s: float) -> Observed:
        told = at_level_1(2, 2, 2)
        told.map.epoch, self.epoch = self.epoch, 5
        return replace(told)

    def check_leads(self) -> None:
        """It does."""

    async def propose(
        self, command: meta_pb2.MetaCommand, *, deadline_s: float
    ) -> meta_pb2.MetaReply:
        self.commands.append(command)
        if command.if_epoch != self.epoch:
            raise errors.EpochMismatchError("the epoch is 5")
        return meta_pb2.MetaReply()


async def test_finalize_counts_only_for_the_nodes_that_were_asked() -> None:
    """A node that is admitted meanwhile changes the epoch: all are asked again."""
    deciding = _Deciding()
    admin = Admin(cast(MetaGroup, deciding), cast(Controller, deciding), cast(Jobs, None))
    told = await admin.FinalizeUpgrade(admin_pb2.FinalizeUpgradeRequest(), cast(Call, deciding))
    assert told.feature_level == 2
    assert [each.if_epoch for each in deciding.commands] == [4, 5]
    assert {each.enable_level.feature_level for each in deciding.commands} == {2}


# ---- nodes that are too old


def test_a_folder_of_a_level_is_not_opened_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may hold would be misread; it stays as it was for the right version."""
    store = Store.open(tmp_path, cluster_id="c", node=1)
    store.raise_feature_level(2)
    store.raise_feature_level(1)
    store.close()
    with monkeypatch.context() as older:
        older.setattr(feature_levels, "LEVEL", 1)
        with pytest.raises(UnknownFolderError, match="format 2, this release knows 1"):
            Store.open(tmp_path, cluster_id="c", node=1)
    store = Store.open(tmp_path, cluster_id="c", node=1)
    assert store.feature_level == 2
    store.close()


async def test_a_node_marks_its_folder_and_goes_by_the_mark(tmp_path: Path) -> None:
    """Before it acts by the map of a level; a copy of the map without it does not take it back."""
    nodes = Nodes(tmp_path)
    await nodes.start(1)
    marked = nodes.store(1).feature_level
    await nodes.stop(1)
    nodes.map.ClearField("feature_level")
    await nodes.start(1)
    gone_by = nodes.running[1].cluster.feature_level
    await nodes.stop(1)
    assert (marked, gone_by) == (feature_levels.LEVEL, feature_levels.LEVEL)


def test_the_copy_of_the_map_can_be_read_by_the_version_before(tmp_path: Path) -> None:
    """It would refuse a field that it does not know; the level stands in the folder's record."""
    file = tmp_path / FILE_NAME
    maps = ClusterMaps(first_map(), 1, file=file)
    assert maps.feature_level == feature_levels.LEVEL
    maps.adopted()
    assert "feature_level" not in file.read_text("utf-8")
    again = ClusterMaps(mapfile.load(file), 1, file=file)
    assert again.feature_level == 1
    again.remember_level(2)
    assert (again.feature_level, again.current().feature_level) == (2, 2)
    again.remember_level(1)
    assert again.feature_level == 2


def test_a_map_of_a_later_level_is_refused(tmp_path: Path) -> None:
    """With what to install: at start, and by a node that runs."""
    later = first_map()
    maps = ClusterMaps(later, 1)
    newer = cluster_pb2.ClusterMap()
    newer.CopyFrom(later)
    newer.feature_level, newer.epoch = feature_levels.LEVEL + 1, 9
    with pytest.raises(TooOldError, match="feature level 3, this version understands 2"):
        maps.install(newer)
    assert maps.epoch == later.epoch
    mapfile.save(tmp_path / "map.json", newer)
    with pytest.raises(TooOldError, match="this version understands 2"):
        mapfile.load(tmp_path / "map.json")


async def _exchange(address: str, hello: raft_pb2.Hello) -> dict[str, object]:
    """Open a stream; the metadata of its answer."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = peer_service_pb2_grpc.PeerServiceStub(channel).Exchange()  # type: ignore[call-arg]
        await call.write(raft_pb2.ExchangeRequest(hello=hello))
        told = dict(await call.initial_metadata() or ())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await call  # raises what it is refused with
        return told


async def test_a_node_below_the_level_gets_no_stream(tmp_path: Path) -> None:
    """One that tells no level has the first. It is told what it needs; others tell their level."""
    nodes = Nodes(tmp_path)
    await nodes.start(1)
    try:
        address = nodes.map.nodes[0].address
        hello = raft_pb2.Hello(
            cluster_id=nodes.map.cluster_id, from_node=2, to_node=1, session=7, feature_level=2
        )
        assert feature_levels.told_in((await _exchange(address, hello)).items()) == 2  # type: ignore[arg-type]
        hello.ClearField("feature_level")
        with pytest.raises(grpc.aio.AioRpcError) as refused_with:
            await _exchange(address, hello)
        assert refused_with.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "node 2 understands 1: it needs 0.3.0" in (refused_with.value.details() or "")
    finally:
        await nodes.stop(1)


async def test_a_node_opens_no_stream_to_one_below_the_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be sent what it does not understand. Once it tells a level that will do, it is."""
    monkeypatch.setattr(feature_levels, "METADATA", ())  # as of an answer of 0.2.0
    nodes = Nodes(tmp_path)
    await nodes.start(1)
    await nodes.start(2)
    try:
        streams = nodes.running[1]._streams
        assert streams is not None
        link = streams._links[2]
        tried: list[float] = []
        there = link._stream

        def counted(hello: raft_pb2.Hello) -> object:
            tried.append(time.monotonic())
            return there(hello)

        monkeypatch.setattr(link, "_stream", counted)
        await until(lambda: len(tried) >= 3)
        assert link.too_old
        assert not link._up
        assert nodes.leader == 0
    finally:
        for number in list(nodes.running):
            await nodes.stop(number)
