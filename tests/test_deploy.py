"""The files under deploy/: they parse, agree with each other and with the gateway.

What needs a container engine or a cluster is not run here: images are not built, manifests are
checked against the rules below and not against a server.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

import crossroads
from crossroads.gateway.config import ServeConfig, read_config
from crossroads.gateway.telemetry.catalogue import METRICS
from crossroads.prompts.pool import read_pool

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
STOP_S = 10.0  # what ending takes beyond the drain: a worker's grace, and closing the stores
PINNED = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?(-[\w.-]+)?")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text("utf-8"))
    return found


def manifests() -> dict[str, dict[str, Any]]:
    """Return every object by its kind."""
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    objects = [
        found
        for name in listed
        for found in yaml.safe_load_all((KUBERNETES / name).read_text("utf-8"))
    ]
    by_kind = {found["kind"]: found for found in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def environment() -> dict[str, str]:
    """Return the variables that the templates ask for, filled in."""
    names = re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text("utf-8"), re.MULTILINE)
    given = dict.fromkeys(names, "a-secret-of-24-characters")
    secret = manifests()["Secret"]["stringData"]
    return given | {n: v if "URL" in n else given.get(n, v) for n, v in secret.items()}


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def config_of(where: str, folder: Path) -> ServeConfig:
    if where == "compose":
        return read_config(COMPOSE / "gateway.yaml")
    path = folder / "gateway.yaml"
    path.write_text(manifests()["ConfigMap"]["data"]["gateway.yaml"], "utf-8")
    return read_config(path)


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    found: dict[str, Any] = pod()["containers"][0]
    return found


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_shipped_configuration_is_valid_and_shares_its_state(
    where: str, tmp_path: Path
) -> None:
    config = config_of(where, tmp_path)
    assert config.is_exposed
    assert config.has_keys
    assert config.governance.store.startswith("redis://")
    assert config.ledger is not None
    assert config.ledger.url.startswith("postgresql://")
    assert config.cache is not None
    assert config.cache.store.startswith("redis://")
    assert config.responses.store.startswith("redis://")


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_shipped_pool_has_the_models_of_the_configuration(where: str, tmp_path: Path) -> None:
    path = COMPOSE / "pool.yaml"
    if where == "kubernetes":
        path = tmp_path / "pool.yaml"
        path.write_text(manifests()["ConfigMap"]["data"]["pool.yaml"], "utf-8")
    assert read_pool(str(path)).names == ("small", "large")


def test_every_variable_the_templates_ask_for_is_named_in_the_examples() -> None:
    texts = [(COMPOSE / name).read_text("utf-8") for name in ("gateway.yaml", "pool.yaml")]
    texts += manifests()["ConfigMap"]["data"].values()
    asked = set(re.findall(r"\$\{(\w+)", "\n".join(texts)))
    assert asked <= set(environment())


# --- compose --------------------------------------------------------------------------------------


def test_compose_images_are_pinned_and_nothing_runs_as_root() -> None:
    for name, service in compose()["services"].items():
        assert PINNED.fullmatch(service["image"]), name
        assert service["user"].split(":")[0] not in ("", "0", "root"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "healthcheck" in service, name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name


def test_compose_publishes_on_loopback_only() -> None:
    ports = [p for service in compose()["services"].values() for p in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.usefixtures("filled")
def test_compose_and_balancer_agree_with_the_gateway(tmp_path: Path) -> None:
    config = config_of("compose", tmp_path)
    services = compose()["services"]
    gateway = services["gateway"]
    nginx = (COMPOSE / "nginx.conf").read_text("utf-8")
    assert gateway["deploy"]["replicas"] == 2
    assert gateway["expose"] == [str(config.port)]
    assert f"server gateway:{config.port} " in nginx
    assert services["balancer"]["ports"][0].endswith(":8080")
    assert f":{config.port}/health/ready'" in gateway["healthcheck"]["test"][-1]
    grace = float(gateway["stop_grace_period"].removesuffix("s"))
    assert grace >= config.timeouts.drain + STOP_S
    hosts = {config.governance.store, config.ledger.url if config.ledger else ""}
    assert {"valkey", "postgres"} == {re.split(r"[/@:]+", url)[-3] for url in hosts}
    assert {"valkey", "postgres"} <= gateway["depends_on"].keys()


def test_the_balancer_lets_events_through_as_they_come() -> None:
    nginx = (COMPOSE / "nginx.conf").read_text("utf-8")
    for line in (
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        "gzip off;",
        "proxy_cache off;",
    ):
        assert line in nginx
    waits = re.search(r"proxy_read_timeout (\d+)s", nginx)
    assert waits is not None
    assert float(waits[1]) > ServeConfig().timeouts.total
    idle = re.search(r"keepalive_timeout (\d+)s", nginx)
    assert idle is not None
    assert float(idle[1]) < ServeConfig().front.keep_alive_s, "the gateway would close first"


def test_the_image_is_small_and_does_not_run_as_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert all(PINNED.fullmatch(image) for image in images)
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == [f"{pod()['securityContext']['runAsUser']}:10001"]
    installed = re.findall(r"\.\[([\w,]+)\]", text)
    assert installed
    assert not {"neural", "local", "all", "dev"} & set(installed[0].split(","))
    assert "import torch" in text
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() for name in source.split())


# --- kubernetes -----------------------------------------------------------------------------------


def test_pods_are_selected_by_the_labels_they_have() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for kind, path in {
        "Deployment": ("selector", "matchLabels"),
        "Service": ("selector",),
        "PodDisruptionBudget": ("selector", "matchLabels"),
        "NetworkPolicy": ("podSelector", "matchLabels"),
    }.items():
        selector = found[kind]["spec"]
        for name in path:
            selector = selector[name]
        assert selector
        assert selector.items() <= labels, kind
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "crossroads")


def test_all_objects_are_in_one_namespace() -> None:
    found = manifests()
    name = found.pop("Namespace")["metadata"]["name"]
    assert {thing["metadata"]["namespace"] for thing in found.values()} == {name}


@pytest.mark.usefixtures("filled")
def test_kubernetes_ports_and_times_agree_with_the_configuration(tmp_path: Path) -> None:
    config = config_of("kubernetes", tmp_path)
    found = manifests()
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": config.port}
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    allowed = found["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert [port["port"] for port in allowed] == [config.port]
    assert config.admin is not None
    assert not config.admin.is_exposed, "the admin port is reached by port-forward only"
    pause = float(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = pod()["terminationGracePeriodSeconds"]
    assert grace >= pause + config.timeouts.drain + STOP_S


def test_pods_are_restricted() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["automountServiceAccountToken"] is False
    limits = container()["securityContext"]
    assert limits["readOnlyRootFilesystem"] is True
    assert limits["allowPrivilegeEscalation"] is False
    assert limits["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} == container()["resources"].keys()
    assert PINNED.fullmatch(container()["image"])
    mounted = {volume["name"] for volume in container()["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod()["volumes"]}


def test_the_image_s_version_is_the_package_s() -> None:
    version = ".".join(crossroads.__version__.split(".")[:2])
    assert container()["image"].endswith(f":{version}")
    assert compose()["services"]["gateway"]["image"].endswith(f":{version}")


def test_probes_ask_for_life_and_readiness() -> None:
    paths = {kind: container()[kind]["httpGet"]["path"]
             for kind in ("startupProbe", "readinessProbe", "livenessProbe")}  # fmt: skip
    assert paths == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health",
    }


def test_a_disruption_leaves_some_pods() -> None:
    found = manifests()
    least = found["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < least
    assert found["Deployment"]["spec"]["replicas"] == least


def test_egress_never_reaches_the_metadata_service() -> None:
    rules = manifests()["NetworkPolicy"]["spec"]["egress"]
    blocks = [to["ipBlock"] for rule in rules for to in rule["to"] if "ipBlock" in to]
    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_kustomize_builds_the_manifests() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=True
    )
    assert len(list(yaml.safe_load_all(done.stdout))) == len(manifests())


# --- systemd, metrics -----------------------------------------------------------------------------


def test_the_unit_stops_gracefully_and_is_confined() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "crossroads.service")
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= ServeConfig().timeouts.drain + STOP_S
    assert "-HUP" in service["ExecReload"]
    assert service["ExecStart"].split()[1:3] == ["serve", "--config"]
    assert service["ExecStartPre"].split()[1] == "check-config"
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp"):
        assert service[name] == "yes"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            sums = re.sub(r"by \([^)]*\)", "", target["expr"])
            names = re.findall(r"\b(?:crossroads|gen_ai)_\w+", sums)
            assert names, panel["title"]
            for name in names:
                metric = METRICS[re.sub(r"_(total|bucket|sum|count)$", "", name)]
                labels = re.findall(r"by \(([\w, ]+)\)", target["expr"])
                used = {label for group in labels for label in re.split(r", ?", group)}
                assert used <= {*metric.labels, "le", "instance"}, panel["title"]


def test_prometheus_asks_where_the_gateway_answers() -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    job = yaml.safe_load(text)["scrape_configs"][0]
    assert job["metrics_path"] == "/metrics"
    assert job["dns_sd_configs"][0]["port"] == ServeConfig().port
    assert "gateway" in compose()["services"]


# --- the whole ------------------------------------------------------------------------------------


def get(url: str, key: str | None = None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
        status: int = answer.status
        return status


@pytest.mark.slow
def test_the_shipped_configuration_serves_its_probes_with_two_workers(tmp_path: Path) -> None:
    data = manifests()["ConfigMap"]["data"]
    (tmp_path / "pool.yaml").write_text(data["pool.yaml"], "utf-8")
    config = yaml.safe_load(data["gateway.yaml"])
    assert config["workers"] == 2
    config |= {"host": "127.0.0.1", "port": 0, "pool": str(tmp_path / "pool.yaml")}
    for section in ("governance", "cache", "responses"):
        config[section]["store"] = "memory"
    config["ledger"]["url"] = f"sqlite:{tmp_path / 'ledger.db'}"
    config["admin"]["port"] = 0
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "crossroads", "serve", "--config", str(path)],
        env={**os.environ, **environment()},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next(line for line in lines if "workers serve on" in line).split()[-1]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert get(url + container()[probe]["httpGet"]["path"]) == 200
        assert get(url + "/metrics", environment()["CROSSROADS_API_KEY"]) == 200
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert time.monotonic() - started < 10
    finally:
        process.kill()
        process.communicate()
