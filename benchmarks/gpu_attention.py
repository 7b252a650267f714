"""Attention in documents by blocks of a mask and by offsets, beside dense masks, on one GPU: a part of `gpu.py`.

FlexAttention (Dong et al. 2024, arXiv:2412.05496) and torch's `varlen_attn` (FlashAttention-2) are to give what dense
masks give, backward pass included, compile nothing again for other documents, and be faster.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from gpu_models import OBJECTIVES, SHORT
from lab import Facts, Lab, Wrong
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from sslm.models.varlen import by_varlen_attn, offsets_of

LAYOUTS = 3
"""Batches with documents of other lengths, for which nothing is to be compiled again."""
REPEATS = 10
DOCUMENTS = 8
"""In a row, on average."""
WAYS = ("flex", "varlen")
TOLERANCES = {"train/loss": 1e-2, "grad_norm": 5e-2}
"""Relative, of runs in bf16."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(lab: Lab) -> Facts:
    """Blocks of a mask and documents' offsets give outputs, gradients and losses of dense masks, and how fast."""
    facts: Facts = lab.fork("kernels", partial(compare_kernels, lab.sizes.attention)).wait().found
    model = OBJECTIVES["causal_lm, document masks"]
    flags = f"{SHORT} {model} --max_steps 6 --precision bf16-mixed --strategy single --accelerator gpu"
    runs = {way: lab.train(f"by {way}", f"{flags} --attention {way}") for way in ("sdpa", *WAYS)}
    dense = runs.pop("sdpa").wait()
    wrong = [way for way in WAYS if facts[way]["error"] > 3 * facts["error_of_dense"]]
    for way, run in runs.items():
        found = run.wait()
        for name, tolerance in TOLERANCES.items():
            pairs = zip(found.numbers(name), dense.numbers(name), strict=True)
            facts[way][name] = max(abs(ours / exact - 1) for ours, exact in pairs)
            wrong += [] if facts[way][name] < tolerance else [f"{name} by {way}"]
        wrong += [f"{way}, which the run gave up"] if "Warning: --attention" in found.said else []
    if wrong:
        raise Wrong(f"not as dense masks: {', '.join(wrong)}", facts)
    return facts


def compare_kernels(shape: tuple[int, int, int, int]) -> Facts:
    """Compare outputs and gradients of causal attention in documents in bf16 with fp32's, and time all ways.

    Args:
        shape: batch, heads, length, width of a head.
    """
    torch.manual_seed(0)
    compiled = torch.compile(flex_attention, dynamic=False)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    errors: dict[str, float] = {}
    for _ in range(LAYOUTS):
        documents = (torch.rand(shape[0], shape[2], device="cuda") < DOCUMENTS / shape[2]).cumsum(1)
        ways = {"dense": in_documents(documents, shape), **by_kernels(compiled, documents, shape)}
        exact = forward_and_backward(ways["dense"], [tensor.float() for tensor in inputs])
        for name, way in ways.items():
            error = largest_error(forward_and_backward(way, inputs), exact)
            errors[name] = max(error, errors.get(name, 0.0))
    dense = seconds(ways["dense"], inputs)
    facts: Facts = {"error_of_dense": errors["dense"], "recompilations": counters["stats"]["unique_graphs"] - 1}
    for way in WAYS:
        facts[way] = {"error": errors[way], "times_as_fast": round(dense / seconds(ways[way], inputs), 3)}
    return facts


def in_documents(documents: Tensor, shape: tuple[int, int, int, int]) -> Attention:
    """Dense masks; `documents` are the tokens' documents by number, [batch, length]."""
    mask = create_mask(seen_within(documents), shape[0], None, shape[2], shape[2], device="cuda")
    return partial(F.scaled_dot_product_attention, attn_mask=mask)


def by_kernels(
    flex: Callable[..., Tensor], documents: Tensor, shape: tuple[int, int, int, int]
) -> dict[str, Attention]:
    """Return the ways that have no mask of all places."""
    blocks = create_block_mask(seen_within(documents), shape[0], None, shape[2], shape[2], device="cuda")
    offsets = offsets_of(documents)

    def by_offsets(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        joined = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
        seen = by_varlen_attn(*joined, offsets, shape[2], None, (-1, 0))
        return seen.unflatten(0, (shape[0], shape[2])).transpose(1, 2)

    return {"flex": partial(flex, block_mask=blocks), "varlen": by_offsets}


def seen_within(documents: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A token sees those before it in its document."""
    return lambda batch, head, query, key: (query >= key) & (documents[batch, query] == documents[batch, key])


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
