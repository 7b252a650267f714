"""Free memory, by the kernel's files."""

from pathlib import Path

from sslm.parallel.planning.host_memory import free_memory


def test_free_memory_is_what_the_kernel_and_every_group_leave(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    gib = 1 << 30
    write("proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {16 * gib // 1024} kB\n")
    assert free_memory(root=tmp_path) == 16 * gib
    write("proc/self/cgroup", "4:memory:/jobs/7\n0::/slice/job\n")
    assert free_memory(root=tmp_path) == 16 * gib  # no files
    write("sys/fs/cgroup/slice/job/memory.max", "max\n")
    write("sys/fs/cgroup/slice/job/memory.current", f"{gib}\n")
    assert free_memory(root=tmp_path) == 16 * gib  # no limit
    write("sys/fs/cgroup/slice/memory.max", f"{10 * gib}\n")
    write("sys/fs/cgroup/slice/memory.current", f"{3 * gib}\n")
    write("sys/fs/cgroup/slice/memory.stat", f"anon 5\ninactive_file {gib}\n")
    assert free_memory(root=tmp_path) == 8 * gib
    write("sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", f"{4 * gib}\n")
    write("sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", f"{gib}\n")
    assert free_memory(root=tmp_path) == 3 * gib
    assert free_memory(2, root=tmp_path) < 1.5 * gib
