from collections.abc import Callable
from pathlib import Path

import pytest

from mailraft.cluster import mapfile
from mailraft.cluster.errors import MapFileError
from mailraft.cluster.maps import FILE_NAME, ClusterMaps
from mailraft.node.interfaces import Configuration
from mailraft.v1 import cluster_pb2
from mailraft.wire.slots import SLOTS


def _nodes(count: int) -> list[cluster_pb2.Node]:
    return [
        cluster_pb2.Node(
            id=number, name=f"n{number}", address=f"127.0.0.1:{7400 + number}", weight_milli=1000
        )
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (2, 3), (3, 8), (5, 64), (12, 7)])
def test_a_map_covers_everything(count: int, shards: int) -> None:
    """Every slot is in one shard; every shard has three replicas on different nodes if it can."""
    cluster_map = mapfile.make(_nodes(count), shards)
    assert [shard.id for shard in cluster_map.shards] == list(range(1, shards + 1))
    assert sum(part.last_slot - part.first_slot + 1 for part in cluster_map.slots) == SLOTS
    for shard in cluster_map.shards:
        on_nodes = [replica.node_id for replica in shard.replicas]
        assert len(on_nodes) == len(set(on_nodes)) == min(3, count)
        assert [replica.replica_id for replica in shard.replicas] == [
            node << 32 | 1 for node in on_nodes
        ]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The map survives the file, whole."""
    cluster_map = mapfile.make(_nodes(3), 8)
    mapfile.save(tmp_path / "map.json", cluster_map)
    assert mapfile.load(tmp_path / "map.json") == cluster_map
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_two_clusters_are_told_apart() -> None:
    """Each map has a cluster id of its own."""
    assert mapfile.make(_nodes(1), 1).cluster_id != mapfile.make(_nodes(1), 1).cluster_id


Change = Callable[[cluster_pb2.ClusterMap], None]


def _no_epoch(told: cluster_pb2.ClusterMap) -> None:
    told.epoch = 0


def _no_cluster(told: cluster_pb2.ClusterMap) -> None:
    told.cluster_id = ""


def _other_slots(told: cluster_pb2.ClusterMap) -> None:
    told.slot_count = 1024


def _gap(told: cluster_pb2.ClusterMap) -> None:
    told.slots[1].first_slot += 1


def _overlap(told: cluster_pb2.ClusterMap) -> None:
    told.slots[0].last_slot += 1


def _short(told: cluster_pb2.ClusterMap) -> None:
    del told.slots[-1]


def _unknown_shard(told: cluster_pb2.ClusterMap) -> None:
    told.slots[0].shard = 99


def _no_replicas(told: cluster_pb2.ClusterMap) -> None:
    del told.shards[0].replicas[:]


def _unknown_node(told: cluster_pb2.ClusterMap) -> None:
    del told.nodes[0]


def _twice_on_a_node(told: cluster_pb2.ClusterMap) -> None:
    told.shards[0].replicas[1].CopyFrom(told.shards[0].replicas[0])


def _foreign_replica(told: cluster_pb2.ClusterMap) -> None:
    told.shards[0].replicas[0].replica_id += 1 << 32


def _same_address(told: cluster_pb2.ClusterMap) -> None:
    told.nodes[0].address = told.nodes[1].address


def _bad_address(told: cluster_pb2.ClusterMap) -> None:
    told.nodes[0].address = "nowhere"


def _unsorted_nodes(told: cluster_pb2.ClusterMap) -> None:
    told.nodes.reverse()


def _no_shards(told: cluster_pb2.ClusterMap) -> None:
    del told.shards[:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_no_epoch, "its epoch is 0"),
        (_no_cluster, "no cluster_id"),
        (_other_slots, "1024 slots, not 16384"),
        (_gap, "its slots do not go on at"),
        (_overlap, "its slots do not go on at"),
        (_short, "its slots end at"),
        (_unknown_shard, "are in no shard"),
        (_no_replicas, "shard 1 has no replicas"),
        (_unknown_node, "on node 1, unknown"),
        (_twice_on_a_node, "two replicas of shard 1 are on one node"),
        (_foreign_replica, "is not of node"),
        (_same_address, "the same address"),
        (_bad_address, "must be HOST:PORT"),
        (_unsorted_nodes, "ascending order"),
        (_no_shards, "its shards are not numbered"),
    ],
)
def test_a_bad_map_is_refused(tmp_path: Path, change: Change, told: str) -> None:
    """Whatever would lose an account's way is found when the map is loaded."""
    cluster_map = mapfile.make(_nodes(3), 4)
    change(cluster_map)
    path = tmp_path / "map.json"
    mapfile.save(path, cluster_map)
    with pytest.raises(MapFileError) as caught:
        mapfile.load(path)
    assert str(path) in caught.value.message
    assert told in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", '{"epoch": "x"}', '{"unknown": 1}'])
def test_a_file_that_is_no_map(tmp_path: Path, text: str) -> None:
    """It is refused by name."""
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(MapFileError, match=r"map\.json is not valid"):
        mapfile.load(tmp_path / "map.json")


def test_no_file(tmp_path: Path) -> None:
    """It is refused by name."""
    with pytest.raises(MapFileError, match="cannot read the cluster map"):
        mapfile.load(tmp_path / "map.json")


def test_the_view_of_a_node() -> None:
    """A node sees its peers, the groups it hosts with their configuration, and every slot."""
    cluster_map = mapfile.make(_nodes(5), 8)
    view = ClusterMaps(cluster_map, 2)
    assert (view.cluster_id, view.node, view.epoch) == (cluster_map.cluster_id, 2, 1)
    assert [peer.node for peer in view.peers()] == [1, 2, 3, 4, 5]
    hosted = {group for group, _ in view.groups()}
    for shard in cluster_map.shards:
        on_nodes = [replica.node_id for replica in shard.replicas]
        assert (shard.id in hosted) is (2 in on_nodes)
    for group, configuration in view.groups():
        everything = [cluster_map.meta, *cluster_map.shards]
        shard = next(each for each in everything if each.id == group)
        voters = tuple(sorted(replica.replica_id for replica in shard.replicas))
        assert configuration == Configuration(1, voters)
    for part in cluster_map.slots:
        assert view.shard_of_slot(part.first_slot) == part.shard
        assert view.shard_of_slot(part.last_slot) == part.shard


def test_a_node_that_the_map_does_not_know() -> None:
    """It must not start."""
    with pytest.raises(MapFileError, match="no node 9"):
        ClusterMaps(mapfile.make(_nodes(3), 1), 9)


def test_every_flipped_bit_of_a_nodes_copy_is_seen(tmp_path: Path) -> None:
    """Also one in an address, which would be as good JSON as before; and the copy is the JSON that
    an older release reads.
    """
    path = tmp_path / "copy.json"
    written = mapfile.make(_nodes(3), 2)
    mapfile.save(path, written, sealed=True)
    assert mapfile.load(path, sealed=True) == mapfile.load(path) == written
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :])
            with pytest.raises(MapFileError):
                mapfile.load(path, sealed=True)


def test_a_copy_of_an_older_release_is_taken_as_it_is(tmp_path: Path) -> None:
    """It has no checksum."""
    path = tmp_path / "copy.json"
    written = mapfile.make(_nodes(3), 2)
    mapfile.save(path, written)
    assert mapfile.load(path, sealed=True) == written


def test_a_node_goes_on_without_a_damaged_copy(tmp_path: Path) -> None:
    """It begins with the file that the cluster began with, and knows of no replica that it is new;
    the next map that it adopts is a whole copy again.
    """
    first, copy = tmp_path / "map.json", tmp_path / FILE_NAME
    mapfile.save(first, mapfile.make(_nodes(3), 2))
    ClusterMaps.open(first, 1, tmp_path).adopted()
    replica = ClusterMaps.open(first, 1, tmp_path).groups()[0][1].voters[0]
    copy.write_text(copy.read_text("utf-8").replace("node", "mode", 1), "utf-8")
    maps = ClusterMaps.open(first, 1, tmp_path)
    assert not maps.is_new(replica)
    maps.adopted()
    mapfile.load(copy, sealed=True)
