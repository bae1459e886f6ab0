"""The compose files against docker-compose 1.29, and what they promise about every service."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.deploy.manifests import COMPOSE, DIGESTS, GPU, ROOT, read_yaml, services
from wire.spec import read_spec

KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "entrypoint",
    "environment",
    "healthcheck",
    "image",
    "init",
    "mem_limit",
    "network_mode",
    "networks",
    "pids_limit",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "security_opt",
    "tmpfs",
    "user",
    "volumes",
}
"""Of a service, what docker-compose 1.29 and the plugin read alike."""

SITES = ["site-0", "site-1", "site-2"]
OWN = ["certificates", "coordinator", "submit", *SITES]
OPTIONAL = ["api"]
"""With --profile of the same name."""


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, GPU]], ids=["cpu", "gpu"])
def test_old_docker_compose_takes_the_files(files: list[Any]) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    named = [word for path in files for word in ("--file", str(path))]
    done = subprocess.run(["docker-compose", *named, "config"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (document,) = read_yaml(done.stdout)
    # The plugin leaves out what no profile asks for; this one lists it, and does not start it.
    assert set(document["services"]) == {"redis", *OWN, *OPTIONAL}
    assert [name for name, service in document["services"].items() if service.get("profiles")] == OPTIONAL
    for site in SITES:
        found = document["services"][site].get("deploy", {}).get("resources", {}).get("reservations", {})
        assert bool(found.get("devices")) == (len(files) == 2)


def test_images_from_elsewhere_are_held_still_by_their_digests() -> None:
    found = dict(line.split("=", 1) for line in DIGESTS.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert set(found) == {"BASE_IMAGE", "REDIS_IMAGE"}
    for name, image in found.items():
        assert (tag := re.fullmatch(r"(.+:.+)@sha256:[0-9a-f]{64}", image)) is not None
        assert f"${{{name}:-{tag[1]}}}" in COMPOSE.read_text(encoding="utf-8")
        assert name == "REDIS_IMAGE" or f"ARG {name}={tag[1]}\n" in dockerfile
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    command = ["docker-compose", "--env-file", str(DIGESTS), "--file", str(COMPOSE), "--file", str(GPU), "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (document,) = read_yaml(done.stdout)
    assert document["services"].pop("redis")["image"] == found["REDIS_IMAGE"]
    assert {one["build"]["args"]["BASE_IMAGE"] for one in document["services"].values()} == {found["BASE_IMAGE"]}


def test_api_replica_has_what_it_needs_of_the_coordinator_and_does_not_wait_for_it() -> None:
    found = services()
    api, coordinator = found["api"], found["coordinator"]
    assert api["profiles"] == ["api"]
    assert all("profiles" not in service for name, service in found.items() if name not in OPTIONAL)
    assert {*api["command"]} - {*coordinator["command"]} == {"api"}
    assert api["environment"] == coordinator["environment"]
    assert api["networks"] == coordinator["networks"]
    assert set(api["depends_on"]) == {"certificates", "redis"}
    # Its health is its own: it shows what is stored while the coordinator is away. It has no model, and no key of the coordinator's folder.
    assert api["healthcheck"]["test"] == [*coordinator["healthcheck"]["test"][:4], "api", "https://127.0.0.1:8080"]
    assert api["volumes"] == ["coordinator-certificates:/certificates/coordinator:ro"]


def test_services_use_only_what_both_versions_read() -> None:
    assert {key for service in services().values() for key in service} <= KEYS


def test_every_service_is_confined() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= set(service), name


def test_ports_are_published_on_loopback_alone() -> None:
    ports = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert set(ports) == {"coordinator", "api"}
    published = [port for found in ports.values() for port in found]
    assert all(re.match(r"\$\{CHORAL_(GRPC|HTTP)_BIND:-127\.0\.0\.1\}:", port) for port in published)
    assert len({port.rpartition(":")[0] for port in published}) == len(published)


@pytest.mark.parametrize(
    ("settings", "names", "clients", "browsers"),
    [
        pytest.param({}, set(), "127.0.0.1", "127.0.0.1", id="nothing-set"),
        pytest.param(
            {"CHORAL_HOST": "fed.example.org", "CHORAL_GRPC_BIND": "192.0.2.7"},
            {"fed.example.org"},
            "192.0.2.7",
            "127.0.0.1",
            id="edge-machines",
        ),
        pytest.param({"CHORAL_HTTP_BIND": "192.0.2.8"}, set(), "127.0.0.1", "192.0.2.8", id="browsers"),
    ],
)
def test_edge_machines_and_browsers_are_let_in_each_by_a_setting(
    settings: dict[str, str], names: set[str], clients: str, browsers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = ["docker-compose", "--file", str(COMPOSE), "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    (document,) = read_yaml(done.stdout)
    found = document["services"]
    assert set(found["certificates"]["environment"]["HOSTS"].split(" --host ")) >= names
    assert found["coordinator"]["ports"] == [f"{clients}:7070:7070/tcp", f"{browsers}:8080:8080/tcp"]
    assert found["api"]["ports"] == [f"{browsers}:8081:8080/tcp"]


def test_torch_for_a_gpu_is_the_same_build_everywhere() -> None:
    texts = [(ROOT / "deploy" / name).read_text(encoding="utf-8") for name in ("README.md", "Dockerfile")]
    builds = [set(re.findall(r"whl/(cu\d+)", text)) for text in (GPU.read_text(encoding="utf-8"), *texts)]
    assert len(builds[0]) == 1
    assert builds[0] == builds[1] == builds[2]


def test_only_coordinator_and_its_tools_reach_redis() -> None:
    on_store = {name for name, service in services().items() if "store" in service.get("networks", [])}
    assert on_store == {"redis", "coordinator", "submit", "api"}
    (document,) = read_yaml(COMPOSE.read_text(encoding="utf-8"))
    assert document["networks"]["store"] == {"internal": True}


def test_keys_lie_only_where_they_are_needed() -> None:
    where = {
        volume: {
            name
            for name, service in services().items()
            for mount in service.get("volumes", [])
            if isinstance(mount, str) and mount.startswith(f"{volume}:")
        }
        for volume in ("authority", "coordinator-certificates", "client-certificates")
    }
    assert where == {
        "authority": {"certificates"},
        "coordinator-certificates": {"certificates", "coordinator", "submit", "api"},
        "client-certificates": {"certificates", *SITES},
    }


def test_no_secret_stands_in_the_files() -> None:
    for service in services().values():
        for name in service.get("environment", {}):
            assert name in {"CHORAL_STORE", "CHORAL_URL", "CHORAL_TLS_CA", "FORWARDED_ALLOW_IPS", "HOSTS"}
        assert "redis://" not in json.dumps([service.get("environment"), service.get("healthcheck")])


def test_the_demo_has_a_client_for_each_place_of_its_cohort() -> None:
    spec = read_spec(ROOT / "deploy" / "digits.yaml")
    assert spec.cohort.size == len(SITES)
    # One may be away, and rounds go on.
    assert spec.cohort.quorum == len(SITES) - 1
