"""Who gets in, and what each role may call: by the table, on every port of real servers."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailraft.cluster import certs
from mailraft.v1 import account_pb2
from mailraft.wire import errors
from mailraft.wire.access import PRINCIPAL_KEY, TABLE, Principal, Role, role_of
from mailraft.wire.credentials import Credentials, open_channel
from two_ports import ANSWER_S, Ports, answer, methods, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

NAMES = {
    Role.NODE: "node-1",
    Role.ROUTER: "router",
    Role.SERVICE: "client",
    Role.OPERATOR: "admin",
    Role.AUDITOR: "auditor",
}
REFUSAL_S = 30.0  # comes at once, unless the machine is busy
CALLS_AT_ONCE = 16
MAP = "/mailraft.v1.ClusterService/GetClusterMap"
SETTINGS = "/mailraft.v1.AdminService/GetSettings"
NOT_FOR_ROLE = "is not for the role"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    """A node and a router."""
    async with serving(tmp_path_factory.mktemp("roles")) as both:
        yield both


async def test_every_call_is_in_the_table() -> None:
    """And nothing else is."""
    assert sorted(path for path, _ in methods()) == sorted(TABLE)


async def test_each_role_may_call_what_the_table_says(ports: Ports) -> None:
    """On both ports, all cells; the matrix is printed (-s)."""
    at_once = asyncio.Semaphore(CALLS_AT_ONCE)
    cells: dict[tuple[str, str, Role], str] = {}

    async def ask(port: str, channel: grpc.aio.Channel, path: str, role: Role) -> None:
        async with at_once:
            within_s = ANSWER_S if role in TABLE[path] else REFUSAL_S
            cells[port, path, role] = await answer(channel, path, within_s=within_s)

    for port, address in ports.addresses.items():
        for role, name in NAMES.items():
            async with open_channel(address, Credentials(ports.certs, name)) as channel:
                await asyncio.gather(*(ask(port, channel, path, role) for path in TABLE))
    print(f"\n{'node / router':<58}", *(f"{role:<8}" for role in Role))
    for path in TABLE:
        rows = [[_cell(cells[port, path, role]) for role in Role] for port in ports.addresses]
        print(f"{path[1:]:<58}", *(f"{'/'.join(both):<8}" for both in zip(*rows, strict=True)))
    for (port, path, role), told in cells.items():
        if port == "router" and ".internal." in path:
            assert told.startswith("UNIMPLEMENTED"), path  # it serves none of these
            continue
        refused = told.startswith("PERMISSION_DENIED") and NOT_FOR_ROLE in told
        assert refused is (role not in TABLE[path]), (port, path, role, told)


def _cell(told: str) -> str:
    if told.startswith("UNIMPLEMENTED"):
        return "-"
    return "no" if NOT_FOR_ROLE in told else "yes"


async def test_only_a_router_speaks_for_another(ports: Ports) -> None:
    """And what it speaks for must be allowed as well; nobody gains by saying who they are."""
    operator = (PRINCIPAL_KEY, "operator/admin")
    for role, name in NAMES.items():
        async with open_channel(ports.addresses["node"], Credentials(ports.certs, name)) as channel:
            told = await answer(channel, SETTINGS, operator, within_s=REFUSAL_S)
            assert ("for a router to set" not in told) is (role is Role.ROUTER), (role, told)
            if role is Role.ROUTER:
                assert "PERMISSION_DENIED" not in told
                for other in ("service/client", "nobody/x", ""):
                    told = await answer(
                        channel, SETTINGS, (PRINCIPAL_KEY, other), within_s=REFUSAL_S
                    )
                    assert told.startswith("PERMISSION_DENIED"), other


async def test_no_other_certificate_gets_in(ports: Ports, tmp_path: Path) -> None:
    """None, an expired one, one of another authority, one without a role: on every port."""
    foreign = tmp_path / "foreign"
    certs.ensure(foreign, certs.names_of([1]))
    (foreign / "ca.pem").write_bytes((ports.certs / "ca.pem").read_bytes())
    past = dt.timedelta(days=-1)
    expired = certs.issue(ports.certs, "expired", Role.SERVICE, lasts=past, into=tmp_path)
    (expired / "ca.pem").write_bytes((ports.certs / "ca.pem").read_bytes())
    authority = grpc.ssl_channel_credentials((ports.certs / "ca.pem").read_bytes())
    override = (("grpc.ssl_target_name_override", "mailraft"),)
    for port, address in ports.addresses.items():
        channels = {
            "none": grpc.aio.secure_channel(address, authority, override),
            "foreign": open_channel(address, Credentials(foreign, "client")),
            "expired": open_channel(address, Credentials(expired, "expired")),
            "plain": grpc.aio.insecure_channel(address),
        }
        for kind, channel in channels.items():
            async with channel:
                told = await answer(channel, MAP)
                assert told.split()[0] in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, (port, kind, told)


async def test_a_failed_handshake_leaves_a_line(
    ports: Ports, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of gRPC's own, on standard error, with the reason: nothing of ours sees it."""
    authority = grpc.ssl_channel_credentials((ports.certs / "ca.pem").read_bytes())
    override = (("grpc.ssl_target_name_override", "mailraft"),)
    for address in ports.addresses.values():
        async with grpc.aio.secure_channel(address, authority, override) as channel:
            await answer(channel, MAP)
        told = capfd.readouterr().err
        assert "Handshake failed" in told
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in told


async def test_a_certificate_is_of_one_role_of_ours(ports: Ports, tmp_path: Path) -> None:
    """Signed by the authority, and yet: no OU, one that is no role, two, one within the name."""
    unit, name = NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME
    for subject in (
        [(name, "x")],
        [(unit, "guest"), (name, "x")],
        [(unit, "Operator"), (name, "x")],
        [(unit, "service"), (unit, "operator"), (name, "x")],
        [(unit, "operator")],
        [(name, "x,OU=operator")],
        [(name, "x\\"), (name, ",OU=operator")],
    ):
        shown = signed(ports.certs, tmp_path, subject)
        for port, address in ports.addresses.items():
            async with open_channel(address, shown) as channel:
                told = await answer(channel, MAP, within_s=REFUSAL_S)
            assert told.startswith("UNAUTHENTICATED"), (port, subject, told)
            assert "names no role" in told
    shown = signed(ports.certs, tmp_path, [(unit, "service"), (name, "x,OU=operator")])
    async with open_channel(ports.addresses["node"], shown) as channel:
        told = await answer(channel, SETTINGS, within_s=REFUSAL_S)
    assert NOT_FOR_ROLE + " service" in told


def signed(authority: Path, folder: Path, subject: list[tuple[x509.ObjectIdentifier, str]]) -> Any:
    """Credentials with a certificate of any subject that the authority signed."""
    ca = x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes())
    signer: Any = load_pem_private_key((authority / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(kind, value) for kind, value in subject]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "strange.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "strange.key").write_bytes(key.private_bytes(*form))
    (folder / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    return Credentials(folder, "strange")


async def test_refusals_and_actions_are_audited(ports: Ports) -> None:
    """With who, what and why; and no word of what was asked."""
    request = account_pb2.GetAccountRequest(account_id="somebody@example.org").SerializeToString()
    for name, path, body in (
        ("auditor", "/mailraft.v1.AccountService/GetAccount", request),
        ("admin", "/mailraft.v1.AdminService/MoveShard", b""),
    ):
        async with open_channel(ports.addresses["node"], Credentials(ports.certs, name)) as channel:
            untyped: Any = channel
            with pytest.raises(grpc.aio.AioRpcError):
                await untyped.unary_unary(path)(body, timeout=REFUSAL_S)
    refused, allowed = ports.audited("node")[-2:]
    assert (refused["outcome"], refused["caller"]) == ("refused", "auditor/auditor")
    assert refused["method"] == "mailraft.v1.AccountService/GetAccount"
    assert NOT_FOR_ROLE in refused["reason"]
    assert (allowed["outcome"], allowed["caller"]) == ("allowed", "operator/admin")
    assert "somebody" not in (ports.folder / "node.audit.jsonl").read_text()


async def test_certificates_of_the_last_release_keep_their_roles() -> None:
    """It called them client and admin."""
    assert role_of("client") is Role.SERVICE
    assert role_of("admin") is Role.OPERATOR
    assert role_of("root") is None
    assert str(Principal(Role.SERVICE, "imap")) == "service/imap"
    assert issubclass(errors.MethodNotAllowedError, errors.PermissionDeniedError)
