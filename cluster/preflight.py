"""What a start would trip over, found without starting: files, certificates, folders, addresses.

Nothing is written, no port is taken, and a process that runs on these settings is not disturbed.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from mailraft.cluster import compose, mapfile, maps
from mailraft.cluster.addresses import split_address
from mailraft.cluster.errors import ClusterError, SettingsError
from mailraft.cluster.settings import ENV_PREFIX, NodeSettings, ProcessSettings, environment
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import TARGET_NAME, Credentials

# In the environment of who uses the command line.
OF_COMMANDS = {"server", "certs"}


def check(settings: ProcessSettings) -> None:
    """Raise SettingsError with the first setting that a start would fail for, or be useless with.

    The settings themselves are checked by `settings.load`. Not seen: a port that is taken, a data
    folder that another process has open or that belongs to another node.
    """
    node = settings.node if isinstance(settings, NodeSettings) else None
    _newest_map(settings)
    identity = f"node-{node}" if node is not None else "router"
    with _blamed("certs_folder"):
        credentials = compose.credentials_of(settings, identity)
        if isinstance(credentials, Credentials):
            _check_certificate(credentials, identity if node is not None else None)
    if isinstance(settings, NodeSettings):
        _check_writable("data_dir", settings.data_dir)
    if settings.log_key_file is not None:
        compose.log_key(settings.log_key_file)
    if settings.audit_file is not None:
        _check_writable("audit_file", settings.audit_file.parent)
    _check_addresses(settings)


def doubts(settings: ProcessSettings) -> list[str]:
    """What a start does not mind, and an operator may not have meant."""
    found = [
        f"{ENV_PREFIX}{name.upper()} in the environment is no setting of this process: ignored"
        for name in sorted(environment() - type(settings).model_fields.keys() - OF_COMMANDS)
    ]
    if isinstance(settings, NodeSettings):
        _, port = split_address(settings.listen_address)
        nodes = _newest_map(settings).nodes
        (told,) = (each.address for each in nodes if each.id == settings.node)
        if split_address(told)[1] != port:
            found.append(f"listen_address has port {port}, and others call this node at {told}")
    return found


def _newest_map(settings: ProcessSettings) -> cluster_pb2.ClusterMap:
    """The map that a start would go by: for a node its own copy, once it has one."""
    with _blamed("map_file"):
        first = mapfile.load(settings.map_file)
    if not isinstance(settings, NodeSettings):
        return first
    known = (settings.data_dir / maps.FILE_NAME).exists()
    with _blamed("data_dir" if known else "node"):
        return maps.ClusterMaps.open(settings.map_file, settings.node, settings.data_dir).current()


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Failures inside are told as those of the setting `name`, which led to them."""
    try:
        yield
    except ClusterError as error:
        message = error.message.removeprefix(f"bad setting {name}: ")
        raise SettingsError(f"bad setting {name}: {message}", error.hint) from error
    except OSError as error:
        what = f"cannot read {error.filename}: {error.strerror}"
        raise SettingsError(f"bad setting {name}: {what}") from error


def _check_certificate(credentials: Credentials, common_name: str | None) -> None:
    """It is valid today, was signed by ca.pem, and names what peers and clients look for.

    common_name: what peers ask for (node.identity); None: whatever it is.
    """
    folder = Path(credentials.folder)
    path, authority_path = folder / f"{credentials.name}.pem", folder / "ca.pem"
    # Behind the certificate its intermediate ones may follow, and ca.pem may hold several.
    chain, authorities = (
        x509.load_pem_x509_certificates(each.read_bytes()) for each in (path, authority_path)
    )
    for each in chain:
        _check_days(each, path)
    links = [*((issued, [issuer]) for issued, issuer in pairwise(chain)), (chain[-1], authorities)]
    for issued, issuers in links:
        signers = [each for each in issuers if _is_signed(issued, each)]
        if not signers:
            raise SettingsError(f"{path} was not signed by {authority_path}")
        _check_days(signers[0], authority_path)
    certificate = chain[0]
    names = [str(each.value) for each in certificate.subject if each.oid == NameOID.COMMON_NAME]
    if common_name is not None and names != [common_name]:
        whose = ", ".join(names) or "nobody"
        raise SettingsError(f"{path} is the certificate of {whose}, and peers expect {common_name}")
    if TARGET_NAME not in _dns_names(certificate):
        raise SettingsError(f"{path} does not name {TARGET_NAME!r}, which callers look for")


def _check_days(certificate: x509.Certificate, path: Path) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= dt.datetime.now(dt.UTC) <= last:
        raise SettingsError(f"{path} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}, not now")


def _is_signed(issued: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _check_writable(name: str, folder: Path) -> None:
    """What is there of the path is a folder in which the rest can be made."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise SettingsError(f"bad setting {name}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"bad setting {name}: {there} is not writable for this user")


def _check_addresses(settings: ProcessSettings) -> None:
    """They are this machine's, and not one and the same."""
    addresses = {"listen_address": settings.listen_address}
    if settings.metrics_address is not None:
        if settings.metrics_address == settings.listen_address:
            raise SettingsError("bad setting metrics_address: the same as listen_address")
        addresses["metrics_address"] = settings.metrics_address
    for name, address in addresses.items():
        host, _ = split_address(address)
        try:
            family, kind, protocol, _, found = socket.getaddrinfo(
                host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            # Any free port: the one that is set may be in use by the very process that is meant.
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(found)
        except OSError as error:
            why = f"{host} is no address of this machine: {error.strerror}"
            raise SettingsError(f"bad setting {name}: {why}") from error
