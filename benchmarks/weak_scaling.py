"""Published tables of the speed of a device as devices become more, and what the model of step time says of them.

Of each table one number is fitted: the MFU of a device that waits for nobody, such that the first row is met. Of all
tables together one more: `HOP_SECONDS`, by the table of Fernandez et al. All other rows are predictions.
"""

from typing import NamedTuple

from sslm.parallel.planning.machines import GPUS
from sslm.parallel.planning.step_time import Cluster, StepTime, Work, step_time

MPT = "MosaicML, llm-foundry, scripts/train/benchmarking/README.md at 061f2c7"
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3, with torch.compile"
KEMPNER = "KempnerForge, benchmarks/mfu_scaling/mfu_scaling.md at 01b461a"
MEGATRON = "Narayanan et al. 2021, arXiv:2104.04473, table 1, rows without pipeline"
FERNANDEZ = "Fernandez et al. 2024, arXiv:2411.13055: 37.22 % less a GPU with 2,048 GPUs than with 128"


class Model(NamedTuple):
    """A decoder."""

    parameters: float
    layers: int
    width: int
    seq_len: int

    @property
    def flops_per_token(self) -> float:
        return 6 * self.parameters + 12 * self.layers * self.width * self.seq_len


class Row(NamedTuple):
    """A run; speed is relative to the others' alone."""

    devices: int
    speed: float
    """Tokens a second and device, or what is proportional to it."""
    rows: int
    """Sequences in a forward pass."""
    passes: int = 1
    """Forward passes in a step."""
    tensor_parallel: int = 1
    model: Model | None = None
    """If the table's runs are of several; speed is then FLOP/s."""


class Table(NamedTuple):
    """A published table."""

    name: str
    source: str
    gpu: str
    model: Model
    rows: tuple[Row, ...]
    strategy: str = "fsdp"
    per_node: int = 8
    gradient_bytes: int = 4
    is_recomputed: bool = False


def mpt_a100(name: str, model: Model, is_recomputed: bool, *rows: tuple[int, ...]) -> Table:
    return Table(
        f"MPT-{name}, A100 40GB", MPT, "a100-40", model, tuple(Row(*row) for row in rows), "fsdp", 8, 2, is_recomputed
    )


MPT_1B, LLAMA_8B = Model(1.316e9, 24, 2048, 2048), Model(8.03e9, 32, 4096, 8192)
KEMPNER_7B, KEMPNER_13B = Model(8.03e9, 32, 4096, 4096), Model(14.84e9, 40, 5120, 4096)
MEGATRON_ROWS = [
    (32, 137, 512, 1, 1.7e9, 24, 2304),
    (64, 138, 512, 2, 3.6e9, 30, 3072),
    (128, 142, 512, 4, 7.5e9, 36, 4096),
]
MEGATRON_ROWS += [(256, 135, 1024, 8, 18.4e9, 40, 6144)]
TABLES = (
    mpt_a100(
        "125M",
        Model(125.3e6, 12, 768, 2048),
        False,
        (8, 136334, 26, 3),
        (16, 130535, 26),
        (32, 127122, 26),
        (64, 125234, 26),
        (128, 123936, 26),
    ),
    mpt_a100("1B", MPT_1B, False, (8, 19271, 8, 8), (16, 19085, 8), (32, 15555, 10), (64, 19001, 10), (128, 18647, 10)),
    mpt_a100(
        "3B",
        Model(2.652e9, 32, 2560, 2048),
        False,
        (8, 10065, 5, 8),
        (16, 9750, 5),
        (32, 9914, 6),
        (64, 9736, 6),
        (128, 9538, 6),
    ),
    mpt_a100(
        "7B",
        Model(6.659e9, 32, 4096, 2048),
        True,
        (8, 3679, 12, 4),
        (16, 3645, 16),
        (32, 3725, 18),
        (64, 3665, 18),
        (128, 3623, 18),
    ),
    mpt_a100(
        "13B", Model(12.854e9, 40, 5120, 2048), True, (16, 1993, 10), (32, 1998, 14), (64, 1976, 16), (128, 1972, 16)
    ),
    Table(
        "MPT-1B, H100",
        MPT,
        "h100",
        MPT_1B,
        (Row(8, 45455, 14), Row(16, 46037, 20), Row(32, 45130, 20), Row(64, 44402, 20)),
    ),
    Table("Llama 3.1 8B, H100", TITAN, "h100", LLAMA_8B, (Row(8, 6667, 2), Row(128, 6514, 2))),
    Table(
        "Llama 3 7B, tp 4, H200",
        KEMPNER,
        "h200",
        KEMPNER_7B,
        tuple(Row(n, speed / n, 4, 2, 4) for n, speed in ((4, 25135), (8, 44299), (16, 82988), (32, 155917))),
        per_node=4,
        is_recomputed=True,
    ),
    Table(
        "Llama 3 13B, tp 4, H200",
        KEMPNER,
        "h200",
        KEMPNER_13B,
        tuple(Row(n, speed / n, 4, 4, 4) for n, speed in ((8, 27345), (16, 53814), (32, 104309))),
        per_node=4,
        is_recomputed=True,
    ),
    Table(
        "GPT 1.7B to 18.4B, A100 80GB",
        MEGATRON,
        "a100-80",
        Model(1.7e9, 24, 2304, 2048),
        tuple(
            Row(n, speed, 4, batch * tp // n // 4, tp, Model(size, layers, width, 2048))
            for n, speed, batch, tp, size, layers, width in MEGATRON_ROWS
        ),
        strategy="ddp",
        is_recomputed=True,
    ),
    Table(
        "Llama 2 7B, H100",
        FERNANDEZ,
        "h100",
        Model(6.74e9, 32, 4096, 4096),
        (Row(128, 1.0, 2), Row(2048, 1 - 0.3722, 2)),
        gradient_bytes=2,
    ),
)


def cluster_of(name: str, per_node: int = 8) -> Cluster:
    gpu = GPUS[name]
    assert gpu.network is not None
    return Cluster(gpu.peak, gpu.link, gpu.network, per_node)


def step_of(table: Table, row: Row, mfu: float) -> StepTime:
    model = row.model or table.model
    work = Work(
        model.parameters,
        model.flops_per_token,
        row.rows * model.seq_len,
        row.passes,
        model.layers,
        model.width,
        table.is_recomputed,
        table.gradient_bytes,
    )
    return step_time(work, cluster_of(table.gpu, table.per_node), table.strategy, row.devices, mfu, row.tensor_parallel)


def speed_of(table: Table, row: Row, mfu: float) -> float:
    """Tokens a second and device, or model FLOP/s in units of 1e12 if the table's models differ."""
    model = row.model or table.model
    tokens = row.rows * row.passes * model.seq_len / row.tensor_parallel / step_of(table, row, mfu).total
    return tokens if row.model is None else tokens * model.flops_per_token / 1e12


def fitted_mfu(table: Table) -> float:
    """The MFU without waits with which the first row is as published."""
    low, high = 0.0, 4.0
    scale = 1.0 if table.rows[0].speed > 1 else table.rows[0].speed / speed_of(table, table.rows[0], 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if scale * speed_of(table, table.rows[0], middle) < table.rows[0].speed else (low, middle)
        )
    return low


def predicted(table: Table) -> list[float]:
    """The speed of each row, the first as published."""
    mfu = fitted_mfu(table)
    speeds = [speed_of(table, row, mfu) for row in table.rows]
    return [table.rows[0].speed * speed / speeds[0] for speed in speeds]
