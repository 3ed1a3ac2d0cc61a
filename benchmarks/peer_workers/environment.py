"""The environment of the peers: their own packages, and everything else from this one."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.document import QUICK_RESULTS

DIRECTORY = QUICK_RESULTS / "peers-env"
_REQUIREMENTS = Path(__file__).parent / "requirements"


def create(directory: Path = DIRECTORY) -> Path:
    """Make the environment, or keep it.

    It sees the packages of this one, torch above all, so that peers run on the same versions and
    only the few that are missing are fetched.

    Args:
        directory: Where it is.

    Returns:
        Its Python.

    Raises:
        RuntimeError: If uv fails.
    """
    _uv("venv", "--allow-existing", "--python", sys.executable, str(directory))
    python = directory / "bin" / "python"
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = sysconfig.get_path("purelib")
    # A bare path would leave out packages that are installed as links, such as polylight.
    line = f"import site; site.addsitedir({here!r})\n"
    Path(packages, "packages_of_polylight.pth").write_text(line)
    return python


def install(python: Path, peer: str) -> None:
    """Install the pinned packages of a peer; nothing is fetched where they are there already.

    Args:
        python: Of the environment.
        peer: Its worker's name, which is that of its list of requirements.

    Raises:
        RuntimeError: If uv fails.
    """
    # Peers ask for torch again, several gigabytes, and some for versions that are years old.
    requirements = str(_REQUIREMENTS / f"{peer}.txt")
    _uv("pip", "install", "--python", str(python), "--no-deps", "--requirement", requirements)


def _uv(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"uv {' '.join(arguments[:2])} failed: {last}")
