"""The manifests: everything that is named is there, and fits."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs, page_of
from qwen3_tts_engine.launch.server import KILL_MARGIN_S
from qwen3_tts_gateway.serving import DRAIN_S
from real_server import ROOT
from redis_server import kill_redis, running_redis

KUBERNETES = ROOT / "docker/kubernetes"
OVERLAYS = ("base", "overlays/gpu", "overlays/kserve")
OLDEST = "1.30"  # as the base says
NAME = "app.kubernetes.io/name"
WORKLOADS = ("triton", "gateway", "redis", "prometheus")
PORTS = {"triton": (8000, 8001, 8002, 8003), "gateway": (8080,), "redis": (6379,), "prometheus": (9090,)}
CUSTOM = {"ScaledObject", "ServingRuntime", "InferenceService"}  # kinds that are KEDA's and KServe's
# What KEDA 2.17 and KServe 0.16 know in the places that are their own; the rest is Kubernetes', handed on.
SCALED_OBJECT = {
    "scaleTargetRef",
    "pollingInterval",
    "minReplicaCount",
    "maxReplicaCount",
    "advanced",
    "triggers",
}
SCALED_OBJECT |= {"cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount", "fallback"}
TRIGGER = {"type", "name", "metricType", "metadata", "authenticationRef", "useCachedMetrics"}
PROMETHEUS_TRIGGER = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
SERVING_RUNTIME = {"multiModel", "disabled", "protocolVersions", "supportedModelFormats"}
PREDICTOR = {"model", "minReplicas", "maxReplicas", "labels", "annotations", "deploymentStrategy", "timeout"}
MODEL = {"modelFormat", "protocolVersion", "runtime", "runtimeVersion", "storageUri", "storage", "resources"}

Document = dict[str, Any]
Render = Callable[[str], list[Document]]


def of_kind(objects: list[Document], *kinds: str) -> dict[str, Document]:
    return {it["metadata"]["name"]: it for it in objects if it["kind"] in kinds}


def pods(objects: list[Document]) -> dict[str, Document]:
    """The pod of each workload."""
    workloads = of_kind(objects, "Deployment", "StatefulSet")
    return {name: it["spec"]["template"]["spec"] for name, it in workloads.items()}


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def variables(pod: Document) -> Iterator[str]:
    return (variable["name"] for container in containers(pod) for variable in container.get("env", ()))


def test_every_workload_is_there(base: list[Document]) -> None:
    assert {*pods(base)} == {*WORKLOADS}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_finds_its_own_pods(base: list[Document], name: str) -> None:
    spec = of_kind(base, "Deployment", "StatefulSet")[name]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == {NAME: name}


def test_every_selector_finds_a_workload(base: list[Document]) -> None:
    selectors = [it["spec"]["selector"] for it in of_kind(base, "Service").values()]
    selectors += [
        it["spec"]["selector"]["matchLabels"] for it in of_kind(base, "PodDisruptionBudget").values()
    ]
    text = (KUBERNETES / "base/network-policies.yaml").read_text()
    named = re.findall(rf"podSelector:\s+matchLabels: {{{NAME}: (\w+)}}", text)
    named += [name for names in re.findall(r"values: \[(.+)\]", text) for name in names.split(", ")]
    assert {*named} | {it[NAME] for it in selectors} == {*WORKLOADS}


def test_every_port_of_a_service_is_one_of_its_pods(base: list[Document]) -> None:
    for service in of_kind(base, "Service").values():
        [name] = service["spec"]["selector"].values()
        ports = {it["name"]: it["containerPort"] for c in pods(base)[name]["containers"] for it in c["ports"]}
        assert tuple(ports.values()) == PORTS[name]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert ports.get(target, target) in ports.values()


def test_policies_let_through_ports_that_somebody_listens_on(base: list[Document]) -> None:
    outside = {53, 443}
    everyones = {port for ports in PORTS.values() for port in ports} | outside
    for policy in of_kind(base, "NetworkPolicy").values():
        for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]:
            assert {it["port"] for it in rule["ports"]} <= everyones


def test_whoever_may_call_may_be_called(base: list[Document]) -> None:
    """What goes out to one of ours goes in there."""
    policies = of_kind(base, "NetworkPolicy")
    calls = [
        (caller, rule["to"][0]["podSelector"]["matchLabels"][NAME], rule["ports"])
        for caller in WORKLOADS
        for rule in policies[caller]["spec"].get("egress", ())
        if "podSelector" in rule["to"][0]
    ]
    assert len(calls) == 5
    for caller, called, ports in calls:
        rules = [rule for rule in policies[called]["spec"]["ingress"] if rule["ports"] == ports]
        assert any("from" not in rule or caller in str(rule["from"]) for rule in rules), (caller, called)


def test_nobody_talks_unless_a_policy_says_so(base: list[Document]) -> None:
    silence = of_kind(base, "NetworkPolicy")["silence"]["spec"]
    assert silence == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_triton_hears_the_gateway_and_prometheus_alone(base: list[Document]) -> None:
    rules = of_kind(base, "NetworkPolicy")["triton"]["spec"]["ingress"]
    heard = {
        (rule["from"][0]["podSelector"]["matchLabels"][NAME], port["port"])
        for rule in rules
        for port in rule["ports"]
    }
    assert heard == {("gateway", 8001), ("prometheus", 8002), ("prometheus", 8003)}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_container_is_locked_up(base: list[Document], name: str) -> None:
    pod = pods(base)[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_container_says_what_it_needs_and_how_it_is(base: list[Document], name: str) -> None:
    for container in pods(base)[name]["containers"]:
        assert {"readinessProbe", "livenessProbe"} <= {*container}
    for container in containers(pods(base)[name]):
        assert {"cpu", "memory"} <= {*container["resources"]["requests"]}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_mount_has_a_volume(base: list[Document], name: str) -> None:
    workload = of_kind(base, "Deployment", "StatefulSet")[name]["spec"]
    volumes = {volume["name"] for volume in pods(base)[name]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in workload.get("volumeClaimTemplates", ())}
    mounts = {it["name"] for container in containers(pods(base)[name]) for it in container["volumeMounts"]}
    assert mounts == volumes


def test_every_variable_is_in_the_example_file(base: list[Document], example_variables: set[str]) -> None:
    named = {name for pod in pods(base).values() for name in variables(pod)}
    assert named
    assert named <= example_variables


@pytest.mark.parametrize(
    ("name", "drain_s"), [("triton", LaunchConfig().exit_timeout_s + KILL_MARGIN_S), ("gateway", DRAIN_S)]
)
def test_the_longest_utterance_is_spoken_to_its_end(base: list[Document], name: str, drain_s: int) -> None:
    pod = pods(base)[name]
    waits_s = notice_s(pod["containers"][0])
    assert waits_s >= 10
    assert pod["terminationGracePeriodSeconds"] >= max(660, waits_s + drain_s)


def notice_s(container: Document) -> float:
    """From the pod's end being known to nobody new being served."""
    if "lifecycle" in container:
        return float(container["lifecycle"]["preStop"]["sleep"]["seconds"])
    [notice] = [it["value"] for it in container["env"] if it["name"] == "SHUTDOWN_NOTICE_S"]
    return float(notice)


def test_readiness_alone_knows_that_a_gateway_is_being_stopped(base: list[Document]) -> None:
    """Were liveness to know it, a drain would end in a kill."""
    [gateway] = pods(base)["gateway"]["containers"]
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health"


def test_triton_is_ready_when_it_is_healthy_in_the_composition(
    base: list[Document], compose: Document
) -> None:
    [triton] = pods(base)["triton"]["containers"]
    asked = ["CMD", *triton["readinessProbe"]["exec"]["command"]]
    assert asked == compose["services"]["triton"]["healthcheck"]["test"]


def test_liveness_asks_nothing_that_the_supervisor_mends(base: list[Document]) -> None:
    """Were it to know of a model that is brought back, a slow load would end in a kill."""
    [triton] = pods(base)["triton"]["containers"]
    assert triton["livenessProbe"]["httpGet"] == {"path": "/live", "port": "supervisor"}
    repairs, [port] = Repairs(), free_ports(1)
    repairs.begin("qwen3_tts_base", "died")
    with page_of(repairs, "127.0.0.1", port):
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{port}/live").status_code == 200


def test_redis_keeps_every_voice(base: list[Document]) -> None:
    [container] = pods(base)["redis"]["containers"]
    given = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert (given["--appendonly"], given["--appendfsync"]) == ("yes", "everysec")
    assert given["--maxmemory-policy"] == "noeviction"
    assert int(given["--maxmemory"].removesuffix("mb")) * 2 <= 1024  # a rewrite of the log may double it
    assert container["resources"]["limits"]["memory"] == "1Gi"
    claims = of_kind(base, "StatefulSet")["redis"]["spec"]["volumeClaimTemplates"]
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert places[claims[0]["metadata"]["name"]] == given["--dir"]


def test_what_redis_has_taken_outlives_it(base: list[Document], tmp_path: Path) -> None:
    [container] = pods(base)["redis"]["containers"]
    given = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    del given["--aclfile"], given["--dir"]
    flags, [port] = [word for pair in given.items() for word in pair], free_ports(1)
    with running_redis(tmp_path, port, *flags) as url:
        with redis.Redis.from_url(url) as client:
            client.set("voice", "grandpa")
            time.sleep(2)  # it writes every second
        kill_redis(url)
    with running_redis(tmp_path, port, *flags) as url, redis.Redis.from_url(url) as client:
        assert client.get("voice") == b"grandpa"
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("another", "grandma")
        assert client.get("voice") == b"grandpa"


def test_prometheus_sees_who_is_not_ready_and_callers_do_not(base: list[Document]) -> None:
    published = {
        name: it["spec"].get("publishNotReadyAddresses", False)
        for name, it in of_kind(base, "Service").items()
    }
    seen = {name for name, is_published in published.items() if is_published}
    assert seen == {"triton", "gateway"}
    assert {"triton-ready", "qwen3-tts"} <= {*published} - seen


def test_who_may_be_evicted_is_there_twice(rendered: Render) -> None:
    objects = rendered("overlays/kserve")
    assert {*of_kind(objects, "PodDisruptionBudget")} == {"triton", "gateway"}
    assert of_kind(objects, "Deployment")["gateway"]["spec"]["replicas"] >= 2
    scaled = of_kind(objects, "ScaledObject")["triton"]["spec"]
    assert scaled["minReplicaCount"] >= 2
    predictor = of_kind(objects, "InferenceService")["speech"]["spec"]["predictor"]
    assert predictor["minReplicas"] == scaled["minReplicaCount"]


def test_a_rollout_takes_nobody_away_before_the_next_one_is_ready(rendered: Render) -> None:
    objects = rendered("overlays/kserve")
    ours = [of_kind(rendered("overlays/gpu"), "Deployment")[name] for name in ("triton", "gateway")]
    strategies = [it["spec"]["strategy"] for it in ours]
    strategies += [
        it["spec"]["predictor"]["deploymentStrategy"] for it in of_kind(objects, "InferenceService").values()
    ]
    assert len(strategies) == 3
    for strategy in strategies:
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_the_first_start_has_the_time_that_the_launcher_gives_it(base: list[Document]) -> None:
    probe = pods(base)["triton"]["containers"][0]["startupProbe"]
    start_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert start_s >= LaunchConfig().ready_timeout_s
    assert of_kind(base, "Deployment")["triton"]["spec"]["progressDeadlineSeconds"] > start_s


def test_envoy_stands_between_the_gateway_and_every_triton(base: list[Document]) -> None:
    envoy = yaml.safe_load((KUBERNETES / "base/envoy.yaml").read_text())["static_resources"]
    listener = envoy["listeners"][0]["address"]["socket_address"]
    gateway = pods(base)["gateway"]["containers"][0]
    given = {variable["name"]: variable["value"] for variable in gateway["env"]}
    assert (given["TRITON_HOST"], int(given["TRITON_GRPC_PORT"])) == (
        listener["address"],
        listener["port_value"],
    )
    [cluster] = envoy["clusters"]
    [policy] = cluster["load_balancing_policy"]["policies"]
    assert policy["typed_extension_config"]["name"] == "envoy.load_balancing_policies.least_request"
    [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = of_kind(base, "Service")[address["address"]]["spec"]
    assert service["clusterIP"] == "None"
    assert address["port_value"] in [port["port"] for port in service["ports"]]
    assert cluster["ignore_health_on_host_removal"] is True


def test_envoy_outlives_the_gateway(base: list[Document]) -> None:
    [envoy] = pods(base)["gateway"]["initContainers"]
    assert envoy["restartPolicy"] == "Always"  # a sidecar: stopped after the containers it serves


def test_redis_is_where_the_secrets_say(base: list[Document], checkout: Any) -> None:
    for name in ("voice_store", "limits_store"):
        host, port = re.search(r"@(\w+):(\d+)/", (checkout / "secrets" / name).read_text()).groups()  # type: ignore[union-attr]
        assert int(port) in [it["port"] for it in of_kind(base, "Service")[host]["spec"]["ports"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema(rendered: Render, overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in rendered(overlay):
        if document["kind"] not in CUSTOM:
            validate(document, OLDEST, strict=True)


def test_the_autoscaler_is_written_as_keda_reads_it(rendered: Render) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    spec = of_kind(rendered("overlays/gpu"), "ScaledObject")["triton"]["spec"]
    assert {*spec} <= SCALED_OBJECT
    for trigger in spec["triggers"]:
        assert {*trigger} <= TRIGGER
        assert {*trigger["metadata"]} <= PROMETHEUS_TRIGGER
        assert {type(value) for value in trigger["metadata"].values()} == {str}
        assert trigger["metricType"] in ("AverageValue", "Value")
    behaviour = spec["advanced"].pop("horizontalPodAutoscalerConfig")
    assert {*behaviour} == {"behavior"}
    assert not spec["advanced"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]}
    bounds = {"minReplicas": spec["minReplicaCount"], "maxReplicas": spec["maxReplicaCount"]}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "triton"},
    }
    validate({**scaler, "spec": {"scaleTargetRef": target, **bounds, **behaviour}}, OLDEST, strict=True)


def test_kserves_kinds_are_written_as_kserve_reads_them(rendered: Render) -> None:
    """What is not its own is a Deployment's, and checked as one."""
    validate = pytest.importorskip("kubernetes_validate").validate
    objects = rendered("overlays/kserve")
    runtime = of_kind(objects, "ServingRuntime")["qwen3-tts"]["spec"]
    service = of_kind(objects, "InferenceService")["speech"]["spec"]
    assert {*service} == {"predictor"}
    predictor = service["predictor"]
    assert {*predictor["model"]} <= MODEL
    assert {*predictor["model"]["modelFormat"]} <= {"name", "version"}
    for supported in runtime["supportedModelFormats"]:
        assert {*supported} <= {"name", "version", "autoSelect", "priority"}
    pod = {name: value for name, value in runtime.items() if name not in SERVING_RUNTIME}
    pod |= {name: value for name, value in predictor.items() if name not in PREDICTOR}
    spec = {
        "replicas": predictor["minReplicas"],
        "strategy": predictor["deploymentStrategy"],
        "selector": {"matchLabels": predictor["labels"]},
        "template": {"metadata": {"labels": predictor["labels"]}, "spec": pod},
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "speech"}, "spec": spec}
    validate(deployment, OLDEST, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_mounted_and_claimed_is_there(rendered: Render, overlay: str) -> None:
    objects = rendered(overlay)
    secrets, maps, claims = (
        of_kind(objects, kind) for kind in ("Secret", "ConfigMap", "PersistentVolumeClaim")
    )
    all_pods = [*pods(objects).values(), *(it["spec"] for it in of_kind(objects, "ServingRuntime").values())]
    assert len(all_pods) == 4
    for volume in (volume for pod in all_pods for volume in pod["volumes"]):
        if "secret" in volume:
            keys = {it["key"] for it in volume["secret"]["items"]}
            assert keys <= {*secrets[volume["secret"]["secretName"]]["data"]}
        elif "configMap" in volume:
            assert volume["configMap"]["name"] in maps
        elif "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_is_the_one_of_the_composition(rendered: Render, compose: Document, overlay: str) -> None:
    objects = rendered(overlay)
    all_pods = [*pods(objects).values(), *(it["spec"] for it in of_kind(objects, "ServingRuntime").values())]
    images = {container["image"] for pod in all_pods for container in containers(pod)}
    [envoy] = images - {service["image"] for service in compose["services"].values()}
    assert re.fullmatch(r"envoyproxy/envoy:distroless-v\d+\.\d+\.\d+", envoy)


def test_with_gpus_each_triton_has_one(rendered: Render) -> None:
    [triton] = pods(rendered("overlays/gpu"))["triton"]["containers"]
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_autoscaler_asks_our_prometheus_about_slots_and_the_queue(rendered: Render) -> None:
    objects = rendered("overlays/gpu")
    scaled = of_kind(objects, "ScaledObject")["triton"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind(objects, "Deployment")
    slots, queue = (trigger["metadata"] for trigger in scaled["triggers"])
    assert {it["ignoreNullValues"] for it in (slots, queue)} == {"false"}  # no answer is no nought
    assert "fallback" not in scaled
    assert "qwen3_tts_active_slots" in slots["query"]
    assert "qwen3_tts_slots" in slots["query"]
    assert "nv_inference_queue_duration_us" in queue["query"]
    service = of_kind(objects, "Service")["prometheus"]
    port = service["spec"]["ports"][0]["port"]
    address = f"http://prometheus.{service['metadata']['namespace']}:{port}"
    assert {it["serverAddress"] for it in (slots, queue)} == {address}
    keda = of_kind(objects, "NetworkPolicy")["prometheus"]["spec"]["ingress"][0]["from"][0][
        "namespaceSelector"
    ]
    assert keda["matchLabels"] == {"kubernetes.io/metadata.name": "keda"}


def test_kserve_runs_the_pod_that_we_would_have_run(rendered: Render) -> None:
    objects = rendered("overlays/kserve")
    ours = pods(rendered("overlays/gpu"))["triton"]
    assert "triton" not in of_kind(objects, "Deployment")
    runtime = of_kind(objects, "ServingRuntime")["qwen3-tts"]["spec"]
    assert runtime["containers"] == [{**ours["containers"][0], "name": "kserve-container"}]
    assert runtime["volumes"] == ours["volumes"]
    predictor = of_kind(objects, "InferenceService")["speech"]["spec"]["predictor"]
    for field in {*ours} - {"containers", "volumes"}:
        assert predictor[field] == ours[field], field
    assert predictor["model"]["resources"] == ours["containers"][0]["resources"]


def test_kserves_pods_are_found_by_all_that_looks_for_triton(rendered: Render) -> None:
    objects = rendered("overlays/kserve")
    service = of_kind(objects, "InferenceService")["speech"]
    model = service["spec"]["predictor"]["model"]
    runtime = of_kind(objects, "ServingRuntime")[model["runtime"]]["spec"]
    assert service["spec"]["predictor"]["labels"] == {NAME: "triton"}
    assert model["modelFormat"]["name"] in [it["name"] for it in runtime["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert of_kind(objects, "ScaledObject")["triton"]["spec"]["scaleTargetRef"]["name"] == "speech-predictor"
    assert service["metadata"]["name"] not in of_kind(objects, "Service")  # KServe makes one of that name
