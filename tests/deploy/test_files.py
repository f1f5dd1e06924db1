"""The files to run lazyfs by name options, commands, paths and volumes that exist. Nothing is mounted here."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lazyfs
from lazyfs.cli.main import cli
from lazyfs.config import Config
from lazyfs.errors import LazyfsError

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
UNITS = ROOT / "systemd"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OPTIONS = {f"LAZYFS_{field.name.upper()}": field for field in dataclasses.fields(Config)}
IMAGE = f"lazyfs:{lazyfs.__version__}"


def check_environment(pairs: dict[str, str]) -> None:
    """Every LAZYFS_ name is an option, and its value one that the option takes."""
    for name, value in pairs.items():
        if not name.startswith("LAZYFS_") or name in ("LAZYFS_SOURCE", "LAZYFS_MOUNTPOINT"):
            continue
        try:
            OPTIONS[name].metadata["parse"](value)
        except LazyfsError as error:
            pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize("unit", ["lazyfs@models.service", "lazyfs-split@models.service", "srv-models.mount"])
def test_systemd_takes_the_units(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify`, without a word; also with the drop-in that the unit shows for the split."""
    ours = str(Path(sys.executable).with_name("lazyfs"))
    service = (UNITS / "lazyfs@.service").read_text().replace("/usr/local/bin/lazyfs", ours)
    (split,) = re.findall(r"^# Or without any.*?(#   \[Service\]\n.*?)\n\n", service, re.DOTALL | re.MULTILINE)
    (tmp_path / "lazyfs@.service").write_text(service)
    (tmp_path / "lazyfs-split@.service").write_text(service + "\n" + re.sub(r"^#   ", "", split, flags=re.MULTILINE))
    shutil.copy(UNITS / "srv-models.mount", tmp_path)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    words = [line for line in done.stderr.splitlines() if unit in line or line.startswith(str(tmp_path))]
    assert (done.returncode, words) == (0, []), done.stderr


def test_the_service_stays_in_the_mount_namespace_of_the_host() -> None:
    """None of the settings that its text names as giving it one of its own is in it."""
    text = (UNITS / "lazyfs@.service").read_text()
    (named,) = re.findall(r"# Not here, because.*?`systemd-analyze", text, re.DOTALL)
    words = set(re.findall(r"\b[A-Z][A-Za-z]+\b", named))
    assert {"ProtectSystem", "PrivateTmp", "RootImage"} <= words
    assert words & set(re.findall(r"^([A-Za-z]+)=", text, re.MULTILINE)) == set()


def test_the_example_of_an_environment_is_one() -> None:
    lines = [line.lstrip("#") for line in (UNITS / "example.env").read_text().splitlines()]
    check_environment(dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line)))


def containers(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod, container) for each container in a manifest."""
    found = []
    for document in yaml.safe_load_all(path.read_text()):
        spec = document.get("spec", {})
        pod = spec.get("template", {}).get("spec", spec)
        found += [(pod, one) for one in [*pod.get("initContainers", []), *pod.get("containers", [])]]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.name))
def test_manifests_name_what_is_there(path: Path) -> None:
    """Volumes, options, probes that are commands, limits; and the mount goes out of the one that makes it."""
    ours = [(pod, one) for pod, one in containers(path) if one["name"] == "lazyfs"]
    assert len(ours) == 1
    for pod, one in containers(path):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
        assert one["resources"]["limits"]["memory"]
    ((pod, one),) = ours
    assert one["image"] == IMAGE
    env = {pair["name"]: pair["value"] for pair in one["env"]}
    check_environment(env)
    assert not {name for name in env if "SECRET" in name}, "secrets are files"
    for probe in ("startupProbe", "readinessProbe"):
        program, command, place = one[probe]["exec"]["command"]
        assert (program, place) == ("lazyfs", env["LAZYFS_MOUNTPOINT"])
        assert command in cli.commands
    (out,) = (mount for mount in one["volumeMounts"] if mount.get("mountPropagation") == "Bidirectional")
    assert env["LAZYFS_MOUNTPOINT"].startswith(out["mountPath"] + "/"), "not the volume itself: it is mounted already"
    assert one["securityContext"]["privileged"], "Kubernetes allows Bidirectional to nobody else"
    assert pod["terminationGracePeriodSeconds"] >= 30


def test_compose_names_what_is_there() -> None:
    """And carries the mount from one service to the other."""
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    ours, reader = found["services"]["lazyfs"], found["services"]["reader"]
    assert ours["image"] == IMAGE
    check_environment(ours["environment"])
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert ours["volumes"][0]["bind"]["propagation"] == "rshared"
    assert reader["volumes"][0]["bind"]["propagation"] == "rslave"
    assert ours["command"][0] in cli.commands


def test_the_image_is_built_of_what_is_there() -> None:
    """What it copies exists, and .dockerignore lets it through."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    let = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)", text, re.MULTILINE) for word in line.split()[:-1]]
    assert len(copied) >= 6
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path == one or path.startswith(one + "/") for one in let), path
