"""Recomputing activations changes memory, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy
from transformers import BertConfig, LlamaConfig, PreTrainedModel, T5Config

from sslm.models.blocks import blocks
from sslm.models.build import build
from sslm.parallel.recompute import keep, parse_recompute, recompute
from sslm.system.errors import UserError

KINDS: dict[str, Any] = {
    "llama": lambda p: (
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=p,
        ),
        "AutoModelForCausalLM",
    ),
    "bert": lambda p: (
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_dropout_prob=p,
            attention_probs_dropout_prob=p,
        ),
        "AutoModelForMaskedLM",
    ),
    "t5": lambda p: (
        T5Config(
            vocab_size=50,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=p,
            decoder_start_token_id=0,
        ),
        "AutoModelForSeq2SeqLM",
    ),
}


@pytest.fixture(autouse=True)
def budget_as_before() -> Iterator[None]:
    with functorch.patch(activation_memory_budget=1.0):
        yield


def make(kind: str, how: str, dropout: float = 0.0) -> PreTrainedModel:
    model = build(*KINDS[kind](dropout), seed=0).train()
    recompute(model, parse_recompute(how))
    return model


class Living(TorchDispatchMode):
    """Bytes of what was computed under it and is still held by anything."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def num_bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def step(model: PreTrainedModel) -> tuple[Tensor, int]:
    """All gradients in one, and bytes held between forward and backward pass."""
    torch.manual_seed(1)
    ids = torch.arange(48).reshape(2, 24)
    with Living() as living:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    held = living.num_bytes()
    torch.manual_seed(2)  # the backward pass draws what the forward pass drew, wherever the generator is
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), held


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_are_the_same_and_less_is_held_the_more_is_computed_again(kind: str, dropout: float) -> None:
    found = {how: step(make(kind, how, dropout)) for how in ("none", "selective", "full")}
    for how in ("selective", "full"):
        torch.testing.assert_close(found[how][0], found["none"][0], rtol=1e-5, atol=1e-7)
    held = {how: num_bytes for how, (_, num_bytes) in found.items()}
    assert held["none"] > 1.1 * held["selective"] > 1.1 * 1.5 * held["full"], held


def num_saved(model: PreTrainedModel) -> tuple[Tensor, int]:
    """All gradients in one, and the bytes that autograd saves for backward (no dispatch mode sees them, compiled)."""
    ids = torch.arange(48).reshape(2, 24)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return gradients, sum(size for place, size in saved.items() if place not in weights)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_blocks_give_the_same_gradients_and_save_less() -> None:
    exact, _ = num_saved(make("bert", "none"))
    saved = {}
    for how in ("none", "selective", "full", "budget:0.3"):
        torch._dynamo.reset()
        model = make("bert", how)
        for block in blocks(model):
            block.compile(fullgraph=True, backend="aot_eager_decomp_partition")  # all of it but for making kernels
        gradients, saved[how] = num_saved(model)
        torch.testing.assert_close(gradients, exact, rtol=1e-4, atol=1e-6)
    assert saved["none"] > 1.1 * saved["selective"] > 1.1 * 1.1 * saved["budget:0.3"], saved
    assert saved["selective"] > 1.5 * saved["full"], saved


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("how", ["selective", "full"])
def test_a_recomputed_block_of_t5_is_one_graph(how: str) -> None:
    torch._dynamo.reset()
    model = make("t5", how)
    for block in blocks(model):
        block.compile(fullgraph=True, backend="eager")
    gradients, _ = num_saved(model)
    exact, _ = num_saved(make("t5", "none"))
    torch.testing.assert_close(gradients, exact)


def test_a_budget_ends_with_the_model_it_was_for() -> None:
    make("bert", "budget:0.3")
    assert functorch.activation_memory_budget == 0.3
    make("bert", "none")
    assert functorch.activation_memory_budget == 1.0


def test_attention_is_kept_unless_it_draws() -> None:
    aten = torch.ops.aten
    query = torch.empty(1, 1, 2, 8)
    flash, efficient = (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
    )
    for op, arguments, named, policy in (
        (flash, (query, query, query), {}, CheckpointPolicy.MUST_SAVE),
        (flash, (query, query, query, 0.0, True), {"scale": 0.1}, CheckpointPolicy.MUST_SAVE),
        (flash, (query, query, query, 0.1), {}, CheckpointPolicy.PREFER_RECOMPUTE),
        (efficient, (query, query, query, None, True), {"dropout_p": 0.1}, CheckpointPolicy.PREFER_RECOMPUTE),
        (efficient, (query, query, query, None, True, 0.1), {}, CheckpointPolicy.PREFER_RECOMPUTE),
        (torch.ops.higher_order.flex_attention, (query, query, query), {}, CheckpointPolicy.MUST_SAVE),
        (aten.gelu.default, (query,), {}, CheckpointPolicy.PREFER_RECOMPUTE),
    ):
        assert keep(None, op, *arguments, **named) == policy


@pytest.mark.parametrize("how", ["none", "selective", "full", "budget:0.5"])
def test_ways_that_exist_are_taken(how: str) -> None:
    parse_recompute(how)


@pytest.mark.parametrize(
    "how", ["", "ful", "budget", "budget:", "budget:half", "budget:0", "budget:1", "budget:nan", "0.5"]
)
def test_others_are_refused_and_told_what_there_is(how: str) -> None:
    with pytest.raises(
        UserError, match=r"^--activation_checkpointing .*: expected none, selective, full, or budget:SHARE"
    ):
        parse_recompute(how)
