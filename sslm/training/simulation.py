"""One step of the first of many ranks, in one process: torch's fake process group, and tensors without contents.

The network is built, sharded and stepped by the code that trains, so what that refuses is refused here; operations
work out shapes alone, and collectives return at once. What has memory is the model of two layers that training, too,
tries first.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from sslm.data.module import DataModule
from sslm.models.architecture import brief
from sslm.models.build import construct
from sslm.models.weights import weights_of
from sslm.parallel.launch import Launch
from sslm.parallel.planning.even_shares import even_shares
from sslm.parallel.planning.messages import Message, Messages
from sslm.system.errors import UserError
from sslm.training.adversarial import adversarial_losses
from sslm.training.agreement import agree_on_outcome
from sslm.training.average import MovingAverage
from sslm.training.lightning import give_mesh
from sslm.training.module import Objective, reduce_with
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.clipping import clipping_scale, gradient_norm

BUCKETS = (dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * 2**20)
"""Bytes of DDP's first bucket of gradients, and of each that follows, at most."""

LOOKS_AT_CONTENTS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)


class Simulation(NamedTuple):
    """What a step takes of the first rank."""

    weights: int
    """Bytes."""
    gradients: int
    """Bytes, when the most of them are held."""
    optimizer: int
    """Bytes of moments, and of the weights' average if there is one."""
    messages: Counter[Message]
    """How often the first rank takes part in each, on the devices; what hosts agree on (some numbers) is left out."""


def simulate(
    module: Objective,
    model: PreTrainedConfig,
    data: DataModule,
    launch: Launch,
    shapes: Mapping[str, tuple[int, ...]],
    rows_per_rank: int,
) -> Simulation:
    """Take one step as the first rank of a launch.

    Args:
        module: has not been configured yet; it is of no use afterwards.
        shapes: of one row of each of the batch's tensors.
        rows_per_rank: the first rank's share of the batch.

    Raises:
        UserError: it can't be simulated: DeepSpeed, and models that look at what their tensors contain.
    """
    if launch.traits.zero_stage:
        raise UserError(
            f"--simulate: not of DeepSpeed (--strategy {launch.strategy}), whose messages are its own; give "
            "--strategy fsdp"
        )
    if launch.traits.is_pipeline:
        raise UserError(f"--simulate: not of --strategy {launch.strategy}; leave it out, or give --strategy fsdp")
    probe, contentless = module.checked_model(data.config.document_mask), FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake_ranks(launch.world):
            with contentless, torch.device("cpu"), no_init_weights():
                built = construct(model, module.auto_class)
            built.tie_weights()
            if launch.traits.has_mesh:
                sizes = (launch.data_parallel_size, launch.world // launch.data_parallel_size)
                give_mesh(module, init_device_mesh("cpu", sizes, mesh_dim_names=("data_parallel", "tensor_parallel")))
            module.network = module.assemble(built, probe, data, torch.device("cpu"))
            size = module.micro_batch_size or rows_per_rank
            with contentless, even_shares(built, size * shapes["input_ids"][0]):
                rows = {name: torch.empty(size, *shape, dtype=torch.long) for name, shape in shapes.items()}
                return _Step(module, launch, rows).take(rows_per_rank // size)
    except (*LOOKS_AT_CONTENTS, TypeError, NotImplementedError) as error:
        why = f"{model.model_type} can't be run on tensors without contents ({brief(error)})"
        raise UserError(f"--simulate: {why}; leave it out") from error


@contextmanager
def fake_ranks(world: int) -> Iterator[None]:
    """Be the first of so many ranks, whose collectives send nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Step:
    """A step of the first rank."""

    def __init__(self, module: Objective, launch: Launch, rows: dict[str, Tensor]) -> None:
        self.module, self.network, self.launch, self.rows = module, module.network, launch, rows
        optimizer = module.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        self.optimizer = optimizer
        self.optimizer.make_states()
        self.messages, self.gradients = Messages(), 0

    def take(self, num_micro_batches: int) -> Simulation:
        """Take the step, of micro-batches that are alike but for the first and the last."""
        last = num_micro_batches - 1
        with self.messages:
            for number, times in {0: 1, 1: last - 1, last: 1}.items():
                if times > 0:
                    self.messages.times = times
                    self._micro_batch(is_last=number == last)
            self.messages.times = 1
            self._update()
        states = [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]
        averages: list[Tensor] = []
        if (decay := self.module.optim.average_decay) is not None:
            averages += MovingAverage(weights_of(self.network), decay).tensors.values()
        weights = bytes_here(self.network.parameters())
        return Simulation(weights, self.gradients, bytes_here([*states, *averages]), self.messages.counted)

    def _micro_batch(self, *, is_last: bool) -> None:
        arrived: list[nn.Parameter] = []
        weights: list[Any] = list(self.optimizer.parameters())
        hooks = [weight.register_post_accumulate_grad_hook(arrived.append) for weight in weights]

        def backward(loss: Tensor, is_last_pass: bool) -> None:
            arrived.clear()
            if isinstance(self.network, FSDPModule):
                reduce_with(self.network, is_last and is_last_pass, self.module.reduce_gradients)
            loss.backward()  # type: ignore[no-untyped-call]

        dtype = torch.float16 if self.launch.precision == "16-mixed" else torch.bfloat16
        is_mixed = self.launch.autocasts_to_bf16 or self.launch.precision == "16-mixed"
        with torch.autocast("cpu", dtype, cache_enabled=False) if is_mixed else nullcontext():
            if self.module.robust.adversarial is not None:
                adversarial_losses(self.network, self.rows, self.module.robust, 0, backward)
            else:
                backward(self.network(**self.rows).sum(), True)
        for hook in hooks:
            hook.remove()
        self.gradients = max(self.gradients, bytes_here(_gradients(self.network)))
        if is_last and not self.launch.traits.has_mesh:
            reduce_in_buckets(arrived)

    def _update(self) -> None:
        norm = gradient_norm(self.optimizer.parameters())
        if self.module.anomaly_detector.is_on:
            agree_on_outcome(norm.double(), norm, is_leader=True)
        if (limit := self.module.optim.clip_norm) is not None:
            self.optimizer.grad_scale = clipping_scale(norm, limit)
        self.optimizer.step()


def reduce_in_buckets(arrived: list[nn.Parameter]) -> None:
    """All-reduce gradients as DDP does, which can't take tensors without contents: in buckets, as they arrived."""
    if not arrived or dist.get_world_size() == 1:
        return
    cut: Any = dist._compute_bucket_assignment_by_size
    for bucket in cut(arrived, list(BUCKETS), [False] * len(arrived))[0]:
        wide = torch.promote_types(arrived[bucket[0]].dtype, torch.float32)
        dist.all_reduce(torch.empty(sum(arrived[number].numel() for number in bucket), dtype=wide))


def bytes_here(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors, or of this rank's parts of them."""
    here = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.itemsize for tensor in here)


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    """Yield the gradients that are held, whole ones that FSDP2 has not reduced yet among them."""
    yield from (parameter.grad for parameter in network.parameters() if parameter.grad is not None)
    for module in network.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group) is not None:
            waiting = [parameter.unsharded_accumulated_grad for parameter in group.fsdp_params]
            yield from (gradient for gradient in waiting if gradient is not None)
