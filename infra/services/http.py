"""Whether an HTTP server answers."""

import sys
import urllib.error
import urllib.request

from infra.services.service import NotReady

_TIMEOUT_S = 5.0


def require_http_ok(url: str) -> None:
    """One GET that must succeed.

    Raises:
        NotReady: refused, too slow or an error status.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):
            return
    except (urllib.error.URLError, OSError) as error:
        raise NotReady(f"{url}: {error}") from None


if __name__ == "__main__":  # the health check of compose.yaml
    try:
        require_http_ok(sys.argv[1])
    except NotReady as not_ready:
        sys.exit(str(not_ready))
