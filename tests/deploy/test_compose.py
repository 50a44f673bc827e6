"""compose.yaml and the Dockerfiles, as far as they can be held to the code without a Docker engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.settings import Settings
from registry.settings import read_settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["deploy/Dockerfile", "deploy/Dockerfile.gpu"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def environment(service: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """A service's variables as its container sees them, with the secrets' files where this test put them."""
    (tmp_path / "tokens").write_text("ops " + "0" * 64 + "\n")
    (tmp_path / "token").write_text("secret\n")
    values = {name: re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", r"\1", value) for name, value in service["environment"].items()}
    return {name: value.replace("/run/secrets", str(tmp_path)) for name, value in values.items()}


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_the_worker_understands_every_variable_it_is_given(compose: Any, tmp_path: Path, name: str) -> None:
    settings = Settings.read({}, environment(compose["services"][name], tmp_path))
    settings.security().check_listen(settings.listen)  # it may listen to the network, because it asks for tokens
    assert settings.registry_security().token == "secret"


def test_the_registry_understands_every_variable_it_is_given(compose: Any, tmp_path: Path) -> None:
    settings = read_settings(environment(compose["services"]["registry"], tmp_path))
    settings.security.check_listen(settings.listen)
    assert settings.database_url.startswith("postgresql://")
    assert settings.data_dir == Path("/state")


def test_nothing_is_published_beyond_loopback_and_no_secret_stands_in_the_file(compose: Any) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("${")


def test_every_service_has_a_health_check_and_a_volume_for_what_it_keeps(compose: Any) -> None:
    for service in compose["services"].values():
        assert "test" in service["healthcheck"]
        named = {volume.split(":")[0] for volume in service["volumes"]}
        assert named & set(compose["volumes"])


@pytest.mark.parametrize("file", DOCKERFILES)
def test_the_image_holds_every_package_that_the_wheel_is_made_of(file: str) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = re.findall(r"^COPY (\S+) \S+$", (ROOT / file).read_text(), re.MULTILINE)
    assert {package.split("/")[0] for package in packages["packages"]} <= set(copied)
    assert all((ROOT / folder).exists() for folder in copied)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_the_dockerfiles_pass_their_linter(file: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    subprocess.run([hadolint, ROOT / file], check=True)
