"""Whatever a file under deploy/ refers to is there: files, options, variables, ports, volumes."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from crossroads.cli import cli
from crossroads.gateway.config import ServeConfig
from tests.test_deploy import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    compose,
    config_of,
    container,
    environment,
    filled,
    manifests,
    pod,
)

__all__ = ["filled"]  # a fixture
ROOT = DEPLOY.parent
SHIPPED = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
OWN_VARIABLES = {"CROSSROADS_API_KEY"}  # read by the command line itself


class Strict(yaml.SafeLoader):
    """Reads YAML in which no field of a mapping is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        assert len(set(names)) == len(names), f"given twice: {names} {node.start_mark}"
        return super().construct_mapping(node, deep)


def options_of(words: list[str]) -> set[str]:
    """Return the options that a command line gives; fails where the command has them not."""
    command: click.Command | None = cli.get_command(click.Context(cli), words[0])
    rest = words[1:]
    if isinstance(command, click.Group):
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
    assert command is not None, words
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    known = {option for parameter in command.params for option in parameter.opts}
    assert given <= known, words
    return given


def published(services: dict[str, Any], name: str) -> set[str]:
    """Return the ports of a service that others may reach."""
    ports = [port.rpartition(":")[2] for port in services[name].get("ports", ())]
    return {*ports, *services[name].get("expose", ())}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_parses(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.isascii()
    assert text.endswith("\n")
    if path.suffix in (".yaml", ".yml"):
        assert all(yaml.load_all(text, Strict))
    if path.suffix == ".json":
        json.loads(text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_command_that_a_file_names_has_the_options_it_is_given(path: Path) -> None:
    for line in path.read_text("utf-8").splitlines():
        for found in re.findall(r"(?:bin/)?crossroads ((?:serve|check-config|keys) [^,)]+)", line):
            options_of(shlex.split(re.split(r"\s{2,}", found)[0]))


def test_the_image_and_the_pod_start_what_there_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    started = [json.loads(words) for words in re.findall(r"^CMD (.+)$", text, re.MULTILINE)]
    assert started == [container()["args"]]
    assert options_of(started[0]) == {"--config"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (wanted,) = re.findall(r"\.\[([\w,]+)\]", text)
    assert set(wanted.split(",")) <= extras["project"]["optional-dependencies"].keys()
    (exposed,) = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)
    defaults = ServeConfig()
    assert defaults.admin is not None
    assert exposed.split() == [str(defaults.port), str(defaults.admin.port)]


def test_the_build_sees_every_file_that_it_copies() -> None:
    build = compose()["services"]["gateway"]["build"]
    context = (COMPOSE / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    seen = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert {f"!{name.removeprefix('./')}" for name in source.split()} <= set(seen)


def test_every_file_volume_and_service_that_compose_names_is_there() -> None:
    found = compose()
    services, named = found["services"], found["volumes"].keys()
    mounted: set[str] = set()
    for service in services.values():
        assert service.get("depends_on", {}).keys() <= services.keys()
        for name in service.get("env_file", ()):
            assert (COMPOSE / f"{name}.example").is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).is_file(), source
            else:
                mounted.add(source)
    assert mounted == named


@pytest.mark.usefixtures("filled")
def test_stores_are_reached_at_ports_that_are_open(tmp_path: Path) -> None:
    config = config_of("compose", tmp_path)
    assert config.ledger is not None
    assert config.cache is not None
    stores = (config.governance.store, config.cache.store, config.responses.store)
    assert {urlsplit(url).port for url in stores} == {6379}
    assert len({urlsplit(url).path for url in stores}) == len(stores)
    assert urlsplit(config.ledger.url).port == 5432
    assert config.admin is not None
    assert published(compose()["services"], "gateway") == {str(config.port), str(config.admin.port)}
    config = config_of("kubernetes", tmp_path)
    assert config.ledger is not None
    ports = {port["port"] for rule in manifests()["NetworkPolicy"]["spec"]["egress"]
             for port in rule["ports"]}  # fmt: skip
    assert {urlsplit(config.governance.store).port, urlsplit(config.ledger.url).port} <= ports


def test_the_pod_reads_what_its_volumes_hold() -> None:
    found = manifests()
    files = sorted(path.name for path in KUBERNETES.glob("*.yaml"))
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == files
    names = {kind: thing["metadata"]["name"] for kind, thing in found.items()}
    assert [each["secretRef"]["name"] for each in container()["envFrom"]] == [names["Secret"]]
    (config,) = [volume for volume in pod()["volumes"] if "configMap" in volume]
    assert config["configMap"]["name"] == names["ConfigMap"]
    (folder,) = [mount["mountPath"] for mount in container()["volumeMounts"]
                 if mount["name"] == config["name"]]  # fmt: skip
    data = found["ConfigMap"]["data"]
    assert Path(container()["args"][-1]).parent == Path(folder)
    for path in (container()["args"][-1], yaml.safe_load(data["gateway.yaml"])["pool"]):
        assert Path(path).name in data
    ports = {port["name"] for port in container()["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_every_variable_that_is_set_is_asked_for(where: str) -> None:
    if where == "compose":
        texts = [path.read_text("utf-8") for path in COMPOSE.glob("*.yaml")]
        given = set(re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text("utf-8"), re.M))
    else:
        texts = list(manifests()["ConfigMap"]["data"].values())
        given = set(manifests()["Secret"]["stringData"])
    asked = set(re.findall(r"\$\{(\w+)", "\n".join(texts)))
    assert asked == given
    assert OWN_VARIABLES <= given <= set(environment())


def test_the_unit_documents_itself_with_a_page_that_is_there() -> None:
    text = (DEPLOY / "systemd" / "crossroads.service").read_text("utf-8")
    (page,) = re.findall(r"^Documentation=file:\S+/(\S+)$", text, re.MULTILINE)
    assert (ROOT / "docs" / page).is_file()
