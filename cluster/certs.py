"""A private authority and the certificates of a cluster: EC P-256, one file pair a name.

    CERTS/ca.pem, ca.key       the authority (keep ca.key off the hosts that do not need it)
    CERTS/NAME.pem, NAME.key   one identity; OU is its role, which is what servers will go by

Making is idempotent: what is there, matches its key and is not about to expire is kept.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailraft.cluster.errors import CertificateError

CA_NAME = "ca"
CA_DAYS = 3_650
CERTIFICATE_DAYS = 397
# Certificates closer to their end than this are made again.
RENEW_DAYS = 30
# Clocks of hosts differ a little.
BACKDATE = dt.timedelta(hours=1)

# What every certificate is valid for, so that a cluster on one machine needs no settings.
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1", "mailraft")


class Role(enum.StrEnum):
    """Who presents a certificate: its OU."""

    NODE = "node"
    ROUTER = "router"
    CLIENT = "client"
    ADMIN = "admin"

    @property
    def serves(self) -> bool:
        """True if others connect to it."""
        return self in (Role.NODE, Role.ROUTER)


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate as it is on disk."""

    name: str
    role: str
    hosts: tuple[str, ...]
    not_after: dt.datetime
    sha256: str

    def days_left(self, now: dt.datetime) -> int:
        return (self.not_after - now).days


@dataclass(frozen=True, slots=True)
class _Identity:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def names_of(nodes: Iterable[int]) -> list[tuple[str, Role]]:
    """What a cluster of these nodes needs: one for each node, the router, clients and operators."""
    roles = (Role.ROUTER, Role.CLIENT, Role.ADMIN)
    return [
        *((f"node-{node}", Role.NODE) for node in nodes),
        *((role.value, role) for role in roles),
    ]


def ensure(
    folder: Path, names: Iterable[tuple[str, Role]], *, hosts: Sequence[str] = ()
) -> list[str]:
    """Make the authority and these certificates unless they are there; returns what was made.

    Args:
        folder: made if missing, readable by its owner only.
        names: (file name, role) of each; see names_of().
        hosts: more names and addresses that they are valid for.

    Raises:
        CertificateError: the authority's files are damaged or do not belong together.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[str] = []
    authority = _read(folder, CA_NAME)
    if authority is None:
        if (folder / f"{CA_NAME}.pem").exists():
            raise CertificateError(
                f"{folder}/ca.pem is there, and its ca.key is not: no certificate can be made",
                "put ca.key back, or use a folder of its own",
            )
        authority = _make_authority()
        _write(folder, CA_NAME, authority)
        made.append(CA_NAME)
    for name, role in names:
        if not _usable(folder, name, role, hosts, authority):
            _write(folder, name, _make(name, role, [*DEFAULT_HOSTS, *hosts], authority))
            made.append(name)
    return made


def check(folder: Path, name: str) -> None:
    """Raise CertificateError unless the authority and the identity `name` can be presented.

    Whoever made them: gRPC says of files that it cannot use no more than that it cannot listen.
    """
    _load_certificate(folder / f"{CA_NAME}.pem")
    certificate_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    certificate, key = _load_certificate(certificate_path), _load_key(key_path)
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{key_path} does not belong to {certificate_path}", "make both again, or put them back"
        )


def inspect(folder: Path) -> list[CertificateInfo]:
    """Every certificate in a folder, the authority first. Raises CertificateError."""
    found = sorted(folder.glob("*.pem"), key=lambda path: (path.stem != CA_NAME, path.stem))
    if not found:
        raise CertificateError(f"no certificates in {folder}", "make some: mailraft certs init")
    return [_info(path) for path in found]


def _info(path: Path) -> CertificateInfo:
    certificate = _load_certificate(path)
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return CertificateInfo(
        name=path.stem,
        role=str(units[0].value) if units else "authority",
        hosts=_hosts(certificate),
        not_after=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def _usable(
    folder: Path, name: str, role: Role, hosts: Sequence[str], authority: _Identity
) -> bool:
    """True if a certificate can stay as it is: ours, whole, for this role and these hosts."""
    identity = _read(folder, name)
    if identity is None:
        return False
    certificate = identity.certificate
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    info = _info(folder / f"{name}.pem")
    lasts = info.days_left(dt.datetime.now(dt.UTC)) >= RENEW_DAYS
    return lasts and info.role == role.value and set(hosts) <= set(info.hosts)


def _read(folder: Path, name: str) -> _Identity | None:
    """A certificate with its key; None if either file is missing or they are no pair."""
    certificate_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    if not certificate_path.exists() or not key_path.exists():
        return None
    certificate = _load_certificate(certificate_path)
    key = _load_key(key_path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{key_path} is no EC key", "remove it, or use another folder")
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{key_path} does not belong to {certificate_path}",
            "remove both, or use another folder",
        )
    return _Identity(certificate, key)


def _load_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} is no private key: {error}", "remove it") from error


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise CertificateError(f"{path} is no certificate: {error}", "remove it") from error


def _name(common_name: str, role: Role | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mailraft")]
    if role is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority() -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("mailraft authority", None)
    certificate = (
        _builder(name, name, key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _make(name: str, role: Role, hosts: Sequence[str], authority: _Identity) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    # A node and a router are clients too, of other nodes.
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role.serves:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer = authority.certificate
    certificate = (
        _builder(_name(name, role), issuer.subject, key, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, identity: _Identity) -> None:
    """The key before the certificate: whoever finds a certificate finds its key."""
    key = identity.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate = identity.certificate.public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").unlink(missing_ok=True)
    _replace(folder / f"{name}.key", key, 0o600)
    _replace(folder / f"{name}.pem", certificate, 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    fresh.replace(path)
