"""TLS towards clients."""

import ssl

from pdctl.errors import PdctlError


def server_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    """A context for a server of HTTP/1.1; None without files. PdctlError says what is wrong with them."""
    if certificate is None or private_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    for flag, path in (("--ssl-certfile", certificate), ("--ssl-keyfile", private_key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise PdctlError(f"{flag}: cannot read {path}: {error.strerror}") from None
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(certificate, private_key, password)
    except (OSError, ssl.SSLError) as error:
        if asked:
            raise PdctlError(f"--ssl-keyfile: {private_key} is encrypted: give a key without a passphrase") from None
        reason = getattr(error, "reason", None) or error
        raise PdctlError(
            f"--ssl-certfile, --ssl-keyfile: {certificate} and {private_key} are no certificate and its key in PEM "
            f"({reason})"
        ) from None
    return context
