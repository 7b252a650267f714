"""A real SLURM cluster on this one machine: munged, slurmctld, and a slurmd per node.

All of it lives in namespaces of its own: processes, mounts, host names, and a network in which each node is a host at
a bridge, so that a node can be cut off. Nothing outside is changed (a SLURM that is configured on the machine is
neither used nor disturbed), and the kernel ends all of it when the first process ends, which waits for a pipe from us
to close: nothing outlives the tests.
Needs root on Linux; installs Debian's packages where they are missing.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.debian import install

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2"}

APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", "--uts"]

FIRST_PROCESS = r"""
set -eu
cd "$1"
mount -t tmpfs tmpfs /run
mount --bind etc /etc/slurm
mount --bind hosts /etc/hosts
hostname control
ip link set lo up
ip link add bridge0 type bridge
ip addr add 10.77.0.254/24 dev bridge0
ip link set bridge0 up

mkdir -p /run/munge
chmod 755 /run/munge
head -c 128 /dev/urandom >munge.key
chmod 400 munge.key
munged --force --key-file="$1/munge.key" --log-file="$1/munged.log" --seed-file="$1/munged.seed"
slurmctld -D >control.out 2>&1 &
for i in $(seq "$2"); do
  ip netns add "node$i"
  ip link add "node$i" type veth peer name eth0 netns "node$i"
  ip link set "node$i" master bridge0 up
  ip -n "node$i" addr add "10.77.0.$i/24" dev eth0
  ip -n "node$i" link set eth0 up
  ip -n "node$i" link set lo up
  mkdir -p "node$i"
  nsenter --net="/run/netns/node$i" unshare --uts sh -c "hostname node$i && exec slurmd -D" >"node$i.out" 2>&1 &
done
read -r _ || true
"""

CONFIGURATION = """
ClusterName=test
SlurmctldHost=control(10.77.0.254)
SlurmUser=root
StateSaveLocation={folder}/control
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile={folder}/control.log
SlurmdLogFile={folder}/%n.log
SlurmctldDebug=debug
# a requeued job waits a second longer than this before it may start; 120 by default
AuthInfo=cred_expire=5
KillWait=5
SlurmdTimeout=5
TCPTimeout=2
# a node that was lost is used again as soon as it answers
ReturnToService=2
# no cgroups, no database, nothing measured
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# what is said here counts, not what the machine has
SlurmdParameters=config_overrides
NodeName=node[1-{nodes}] NodeAddr=10.77.0.[1-{nodes}] CPUs=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Nodes node1, node2 …, partitions `main` (what runs there gives way) and `urgent`."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        for name in ("etc", "control"):
            (folder / name).mkdir()
        (folder / "etc/slurm.conf").write_text(CONFIGURATION.format(folder=folder, nodes=nodes))
        hosts = ["127.0.0.1 localhost", "10.77.0.254 control", *(f"10.77.0.{i} node{i}" for i in range(1, nodes + 1))]
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        first = [*APART, "bash", "-c", FIRST_PROCESS, "bash", str(folder), str(nodes)]
        self._process = subprocess.Popen(first, stdin=subprocess.PIPE)

    def run(self, *command: str, seconds: float = 30) -> str:
        """What a command prints that runs where the controller does."""
        parent = self._process.pid
        [first] = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        inside = ["nsenter", "--target", first, "--pid", "--mount", "--net", "--uts", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def wait_for(self, what: str, true: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert self._process.poll() is None, "the cluster has ended"
            assert time.monotonic() < end, f"not in {seconds} s: {what}\n{self.run('squeue', '--states=all')}"
            time.sleep(0.1)

    def all_idle(self) -> bool:
        with contextlib.suppress(AssertionError, ValueError):  # it is starting still
            return self.run("sinfo", "--noheader", "--partition=main", "--format=%D %T") == f"{self.nodes} idle"
        return False

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, Restarts, ExitCode, NodeList …"""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def cut_off(self, node: str) -> None:
        self.run("ip", "link", "set", node, "down")

    def bring_back(self, node: str) -> None:
        self.run("ip", "link", "set", node, "up")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@contextlib.contextmanager
def slurm_cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster with all its nodes idle; skips where there can be none."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a SLURM cluster takes root on Linux")
    install(PACKAGES)
    if (done := subprocess.run([*APART, "true"], capture_output=True, text=True)).returncode:
        pytest.skip(f"a SLURM cluster takes namespaces of its own: {done.stderr.strip()}")
    cluster = Cluster(folder, nodes)
    try:
        cluster.wait_for("all nodes are idle", cluster.all_idle)
        yield cluster
    finally:
        cluster.stop()
