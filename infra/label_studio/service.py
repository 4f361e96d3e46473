"""Label Studio as a service on loopback: user, token and local files are set up, telemetry is off."""

import os
from functools import partial
from pathlib import Path

from infra.label_studio.admin_user import AdminUser
from infra.services.http import require_http_ok
from infra.services.ports import LOOPBACK
from infra.services.service import Service

_INHERITED_ENV_PREFIXES = ("AWS_", "POSTGRE_", "DJANGO_DB")
"""Object store and database are chosen by whoever starts it; credentials of images stay in its environment."""


def label_studio(program: Path, data: Path, files: Path, port: int, admin: AdminUser) -> Service:
    """Describe a server; it is ready when its database is migrated and answers.

    Args:
        program: ``label-studio`` of its own environment.
        data: database, uploads and secret key; ``label_studio.sqlite3`` unless POSTGRE_* variables name a server.
        files: what lies below it can be shown to annotators, in folders that a project names.
        port: on 127.0.0.1; it has to be free, since Label Studio takes the next free one without a word.
        admin: the first user. Only the very first start with ``data`` makes it.
    """
    url = f"http://{LOOPBACK}:{port}"
    inherited = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED_ENV_PREFIXES)}
    return Service(
        name="label-studio",
        folder=data,
        ports=(port,),
        url=url,
        command=(str(program), "start", "--no-browser", "--internal-host", LOOPBACK, "--port", str(port)),
        check_ready=partial(require_http_ok, f"{url}/health"),
        env=inherited
        | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(data),
            "LABEL_STUDIO_HOST": url,
            "LABEL_STUDIO_USERNAME": admin.email,
            "LABEL_STUDIO_PASSWORD": admin.password,
            "LABEL_STUDIO_USER_TOKEN": admin.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files),
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        },
        prepare=partial(data.mkdir, parents=True, exist_ok=True),
        start_timeout_s=600,  # a first start migrates the database: 40 s on two free cores, 110 s on two busy ones
    )
