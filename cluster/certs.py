"""A private authority and the certificates of a cluster: EC P-256, one file pair a name.

    CERTS/ca.pem, ca.key       the authority (keep ca.key off the hosts that do not need it)
    CERTS/NAME.pem, NAME.key   one identity; OU is its role, which is what servers go by

Making is idempotent: what is there, matches its key and is not about to expire is kept.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailraft.cluster.errors import CertificateError
from mailraft.cluster.signatures import check_chain
from mailraft.wire.access import Role, role_of
from mailraft.wire.accounts import PATTERNS_MAX, of_uris, uri_of

CA_NAME = "ca"
_NEXT = "ca-next"  # an authority that is trusted and signs nothing yet
_ASIDE = ".old"  # a certificate whose successor is being written
# A file name, and what a router puts into the metadata of a call.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
CA_DAYS = 3_650
CERTIFICATE_DAYS = 397
# Certificates closer to their end than this are made again.
RENEW_DAYS = 30
# Clocks of hosts differ a little.
BACKDATE = dt.timedelta(hours=1)

# File name and role of those that a cluster needs besides its nodes'.
_OTHERS = {
    "router": Role.ROUTER,
    "client": Role.SERVICE,
    "admin": Role.OPERATOR,
    "auditor": Role.AUDITOR,
}
# What every certificate is valid for, so that a cluster on one machine needs no settings.
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1", "mailraft")


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate as it is on disk."""

    name: str
    role: str
    hosts: tuple[str, ...]
    accounts: tuple[str, ...]  # patterns that it is limited to; none: all accounts
    not_after: dt.datetime
    sha256: str

    def days_left(self, now: dt.datetime) -> int:
        return (self.not_after - now).days


@dataclass(frozen=True, slots=True)
class _Identity:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def names_of(nodes: Iterable[int]) -> list[tuple[str, Role]]:
    """What a cluster of these nodes needs: one for each node, and one for each other role."""
    return [*((f"node-{node}", Role.NODE) for node in nodes), *_OTHERS.items()]


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
            issue(folder, name, role, hosts=hosts)
            made.append(name)
    return made


def issue(
    folder: Path,
    name: str,
    role: Role,
    *,
    hosts: Sequence[str] = (),
    accounts: Sequence[str] = (),
    lasts: dt.timedelta | None = None,
    into: Path | None = None,
) -> Path:
    """Make one certificate, also if there is one by that name; returns the folder that it is in.

    accounts: patterns that a service is limited to (mailraft.wire.accounts); none: all accounts.
    lasts: from now on; default: CERTIFICATE_DAYS. into: another folder than the authority's.

    Raises:
        CertificateError: the authority is not there, or damaged; or the name is none to give, or
            the accounts.
    """
    if accounts and role is not Role.SERVICE:
        raise CertificateError(
            f"a certificate of the role {role} is not limited to accounts", "leave --accounts out"
        )
    if len(accounts) > PATTERNS_MAX:
        raise CertificateError(f"more than {PATTERNS_MAX} patterns", "join some of them")
    try:
        uris = [uri_of(pattern) for pattern in dict.fromkeys(accounts)]
    except ValueError as error:
        raise CertificateError(str(error), "for example: --accounts 'team-*'") from None
    if not _NAME.fullmatch(name) or name in (CA_NAME, _NEXT):
        raise CertificateError(
            f"{name!r} cannot be the name of a certificate",
            f"take letters, digits and ._@-, and neither {CA_NAME} nor {_NEXT}",
        )
    authority = _authority(folder)
    lasts = dt.timedelta(days=CERTIFICATE_DAYS) if lasts is None else lasts
    alternatives = [
        *(_alternative(host) for host in dict.fromkeys([*DEFAULT_HOSTS, *hosts])),
        *(x509.UniformResourceIdentifier(uri) for uri in uris),
    ]
    made = _make(name, role, alternatives, authority, lasts)
    _write(into or folder, name, made)
    return into or folder


def rotate(folder: Path, *, dry_run: bool = False) -> list[str]:
    """Make every certificate in a folder again, with new keys, for the same roles, hosts and
    accounts.

    Raises:
        CertificateError: the authority is not there, or a file is damaged.
    """
    _authority(folder)
    if not dry_run:
        _put_back(folder)
    made = []
    for info in inspect(folder):
        role = role_of(info.role)
        if role is None:
            continue
        if not dry_run:
            issue(folder, info.name, role, hosts=info.hosts, accounts=info.accounts)
        made.append(info.name)
    return made


class Step(enum.StrEnum):
    """How one authority follows another, while everybody stays connected."""

    TRUST = "trust"  # a new one is made, and trusted beside the old
    SIGN = "sign"  # it signs every certificate; the old is still trusted
    FORGET = "forget"  # the old is trusted no more


def roll(folder: Path, step: Step, *, dry_run: bool = False) -> list[str]:
    """Take a step to a new authority; returns what was made, or would be.

    Every process must have the files of one step before the next is taken. A step that was cut
    off (a crash, a full disk) is taken again, and goes on; at no moment is a certificate there that
    ca.pem does not trust.

    Raises:
        CertificateError: the step does not follow the one before, or a file is damaged.
    """
    path = folder / f"{CA_NAME}.pem"
    following, trusted = _read(folder, _NEXT), _trusted(folder)
    known = following is not None and following.certificate in trusted
    if step is Step.SIGN:
        if following is None or not known:
            raise CertificateError(f"no {_NEXT}.pem in {folder}", "begin: --authority trust")
        return rotate(folder, dry_run=True) if dry_run else _sign_by(following, trusted, folder)
    old = _authority(folder)
    if step is Step.TRUST:
        if known:
            raise CertificateError(f"{folder} has {_NEXT}.pem already", "go on: --authority sign")
        if not dry_run:
            following = following or _make_authority()
            _write(folder, _NEXT, following)
            _replace(path, _pem(old.certificate) + _pem(following.certificate), 0o644)
        return [_NEXT]
    if following is not None:
        raise CertificateError("the new authority signs nothing yet", "first: --authority sign")
    if path.read_bytes() == _pem(old.certificate):
        raise CertificateError(f"{path} trusts one authority only", "begin: --authority trust")
    others = [each.name for each in inspect(folder)[1:] if not _signed(folder, each.name, old)]
    if others:
        raise CertificateError(
            f"the old authority signed {', '.join(others)}", "first: mailraft certs rotate"
        )
    if not dry_run:
        _replace(path, _pem(old.certificate), 0o644)
    return [CA_NAME]


def _sign_by(following: _Identity, trusted: Sequence[x509.Certificate], folder: Path) -> list[str]:
    """ca-next.pem is there until all is done: by that the step is known to be unfinished."""
    others = [each for each in trusted if each != following.certificate]
    pems = b"".join(map(_pem, [following.certificate, *others]))
    _replace(folder / f"{CA_NAME}.pem", pems, 0o644)
    _replace(folder / f"{CA_NAME}.key", _key_pem(following), 0o600)
    made = rotate(folder)
    (folder / f"{_NEXT}.pem").unlink()
    (folder / f"{_NEXT}.key").unlink()
    return made


def check(folder: Path, name: str) -> None:
    """Raise CertificateError unless the authority and the identity `name` can be presented, and
    no bit of them has changed since they were signed.

    Whoever made them: gRPC says of files that it cannot use no more than that it cannot listen.
    """
    certificate_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    check_chain(folder / f"{CA_NAME}.pem", certificate_path)
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
        accounts=of_uris(_uris(certificate)).patterns,
        not_after=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    names = _alternatives(certificate)
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def _uris(certificate: x509.Certificate) -> list[str]:
    return _alternatives(certificate).get_values_for_type(x509.UniformResourceIdentifier)


def _usable(
    folder: Path, name: str, role: Role, hosts: Sequence[str], authority: _Identity
) -> bool:
    """True if a certificate can stay as it is: ours, whole, for this role and these hosts."""
    if _read(folder, name) is None or not _signed(folder, name, authority):
        return False
    info = _info(folder / f"{name}.pem")
    lasts = info.days_left(dt.datetime.now(dt.UTC)) >= RENEW_DAYS
    return lasts and role_of(info.role) is role and set(hosts) <= set(info.hosts)


def _signed(folder: Path, name: str, authority: _Identity) -> bool:
    try:
        certificate = _load_certificate(folder / f"{name}.pem")
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _trusted(folder: Path) -> list[x509.Certificate]:
    path = folder / f"{CA_NAME}.pem"
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} holds no certificates: {error}", "put it back") from error


def _authority(folder: Path) -> _Identity:
    following = _read(folder, _NEXT)
    if following is not None and following.certificate == _trusted(folder)[0]:
        key = _load_key(folder / f"{CA_NAME}.key")
        if key.public_key() != following.key.public_key():
            raise CertificateError(
                f"the step to a new authority in {folder} was cut off",
                "take it again: mailraft certs rotate --authority sign",
            )
    authority = _read(folder, CA_NAME)
    if authority is None:
        raise CertificateError(f"no ca.pem and ca.key in {folder}", "put ca.key back")
    return authority


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
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
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
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE + min(lasts, dt.timedelta()))
        .not_valid_after(now + lasts)
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
        _builder(name, name, key, dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _make(
    name: str,
    role: Role,
    alternatives: Sequence[x509.GeneralName],
    authority: _Identity,
    lasts: dt.timedelta,
) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    # A node and a router are clients too, of other nodes.
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role.serves:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer = authority.certificate
    certificate = (
        _builder(_name(name, role), issuer.subject, key, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
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
    path, aside = folder / f"{name}.pem", folder / f"{name}.pem{_ASIDE}"
    if path.exists():
        path.replace(aside)
    _replace(folder / f"{name}.key", _key_pem(identity), 0o600)
    _replace(path, _pem(identity.certificate), 0o644)
    aside.unlink(missing_ok=True)


def _put_back(folder: Path) -> None:
    """Certificates that were being replaced when somebody stopped us."""
    for aside in folder.glob(f"*.pem{_ASIDE}"):
        path = aside.with_suffix("")
        if path.exists():
            aside.unlink()
        else:
            aside.replace(path)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(identity: _Identity) -> bytes:
    return identity.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _replace(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    fresh.replace(path)
