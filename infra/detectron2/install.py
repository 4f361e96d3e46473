"""Installs Detectron2 into the environment this runs in: our wheel, or the site's own build.

- GLEANER_DETECTRON2=<path of a wheel, or a pip requirement>: install that.
- Another Detectron2 is installed already: check that it imports, and leave it alone.
- Otherwise: build the wheel and install it.

Run it from the root of the repository: ``python -m infra.detectron2.install``. Standard library only.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

from infra.detectron2.build_wheel import BuildError, build
from infra.detectron2.patches import VERSION


def install() -> str:
    """Install what the rules above say, check that it imports, and return one sentence for the user."""
    requirement = os.environ.get("GLEANER_DETECTRON2", "")
    installed = installed_version()
    if requirement:
        pip_install("--no-build-isolation", requirement)
        message = f"Detectron2 {installed_version()} is installed, from GLEANER_DETECTRON2={requirement}."
    elif installed not in (None, VERSION):
        message = f"Detectron2 {installed} was installed here before and is left alone."
    else:
        pip_install("--no-index", "--force-reinstall", str(build()))
        message = f"Detectron2 {VERSION} is installed."
    check_import()
    return message


def installed_version() -> str | None:
    """Return the version that is here: None for none at all, "unknown" where it has no metadata."""
    importlib.invalidate_caches()
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def pip_install(*arguments: str) -> None:
    """Install with pip, without what the package requires: requirements.lock has that."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *arguments], check=True)


def check_import() -> None:
    """Import what fails first where Detectron2 was built for another PyTorch."""
    command = [sys.executable, "-W", "ignore", "-c", "import detectron2.layers, detectron2.modeling"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = result.stderr.strip().rpartition("\n")[2]
        raise BuildError(
            f"Detectron2 {installed_version()} is installed but does not import ({last_line}), "
            "expected a build for this PyTorch. Install one, or uninstall it and run: make setup"
        )


if __name__ == "__main__":
    try:
        print(install())
    except BuildError as error:
        sys.exit(f"infra/detectron2: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"infra/detectron2: pip ended with {error.returncode}; its own words are above.")
