"""The Helm chart against Helm itself, and what it makes against the schemas of Kubernetes."""

import functools
import json
from typing import Any

import kubernetes_validate
import pytest

from server.access.gate import OPEN_PATHS
from tests.deploy.manifests import CHART, helm, read_yaml

MLFLOW = {"ports": [{"port": 5000, "protocol": "TCP"}], "to": [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]}
INGRESS = {
    "grpc": {"enabled": True, "host": "fed.example.org"},
    "http": {"enabled": True, "host": "choral.example.org", "tlsSecretName": "public"},
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "image": {"tag": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "api": {"replicas": 2},
        "ingress": INGRESS | {"proxies": ["10.244.0.0/16", "192.0.2.7"]},
        "service": {"type": "LoadBalancer", "annotations": {"example.org/a": "b"}},
        "networkPolicy": {
            "grpcFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "httpFrom": [{"podSelector": {}}],
            "egress": [MLFLOW],
        },
        "coordinator": {
            "extraArgs": ["--concurrent-runs=2"],
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "persistence": {"storageClass": "fast"},
        },
    },
    "external-redis": {"redis": {"enabled": False, "externalSecretName": "store"}},
    "open": {"networkPolicy": {"enabled": False}, "tls": {"clientCertificates": False}},
}
RELEASES = ["1.27", "1.30", "1.34"]


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    return read_yaml(text_of(json.dumps(values)))


@functools.cache
def text_of(values: str) -> str:
    done = helm(values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_values_are_those_of_the_schema() -> None:
    def names(schema: dict[str, Any]) -> Any:
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return {key: names(part) for key, part in schema.get("properties", {}).items()}

    def keys(values: Any, known: Any) -> Any:
        return {key: keys(part, known.get(key, {})) for key, part in values.items()} if known else {}

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    definitions = schema["definitions"]
    wanted = names(schema)
    # What Helm itself knows; and a setting of one ingress alone.
    del wanted["global"], wanted["ingress"]["grpc"]["tlsSecretName"]
    (values,) = read_yaml((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert keys(values, wanted) == wanted


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return of_kind(documents, "StatefulSet") | of_kind(documents, "Deployment")


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_chart_is_what_kubernetes_takes(values: dict[str, Any]) -> None:
    documents = rendered(values)
    assert len(documents) >= 4
    for document in documents:
        for release in RELEASES:
            kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("values", [CASES["defaults"], CASES["everything"]], ids=["defaults", "everything"])
def test_every_pod_is_confined_and_limited(values: dict[str, Any]) -> None:
    found = pods(rendered(values))
    assert set(found) == {"fed", "fed-redis"} | ({"fed-api"} if "api" in values else set())
    for document in found.values():
        pod = document["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        for volume in pod["volumes"]:
            assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440


def test_selectors_find_the_pods_and_nothing_else() -> None:
    documents = rendered({"api": {"replicas": 2}})
    labels = {name: document["spec"]["template"]["metadata"]["labels"] for name, document in pods(documents).items()}

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for kind in ("Service", "StatefulSet", "Deployment"):
        for name, document in of_kind(documents, kind).items():
            selector = document["spec"]["selector"]
            assert chosen(selector.get("matchLabels", selector)) == {name}
    for kind, place in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, document in of_kind(documents, kind).items():
            assert chosen(document["spec"][place]["matchLabels"]) == {name}
    assert set(of_kind(documents, "PodDisruptionBudget")) == {"fed", "fed-api"}


def test_redis_is_reached_by_the_coordinator_alone() -> None:
    policies = of_kind(rendered({}), "NetworkPolicy")
    redis, coordinator = policies["fed-redis"]["spec"], policies["fed"]["spec"]
    (entry,) = redis["ingress"]
    assert entry["from"][0]["podSelector"] == coordinator["podSelector"]
    assert "egress" not in redis
    assert redis["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in coordinator["egress"] for port in rule["ports"]] == [53, 53, 6379]


def test_replicas_of_the_api_reach_redis_and_take_over_the_ingress() -> None:
    documents = rendered({"api": {"replicas": 3}, "ingress": INGRESS})
    policies, sets = of_kind(documents, "NetworkPolicy"), of_kind(documents, "Deployment")
    assert sets["fed-api"]["spec"]["replicas"] == 3
    (container,) = sets["fed-api"]["spec"]["template"]["spec"]["containers"]
    # The coordinator's health is none of its own.
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in OPEN_PATHS[1:]
    (entry,) = policies["fed-redis"]["spec"]["ingress"]
    assert [peer["podSelector"] for peer in entry["from"]] == [
        policies[name]["spec"]["podSelector"] for name in ("fed", "fed-api")
    ]
    assert policies["fed-api"]["spec"]["egress"] == policies["fed"]["spec"]["egress"]
    backends = {
        name: document["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        for name, document in of_kind(documents, "Ingress").items()
    }
    assert backends == {
        "fed-grpc": {"name": "fed", "port": {"name": "grpc"}},
        "fed-http": {"name": "fed-api", "port": {"name": "http"}},
    }


def test_coordinator_goes_where_a_value_lets_it() -> None:
    before, after = (
        of_kind(rendered(CASES[name]), "NetworkPolicy")["fed"]["spec"]["egress"] for name in ("defaults", "everything")
    )
    assert after == [*before, MLFLOW]


def test_coordinator_believes_the_proxies_that_a_value_names() -> None:
    found = {}
    for name in ("defaults", "everything"):
        (container,) = of_kind(rendered(CASES[name]), "StatefulSet")["fed"]["spec"]["template"]["spec"]["containers"]
        found[name] = {variable["name"]: variable["value"] for variable in container["env"]}
    assert "FORWARDED_ALLOW_IPS" not in found["defaults"]
    assert found["everything"]["FORWARDED_ALLOW_IPS"] == "10.244.0.0/16,192.0.2.7"


def test_password_stands_in_a_secret_alone() -> None:
    documents = rendered({})
    secret = of_kind(documents, "Secret")["fed-redis"]["stringData"]
    assert len(secret["password"]) == 40
    assert secret["store"] == f"redis://:{secret['password']}@fed-redis:6379/0"
    others = [document for document in documents if document["kind"] != "Secret"]
    assert secret["password"] not in json.dumps(others)


def test_external_redis_brings_no_redis() -> None:
    documents = rendered(CASES["external-redis"])
    assert set(of_kind(documents, "StatefulSet")) == {"fed"}
    volumes = of_kind(documents, "StatefulSet")["fed"]["spec"]["template"]["spec"]["volumes"]
    assert [volume["secret"]["secretName"] for volume in volumes if volume["name"] == "store"] == ["store"]


def test_ingress_leads_to_both_ports() -> None:
    found = of_kind(rendered({"ingress": INGRESS}), "Ingress")
    ports = {}
    for name, document in found.items():
        (rule,) = document["spec"]["rules"]
        ports[name] = (rule["host"], rule["http"]["paths"][0]["backend"]["service"]["port"]["name"])
    assert ports == {"fed-grpc": ("fed.example.org", "grpc"), "fed-http": ("choral.example.org", "http")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"ingress": {"grpc": {"enabled": True}}}, "host", id="ingress-without-host"),
        pytest.param({"redis": {"enabled": False}}, "redis.externalSecretName must name a secret", id="no-redis"),
        pytest.param({"tls": {"secretName": ""}}, "secretName", id="no-certificates"),
        pytest.param({"replicas": 2}, "replicas", id="unknown-value"),
        pytest.param({"redis": {"externalSecretName": "store"}}, "redis.enabled must be false", id="two-stores"),
        pytest.param(
            {"ingress": {name: {"enabled": True, "host": "fed.example.org"} for name in ("grpc", "http")}},
            "ingress.http.host must be another one",
            id="one-host-for-both",
        ),
        pytest.param({"ingress": {"proxies": ["*"]}}, "proxies", id="everybody-is-believed"),
        pytest.param({"redis": {"persistence": {"size": "2 GB"}}}, "size", id="no-size"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    done = helm(json.dumps(values))
    assert done.returncode == 1
    assert message in done.stderr
