import base64
import datetime as dt
import socket
import ssl
import stat
import threading
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailraft.cluster import certs
from mailraft.cluster.errors import CertificateError
from mailraft.wire.access import Role

NAMES = certs.names_of([1])


def _loaded(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())


def test_a_cluster_gets_an_authority_and_its_certificates(tmp_path: Path) -> None:
    """Each certificate is signed by the authority, names its role, and is valid for localhost."""
    made = certs.ensure(tmp_path, NAMES, hosts=["mail.example.org"])
    assert made == ["ca", "node-1", "router", "client", "admin", "auditor"]
    authority = _loaded(tmp_path, "ca")
    for name, role in NAMES:
        certificate = _loaded(tmp_path, name)
        certificate.verify_directly_issued_by(authority)
        (unit,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert (unit.value, common.value) == (role.value, name)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert (ExtendedKeyUsageOID.SERVER_AUTH in uses) is (role in (Role.NODE, Role.ROUTER))
    (info,) = (each for each in certs.inspect(tmp_path) if each.name == "node-1")
    assert set(info.hosts) >= {"localhost", "127.0.0.1", "::1", "mailraft", "mail.example.org"}


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    """Nobody else can read a private key or list the folder."""
    folder = tmp_path / "certs"
    certs.ensure(folder, NAMES)
    keys = list(folder.glob("*.key"))
    assert len(keys) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_making_again_changes_nothing(tmp_path: Path) -> None:
    """What is there stays, so that a running cluster keeps its identity."""
    certs.ensure(tmp_path, NAMES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert certs.ensure(tmp_path, NAMES) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_does_not_fit_is_made_again(tmp_path: Path) -> None:
    """A lost key, another role, a missing host or another authority: a new certificate."""
    certs.ensure(tmp_path, NAMES)
    (tmp_path / "client.key").unlink()
    assert certs.ensure(tmp_path, NAMES) == ["client"]
    assert certs.ensure(tmp_path, [("client", Role.OPERATOR)]) == ["client"]
    assert certs.ensure(tmp_path, [("router", Role.ROUTER)], hosts=["h"]) == ["router"]
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).unlink()
    assert certs.ensure(tmp_path, [("admin", Role.OPERATOR)]) == ["ca", "admin"]


def test_a_certificate_near_its_end_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a folder that is used every day never runs out."""
    monkeypatch.setattr(certs, "CERTIFICATE_DAYS", certs.RENEW_DAYS - 1)
    certs.ensure(tmp_path, NAMES)
    monkeypatch.undo()
    assert "admin" in certs.ensure(tmp_path, NAMES)
    (admin,) = (each for each in certs.inspect(tmp_path) if each.name == "admin")
    assert admin.days_left(dt.datetime.now(dt.UTC)) >= certs.CERTIFICATE_DAYS - 1


def test_an_authority_without_its_key_makes_nothing(tmp_path: Path) -> None:
    """A new authority in its place would lock out everybody who trusts the old one."""
    certs.ensure(tmp_path, NAMES)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.key is not"):
        certs.ensure(tmp_path, NAMES)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """The message says which file to remove."""
    certs.ensure(tmp_path, NAMES)
    (tmp_path / "client.pem").write_text("no certificate")
    with pytest.raises(CertificateError, match=r"client\.pem is no certificate"):
        certs.ensure(tmp_path, NAMES)
    with pytest.raises(CertificateError, match=r"client\.pem is no certificate"):
        certs.inspect(tmp_path)


def test_no_certificates(tmp_path: Path) -> None:
    """An empty folder says what to do."""
    with pytest.raises(CertificateError) as caught:
        certs.inspect(tmp_path)
    assert "mailraft certs init" in caught.value.hint


def test_they_work_for_mutual_tls(tmp_path: Path) -> None:
    """A client with a certificate of ours gets through, one without does not."""
    certs.ensure(tmp_path, NAMES)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "node-1.pem", tmp_path / "node-1.key")
    server.load_verify_locations(tmp_path / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED

    def exchange(client: ssl.SSLContext) -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(10)
            theirs.settimeout(10)

            def serve() -> None:
                try:
                    with server.wrap_socket(theirs, server_side=True) as secured:
                        secured.sendall(b"hello")
                except ssl.SSLError:
                    pass

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                with client.wrap_socket(ours, server_hostname="mailraft") as secured:
                    return secured.recv(5)
            finally:
                thread.join()

    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with pytest.raises(ssl.SSLError):
        exchange(client)
    client.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    assert exchange(client) == b"hello"


@pytest.mark.parametrize("file", ["ca.pem", "node-1.pem", "node-1.key"])
def test_a_flipped_bit_is_seen_before_it_is_presented(tmp_path: Path, file: str) -> None:
    """What is signed, and what signs it: a process does not start with it, and says which file it
    is. A few bits mean nothing: of the text, and by whom an authority says that it was signed.
    """
    certs.ensure(tmp_path, NAMES)
    path, seed = tmp_path / file, 7
    data = path.read_bytes()
    for at in Random(seed).sample(range(len(data) * 8), 150):
        byte, bit = divmod(at, 8)
        changed = data[:byte] + bytes((data[byte] ^ 1 << bit,)) + data[byte + 1 :]
        path.write_bytes(changed)
        try:
            certs.check(tmp_path, "node-1")
        except CertificateError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017  # not each of them raises
        else:
            told = _authority if file == "ca.pem" else _meaning
            assert told(changed) == told(data), f"byte {byte}, bit {bit}"


def _authority(pem: bytes) -> tuple[x509.Name, object]:
    """What others are checked against."""
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.subject, certificate.public_key()


def _meaning(pem: bytes) -> bytes:
    """What the lines of a PEM file stand for."""
    lines = pem.replace(b"\r", b"\n").splitlines()
    body = b"".join(line for line in lines if not line.startswith(b"-----"))
    return base64.b64decode(body)
