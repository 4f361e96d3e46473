"""Whatever goes wrong between us and Label Studio, told as one ProviderError that names it. Never with the token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from label_studio_sdk.core import ApiError, ParsingError

from flows.annotation.providers.base import ProviderError

TOKEN = "LABEL_STUDIO_API_KEY"
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_DETAIL_LENGTH = 200
_REDACTED = "***"


@contextmanager
def translate_errors(url: str, action: str, token: str) -> Iterator[None]:
    """Run calls to Label Studio.

    Args:
        url: of the server.
        doing: what is asked of it, as in ``listing its projects``.
        token: is cut out of what the server says.

    Raises:
        ProviderError: the call did not succeed; ``transient`` where waiting may help.
    """
    where = f"Label Studio at {url}"
    try:
        yield
    except ApiError as error:
        raise _http_error(where, action, error.status_code, _detail(error.body).replace(token, _REDACTED)) from None
    except httpx.HTTPStatusError as error:
        raise _http_error(where, action, error.response.status_code, "") from None
    except httpx.TimeoutException:
        problem = f"there is no answer in time on {action}, expected one"
        raise ProviderError(where, problem, "Look whether the server is overloaded.", transient=True) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        problem = f"the address does not work on {action} ({_redact(error, token)}), expected that of a Label Studio"
        raise ProviderError(where, problem, "Mend provider.url in params.yaml.") from None
    except httpx.HTTPError as error:
        problem = f"the connection fails on {action} ({_redact(error, token)}), expected a server that answers"
        fix = "Start it, or mend provider.url in params.yaml. Nothing is lost: the next night asks again."
        raise ProviderError(where, problem, fix, transient=True) from None
    except (ParsingError, AttributeError, LookupError, TypeError, ValueError):  # the SDK builds its models unchecked
        raise invalid_response(url, action) from None


def invalid_response(url: str, action: str) -> ProviderError:
    """Something answers, but not as Label Studio does."""
    fix = "Open the address in a browser: is it Label Studio, and of version 1.23?"
    return ProviderError(f"Label Studio at {url}", f"the answer on {action} makes no sense, expected its own", fix)


def _http_error(where: str, action: str, status: int | None, detail: str) -> ProviderError:
    summary = f"status {status}" + (f", {detail}" if detail else "")
    if status == UNAUTHORIZED:
        fix = f"Put a valid access token into the environment variable {TOKEN} (Account & Settings in Label Studio)."
        return ProviderError(where, f"the token is refused on {action} ({summary}), expected a valid one", fix)
    if status == FORBIDDEN:
        fix = f"Let the user of the token in {TOKEN} manage projects."
        return ProviderError(where, f"the user is refused on {action} ({summary}), expected them to be allowed to", fix)
    if status == NOT_FOUND:
        fix = "Somebody may have deleted it just now; the next night looks again."
        return ProviderError(where, f"something is gone on {action} ({summary}), expected to find it", fix)
    if status is not None and 200 <= status < 300:
        fix = "Open the address in a browser: is it Label Studio, and of version 1.23?"
        return ProviderError(where, f"the answer on {action} is no JSON, expected its own", fix)
    transient = status in _TRANSIENT_STATUS
    fix = (
        "Look into the server's log." if transient else "Gleaner is made for Label Studio 1.23; is it another version?"
    )
    return ProviderError(
        where, f"the answer on {action} is an error ({summary}), expected none", fix, transient=transient
    )


def _detail(body: Any) -> str:
    """The server's own words, where it has some for people."""
    if not isinstance(body, dict):
        return ""
    message = body.get("validation_errors") or body.get("detail") or ""
    return " ".join(str(message).split())[:_MAX_DETAIL_LENGTH]


def _redact(error: Exception, token: str) -> str:
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return first_line.replace(token, _REDACTED)[:_MAX_DETAIL_LENGTH]
