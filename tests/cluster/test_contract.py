"""The contract of a mail store on a cluster of real processes, while its nodes are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from grpc_driver import GrpcDriver
from grpc_machine import GrpcMachine
from killed_cluster import KilledCluster

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(400)]

SHARDS = 2
EXAMPLES = 6
STEPS = 40
KILLS_MIN = 3


class ClusterMachine(GrpcMachine):
    """Each call is answered as the model says, whatever happens to the nodes meanwhile: nothing is
    lost, nothing is done twice, every level shows all that was acknowledged (invariants 1 to 13, 15
    and 19), and in the end all replicas show the same (17).
    """

    server: KilledCluster

    def make(self) -> GrpcDriver:
        return GrpcDriver(self.server)

    @rule(hours=st.just(0))
    def send(self, hours: int) -> None:
        """Time passes by itself."""
        super().send(0)

    def teardown(self) -> None:
        assert isinstance(self.mail, GrpcDriver)
        self.server.check_replicas(map(self.mail.name, self.model.accounts))


TestMailModelOnCluster = ClusterMachine.TestCase
TestMailModelOnCluster.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    # What fails here depends on when a node died: smaller is not simpler.
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True, scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three nodes, killed by turns from the first call to the last."""
    seed = random.randrange(1 << 32)
    print(f"seed of the kills: {seed}")
    folder = tmp_path_factory.mktemp("contract") / "cluster"
    ClusterMachine.server = server = KilledCluster(folder, shards=SHARDS, seed=seed)
    try:
        yield
        print(f"{server.kills} nodes were killed")
        assert server.kills >= KILLS_MIN, "the nodes were hardly killed"
    finally:
        server.close()
        del ClusterMachine.server
