"""Certificates for the inner ports of the S3 server: a client without one of them is not let in.

The server is one process, so that server and client are the same; the authority's key is thrown away.
"""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.services.private import write_private

_LIFETIME = datetime.timedelta(days=36_500)
_CA, _CERTIFICATE, _KEY = "ca.pem", "certificate.pem", "key.pem"
_PARTS = ("MASTER", "VOLUME", "FILER", "S3", "CLIENT")
"""Parts of SeaweedFS; as a client it presents the same certificate."""


def tls_environment(folder: Path) -> dict[str, str]:
    """Return the variables by which SeaweedFS finds the certificates in ``folder``."""
    paths = {f"WEED_GRPC_{part}_CERT": str(folder / _CERTIFICATE) for part in _PARTS}
    paths |= {f"WEED_GRPC_{part}_KEY": str(folder / _KEY) for part in _PARTS}
    return {"WEED_GRPC_CA": str(folder / _CA), **paths}


def create_certificates(folder: Path) -> None:
    """Make the certificates, unless they are there; only their owner may read them."""
    if (folder / _CERTIFICATE).is_file():  # written last
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = _name("gleaner object store authority")
    authority = _builder(authority_name, authority_name, authority_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    certificate = (
        _builder(_name("gleaner object store"), authority_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_private(folder / _CA, authority.sign(authority_key, hashes.SHA256()).public_bytes(pem).decode())
    write_private(folder / _KEY, key.private_bytes(pem, private, serialization.NoEncryption()).decode())
    signed = certificate.sign(authority_key, hashes.SHA256())
    write_private(folder / _CERTIFICATE, signed.public_bytes(pem).decode())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a clock may be set back
        .not_valid_after(now + _LIFETIME)
    )
