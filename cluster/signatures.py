"""Whether certificates are those that their authority signed: a bit that changed shows there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from mailraft.cluster.errors import CertificateError


def check_chain(authority: Path, identity: Path) -> None:
    """Every certificate of `identity` is signed by the next one in its file, the last one by one in
    `authority`, and each authority that says that it signed itself did. Raises CertificateError.
    """
    authorities, chain = _load(authority), _load(identity)
    for each in authorities:
        if _is_root(each) and not _signed(each, [each]):
            raise CertificateError(f"{authority} is damaged: it did not sign itself", _HINT)
    for at, each in enumerate(chain):
        if not _signed(each, [*chain[at + 1 :], *authorities]):
            raise CertificateError(
                f"{identity} was not signed by {authority}: one of them is damaged, or of another "
                "cluster",
                _HINT,
            )


_HINT = "put back what mailraft certs init made, or make it again"


def _load(path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateError(f"{path} is no certificate: {error}", _HINT) from error


def _is_root(certificate: x509.Certificate) -> bool:
    try:
        return certificate.issuer == certificate.subject
    except ValueError:  # neither can be read: then it signed nothing either
        return True


def _signed(certificate: x509.Certificate, issuers: Sequence[x509.Certificate]) -> bool:
    for issuer in issuers:
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            continue
        return True
    return False
