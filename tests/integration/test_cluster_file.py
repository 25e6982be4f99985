"""cluster.yaml is what `ray up` takes, and it is closed to strangers."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prepared(written):
    """The file with the defaults of its provider, as `ray up` completes it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(written)


def test_ray_accepts_it(prepared):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_workers_have_gpus_and_come_and_go(prepared):
    worker = prepared["available_node_types"]["gpu"]
    assert worker["node_config"]["InstanceType"].startswith("g5.")
    assert 1 <= worker["min_workers"] < worker["max_workers"] <= prepared["max_workers"]
    assert prepared["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_nobody_else_gets_in(written):
    starts = [*written["head_start_ray_commands"], *written["worker_start_ray_commands"]]
    head = next(line for line in starts if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert not any("0.0.0.0" in line for line in starts)
    assert "--env RAY_AUTH_MODE=token" in written["docker"]["run_options"]
    assert written["file_mounts"]["/home/ray/.ray"] == "~/.ray"


def test_the_image_is_new_enough_for_token_authentication(written):
    version = written["docker"]["image"].split(":")[1].split("-")[0]
    assert tuple(int(part) for part in version.split(".")) >= (2, 52, 0)


def test_the_kubernetes_example_is_whole():
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    block = page.split("```yaml\n")[1].split("```")[0]
    cluster = yaml.safe_load(block)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] >= 1
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["volumeMounts"][0]["mountPath"] in page.split("```")[1]
