"""What a failed call to a node means to who may try again."""

import grpc
import pytest

from mailraft.router.failures import LostError
from mailraft.router.pool import Node


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_call_that_a_stopping_node_ends_may_be_tried_elsewhere(
    code: grpc.StatusCode,
) -> None:
    """A node that is stopped ends what comes last without a reason: its fate is not known."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        node = Node("127.0.0.1:1", channel)
        nothing = grpc.aio.Metadata()
        failed = grpc.aio.AioRpcError(code, nothing, nothing, "", "")
        assert isinstance(node.failure(failed), LostError)
        assert node.suspect
