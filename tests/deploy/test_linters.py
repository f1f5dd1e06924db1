"""What others' schemas and linters say of the files to run lazyfs by, and the image's steps, done here.

Only with --full: the linters are 170 MB, and pyfuse3 is compiled once more.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_files import DEPLOY, MANIFESTS, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path) -> str:
    """What a command says; AssertionError with it if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where their programs are."""
    place = tmp_path_factory.mktemp("linters")
    run(sys.executable, "-m", "venv", place)
    run(place / "bin/python", "-m", "pip", "install", "--require-hashes", "-r", ROOT / "tests/deploy/linters.lock")
    return place / "bin"


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_takes_the_manifests(linters: Path, version: str) -> None:
    """The oldest version that has native sidecars, and the newest known; no field that it does not know."""
    said = run(linters / "kubernetes-validate", "-k", version, "--strict", *MANIFESTS)
    assert said.count("passed for resource") == 3


def test_compose_takes_its_file(linters: Path) -> None:
    run(linters / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_hadolint_has_nothing_against_the_dockerfile(linters: Path) -> None:
    assert run(linters / "hadolint", DEPLOY / "Dockerfile") == ""


def test_the_steps_of_the_image(tmp_path: Path) -> None:
    """What the Dockerfile runs after Debian's packages, with no more of the checkout than it copies."""
    context = tmp_path / "src"
    context.mkdir()
    (context / "scripts").mkdir()
    names = ["pyproject.toml", "requirements.lock", "README.md", "LICENSE", "lazyfs"]
    run("cp", "-r", *names, context)
    run("cp", "-r", DEPLOY, context / "scripts")
    run(context / "scripts/deploy/install", tmp_path / "opt")
    assert run(tmp_path / "opt/bin/lazyfs", "--version").startswith("lazyfs, version ")
    assert "SOURCE MOUNTPOINT" in run(tmp_path / "opt/bin/lazyfs", "mount", "--help")
    packages = run(tmp_path / "opt/bin/python", "-m", "pip", "list").split()
    assert not {"pytest", "moto", "cython", "numpy"} & set(packages)
