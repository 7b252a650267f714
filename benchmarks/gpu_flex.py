"""FlexAttention beside dense masks, on one GPU: a part of `gpu.py`.

Its blocks of a mask (Dong et al. 2024, arXiv:2412.05496) stay off in sslm until a GPU has shown here that they give
what dense masks give, backward pass included, and are faster; the part's line then says `may_switch_on`.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_models import OBJECTIVES, SHORT
from lab import Facts, Lab, Wrong, plainly
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sslm.models import masks

LAYOUTS = 3
"""Batches with documents of other lengths, for which nothing is to be compiled again."""
REPEATS = 10
DOCUMENTS = 8
"""In a row, on average."""

Allowed = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(documents: Tensor) -> Allowed:
    return lambda batch, head, query, key: query >= key


def causal_in_documents(documents: Tensor) -> Allowed:
    """Let a token see those before it in its document; `documents` are their numbers, [batch, length]."""
    return lambda batch, head, query, key: (query >= key) & (documents[batch, query] == documents[batch, key])


MASKS = {"causal": causal, "documents": causal_in_documents}


def flex(lab: Lab) -> Facts:
    """FlexAttention's blocks give outputs, gradients and losses of dense masks; whether they may be switched on."""
    facts: Facts = lab.fork("flex", partial(compare_kernels, lab.sizes.attention)).wait().found
    model = OBJECTIVES["causal_lm, document masks"]
    flags = f"{SHORT} {model} --max_steps 6 --precision 32 --strategy single --accelerator gpu"
    dense = lab.train("dense masks", flags)
    blocks = lab.train("masks of blocks", flags, watch=with_blocks).wait()
    pairs = {
        name: zip(blocks.numbers(name), dense.wait().numbers(name), strict=True) for name in ("train/loss", "grad_norm")
    }
    facts["run"] = {name: max(abs(ours / exact - 1) for ours, exact in both) for name, both in pairs.items()}
    wrong = [name for name in MASKS if facts[name]["error"] > 3 * facts[name]["error_of_dense"]]
    wrong += [f"the run's {name}" for name, difference in facts["run"].items() if not difference < 1e-3]
    wrong += [] if blocks.found else ["the run, which took no blocks"]
    if wrong:
        raise Wrong(f"not as dense masks: {', '.join(wrong)}", facts | {"may_switch_on": False})
    is_faster = facts["documents"]["times_as_fast"] > 1
    return facts | {"may_switch_on": is_faster and not facts["recompilations"]}


def compare_kernels(shape: tuple[int, int, int, int]) -> Facts:
    """Compare outputs and gradients in bf16 with fp32's, and time both ways.

    Args:
        shape: batch, heads, length, width of a head.
    """
    torch.manual_seed(0)
    compiled = torch.compile(flex_attention, dynamic=False)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    facts: Facts = {}
    for name, mask in MASKS.items():
        for _ in range(LAYOUTS):
            ends = torch.rand(shape[0], shape[2], device="cuda") < DOCUMENTS / shape[2]
            size = (mask(ends.cumsum(1)), shape[0], None, shape[2], shape[2])
            by_blocks = partial(compiled, block_mask=create_block_mask(*size, device="cuda"))
            by_matrix = partial(F.scaled_dot_product_attention, attn_mask=create_mask(*size, device="cuda"))
            exact = forward_and_backward(by_matrix, [tensor.float() for tensor in inputs])
            ours, dense = (forward_and_backward(way, inputs) for way in (by_blocks, by_matrix))
        facts[name] = {
            "error": largest_error(ours, exact),
            "error_of_dense": largest_error(dense, exact),
            "times_as_fast": round(seconds(by_matrix, inputs) / seconds(by_blocks, inputs), 3),
        }
    return facts | {"recompilations": counters["stats"]["unique_graphs"] - len(MASKS)}


def forward_and_backward(attention: Attention, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of query, key and value; the last of the inputs is the output's gradient."""
    *qkv, of_output = inputs
    qkv = [tensor.detach().requires_grad_() for tensor in qkv]
    output = attention(*qkv)
    return [output.detach(), *torch.autograd.grad(output, qkv, of_output)]


def largest_error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest number of each tensor."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, exact, strict=True))


def seconds(attention: Attention, inputs: list[Tensor]) -> float:
    """Return the median of a forward and a backward pass."""
    taken = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        forward_and_backward(attention, inputs)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def with_blocks(arguments: list[str]) -> int:
    """Train with masks of blocks, in this process alone; return how often FlexAttention was called."""
    masks.TAKES_BLOCKS_ON_GPUS = True
    attention, calls = ALL_ATTENTION_FUNCTIONS[masks.FLEX], itertools.count()

    def counted(*args: Any, **kwargs: Any) -> Any:
        next(calls)
        return attention(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[masks.FLEX] = counted
    plainly(arguments)
    return next(calls)
