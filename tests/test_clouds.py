"""docker/kubernetes and docker/sky.yaml say what sslm understands, and leave it the time to save."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslm.cli.parse import parse
from sslm.config import Config
from sslm.system.exits import STOPPED, USER_ERROR

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker/kubernetes"


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def job_of(name: str) -> Any:
    """The specification of the Job that a file makes, by itself or inside a JobSet."""
    spec = manifest(name)["spec"]
    return spec["replicatedJobs"][0]["template"]["spec"] if name == "jobset" else spec


def pod_of(name: str) -> Any:
    return job_of(name)["template"]["spec"]


def settings_of(name: str) -> Config:
    """The settings that the container's arguments ask for."""
    [container] = pod_of(name)["containers"]
    return parse(container["args"])


both = pytest.mark.parametrize("name", ["job", "jobset"])


@both
def test_devices_and_nodes_are_those_that_are_asked_of_the_cluster(name: str) -> None:
    settings, job = settings_of(name), job_of(name)
    [container] = pod_of(name)["containers"]
    assert str(settings.devices) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert settings.num_nodes == job.get("completions", 1) == job.get("parallelism", 1)


@both
def test_mistakes_end_the_job_and_stops_are_no_failures(name: str) -> None:
    rules = job_of(name)["podFailurePolicy"]["rules"]
    actions = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert actions == {USER_ERROR: "FailJob", STOPPED: "Ignore"}
    assert pod_of(name)["restartPolicy"] == "Never"  # or Kubernetes refuses the policy


@both
def test_the_time_to_save_is_what_the_page_says(name: str) -> None:
    page = " ".join((ROOT / "docs/clouds.md").read_text().split())
    [seconds] = re.findall(r"leave (\d+) seconds for it", page)
    assert pod_of(name)["terminationGracePeriodSeconds"] == int(seconds)
    assert f"--stop-timeout {seconds} " in page
    [on_slurm] = re.findall(r"--signal=USR1@(\d+)", (ROOT / "slurm/pretrain.sbatch").read_text())
    assert int(seconds) >= int(on_slurm)
    assert f"at most {settings_of(name).checkpoint.every_minutes:g} minutes of work are lost" in page


@both
def test_pods_are_no_root_and_keep_no_secret(name: str) -> None:
    pod = pod_of(name)
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    secrets = [entry for entry in container["env"] if re.search("KEY|TOKEN|PASSWORD|SECRET", entry["name"])]
    assert secrets
    assert all(entry["valueFrom"]["secretKeyRef"]["optional"] for entry in secrets)


@both
def test_shared_memory_and_what_is_kept_are_volumes(name: str) -> None:
    pod = pod_of(name)
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["/workspace"]["persistentVolumeClaim"]["claimName"] == manifest("volumes")["metadata"]["name"]
    assert "WORKDIR /workspace\n" in (ROOT / "docker/Dockerfile").read_text()  # relative paths lie there


def test_nodes_meet_at_the_first_pod_of_the_jobset() -> None:
    jobset = manifest("jobset")
    [container] = pod_of("jobset")["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    first = f"{jobset['metadata']['name']}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0"
    assert env["MASTER_ADDR"]["value"] == f"{first}.{jobset['spec']['network']['subdomain']}"
    assert "job-completion-index" in env["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_manifests_follow_kubernetes_schemas() -> None:
    """The JobSet's own fields are not in them: its Job is looked at as one."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nodes"}, "spec": job_of("jobset")}
    version = kubernetes_validate.latest_version()
    for document in (manifest("volumes"), manifest("desk"), manifest("job"), job):
        kubernetes_validate.validate(document, version, strict=True)
    job["spec"]["backoffLimits"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_what_docker_is_told_is_understood() -> None:
    page = (ROOT / "docs/clouds.md").read_text().replace("\\\n", "")
    [flags] = re.findall(r"^    box --detach .*on-failure.* sslm +(--.*)$", page, re.MULTILINE)
    settings = parse(flags.split())
    assert f"workspace/{settings.run_dir}/export/" in page


# ------------------------------------------------------------------------------------------------ SkyPilot


def sky_run(tmp_path: Path, nodes: int = 1, **env: str) -> "subprocess.CompletedProcess[str]":
    """What docker/sky.yaml types on the last machine, said by an interpreter that prints its environment and words."""
    python = tmp_path / "sslm/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/bash\necho "$NODE_RANK $MASTER_ADDR ${WANDB_API_KEY-unset}"\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    sky = {
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_RANK": str(nodes - 1),
        "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{1 + node}" for node in range(nodes)),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    task = yaml.safe_load((ROOT / "docker/sky.yaml").read_text())
    asked = {"RUN": "mine", "BUCKET": "s3://bucket/runs", "DATA": "s3://bucket/corpus"}
    given = {name: value for name, value in (task["envs"] | task["secrets"]).items() if value is not None}
    whole = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **sky, **given, **asked, **env}
    return subprocess.run(["bash", "-c", task["run"]], env=whole, cwd=ROOT, capture_output=True, text=True)


def test_skys_machines_type_what_sslm_understands(tmp_path: Path) -> None:
    heard, module, name, *flags = sky_run(tmp_path, nodes=2, RUNS="/shared", FLAGS="--seed 7").stdout.splitlines()
    assert (heard, module, name) == ("1 10.0.0.1 unset", "-m", "sslm.train")
    settings = parse(flags)
    assert (settings.num_nodes, settings.devices, settings.seed) == (2, 8, 7)
    assert (str(settings.run_dir), settings.checkpoint.upload) == ("/shared/mine", "s3://bucket/runs/mine")


def test_several_of_skys_machines_without_a_shared_folder_are_refused(tmp_path: Path) -> None:
    done = sky_run(tmp_path, nodes=2)
    assert done.returncode == USER_ERROR
    assert "--env RUNS=" in done.stderr
    assert f"--run_dir\n{tmp_path}/runs/mine\n" in sky_run(tmp_path).stdout


def test_skys_file_follows_its_schema() -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="skypilot needs an environment of its own")
    jsonschema = pytest.importorskip("jsonschema")
    task = yaml.safe_load((ROOT / "docker/sky.yaml").read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())
    assert STOPPED in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task | {"runs": ""}, schemas.get_task_schema())
