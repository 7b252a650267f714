"""What a process computes on, by the kernel's files of machines that are not here, and what comes of it."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sslm.parallel.cores import Share, multiplies_in_bf16, num_physical, share_of, take, usable_cpus

ALL = frozenset(range(16))


def write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    """Two nodes of four physical cores with two threads each, numbered as Linux does: 0 and 8 are one core."""
    for cpu in range(16):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 8},{cpu % 8 + 8}\n")
    write(tmp_path, "sys/devices/system/node/node0/cpulist", "0-3,8-11\n")
    write(tmp_path, "sys/devices/system/node/node1/cpulist", "4-7,12-15\n")
    write(tmp_path, "sys/devices/system/node/node2/cpulist", "\n")  # memory alone
    return tmp_path


def test_processes_share_physical_cores_and_each_stays_on_a_node(two_sockets: Path) -> None:
    first, second = frozenset([0, 1, 2, 3, 8, 9, 10, 11]), frozenset([4, 5, 6, 7, 12, 13, 14, 15])
    assert share_of(0, 1, ALL, two_sockets) == Share(8)
    assert [share_of(n, 2, ALL, two_sockets) for n in range(2)] == [Share(4, first), Share(4, second)]
    threads = [share_of(n, 3, ALL, two_sockets) for n in range(3)]
    assert threads == [Share(2, first), Share(2, first), Share(4, second)]
    assert share_of(9, 10, ALL, two_sockets) == Share(1, second)
    assert share_of(0, 2, frozenset([0, 8, 1]), two_sockets) == Share(1)  # what it may use is on one node
    assert num_physical(frozenset([0, 8, 1]), two_sockets) == 2


def test_a_containers_quota_leaves_fewer(two_sockets: Path) -> None:
    write(two_sockets, "proc/self/cgroup", "0::/\n")
    write(two_sockets, "sys/fs/cgroup/cpu.max", "350000 100000\n")
    assert share_of(0, 1, ALL, two_sockets).threads == 3
    assert share_of(0, 2, ALL, two_sockets).threads == 1
    write(two_sockets, "sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert share_of(0, 1, ALL, two_sockets).threads == 1


def test_where_the_system_tells_nothing_each_logical_core_is_one(tmp_path: Path) -> None:
    assert share_of(0, 2, ALL, tmp_path) == Share(8)


def test_the_users_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert take(Share(before + 1)) is None
    assert torch.get_num_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert take(Share(before)) is None
    try:
        assert take(Share(before + 1)) == f"{before + 1} threads a process"
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes so")
def test_a_process_stays_on_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = frozenset([min(usable_cpus())])

    def bound() -> tuple[str | None, frozenset[int]]:
        return take(Share(1, node)), usable_cpus()

    with ThreadPoolExecutor(1) as thread:  # which is bound alone, and ends
        assert thread.submit(bound).result() == ("each on one NUMA node", node)


def test_bf16_is_the_default_where_tiles_multiply_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert not multiplies_in_bf16(tmp_path)
    write(tmp_path, "proc/cpuinfo", "flags\t\t: fpu avx512_bf16\nmodel name: amx_bf16\n")
    assert not multiplies_in_bf16(tmp_path)
    write(tmp_path, "proc/cpuinfo", "processor: 0\nflags\t\t: fpu avx512_bf16 amx_tile amx_bf16\nbugs: none\n")
    assert multiplies_in_bf16(tmp_path)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert not multiplies_in_bf16(tmp_path)


FAULTS = """
import resource, sys
from sslm.system.limits import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [b'x' * 20_000_000 for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([step() for _ in range(3)][-1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc has these limits")
def test_memory_that_was_freed_is_not_zeroed_again() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(how: str, **more: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], env=env | more, capture_output=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 10_000 < faults("default")  # pages; it is 48,828 if all are zeroed
    assert faults("kept", MALLOC_TOP_PAD_="0") > 10_000  # the user has chosen
