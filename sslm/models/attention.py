"""How a model computes attention, and which way is best for its rows on its devices."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sslm.models.blocks import evaluating
from sslm.models.document_check import probed_logits
from sslm.models.masks import FLEX, parameters
from sslm.models.probe import probe_tokens
from sslm.models.varlen import FLASH, VARLEN, has_flash_attn, offsets_of, takes_offsets, tell_documents
from sslm.system.errors import UserError, one_line
from sslm.system.terminal import say

Attention = Literal["sdpa", "flex", "varlen", "flash"]
"""torch's SDPA, with an explicit mask if anything is hidden but the future; FlexAttention, with the blocks of a mask in
which there is something; no mask but where documents begin, to torch's kernel or to flash-attn's."""

IMPLEMENTATIONS: dict[Attention, str] = {"flex": FLEX, "varlen": VARLEN, "flash": FLASH}
"""Their names in transformers, where sdpa is what models are built with, if their architecture has it."""

BY_OFFSETS = ("varlen", "flash")
"""Those that are told where documents begin."""

DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "attn_dropout")
"""Names that configs have for the dropout of attention's weights."""

LAYERS_BY_OFFSETS = frozenset({"full_attention", "sliding_attention"})
"""Of `config.layer_types`, those that need nothing but documents and a window."""

LARGEST_HEAD = 256
"""Largest head_dim of FlashAttention-2."""

WINDOW = 24
"""Tokens that each one sees when a kernel is tried."""


@dataclass(frozen=True)
class Surroundings:
    """What decides between ways to compute attention, beside the model."""

    device_type: str
    has_documents: bool
    """Whether rows hold several documents that are to keep apart."""
    seq_len: int
    in_16_bits: bool
    """Whether matrices are multiplied in bf16 or fp16."""
    is_ampere: bool = True
    """Whether the GPU is of NVIDIA's generation of 2020 or later."""
    shares_rows: bool = False
    """Whether devices share each row, for which torch exchanges SDPA's keys and values."""
    is_pipeline: bool = False
    """Whether devices have some of the blocks each, which work on several micro-batches in turn."""


def choose_attention(model: PreTrainedModel, around: Surroundings) -> Attention:
    """Return what `--attention auto` means.

    SDPA, which needs no mask if the future alone is hidden; for documents and windows on GPUs offsets, if the model
    takes them. On CPUs explicit masks stay: offsets are faster if documents have some hundreds of tokens, slower if
    they are short.
    """
    by_offsets = _needs_masks(model, around) and why_not("varlen", model, around) is None
    return "varlen" if by_offsets else "sdpa"


def _needs_masks(model: PreTrainedModel, around: Surroundings) -> bool:
    """Whether SDPA would get explicit masks on a GPU, of documents or of a window."""
    if around.device_type != "cuda" or "segment_ids" in parameters(model):
        return False
    window = getattr(model.config, "sliding_window", None)
    return around.has_documents or (window is not None and window < around.seq_len)


def why_not(attention: Attention, model: PreTrainedModel, around: Surroundings) -> str | None:
    """Say why a model can't compute attention so; None if it can, as far as its config tells."""
    if attention == "sdpa":
        return None
    config = model.config
    if around.shares_rows:
        return "with --context_parallel_size it is SDPA alone that devices do together"
    if around.is_pipeline:
        return "has not been tried with --strategy pp"
    if "segment_ids" in parameters(model):
        return f"{config.model_type} has no attention"
    if any(getattr(config, name, 0) for name in DROPOUTS):
        dropout = next(name for name in DROPOUTS if getattr(config, name, 0))
        return f"it has no dropout, and --model.{dropout} is {getattr(config, dropout)}"
    if attention == "flex":
        return _why_not_blocks(model, around)
    return _why_not_offsets(model) or _why_not_kernel(attention, model, around)


def _why_not_blocks(model: PreTrainedModel, around: Surroundings) -> str | None:
    if not can_take_blocks(model):
        return f"{model.config.model_type}'s attention has more than a mask, or no FlexAttention"
    if around.device_type != "cuda":
        return "FlexAttention trains on GPUs only"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention needs Triton"
    return None if around.is_ampere else "FlexAttention needs a GPU from Ampere on (A100, RTX 30 and later)"


def can_take_blocks(model: PreTrainedModel) -> bool:
    """Whether an architecture has FlexAttention, and nothing learned beside the mask."""
    return bool(model._supports_flex_attn) and not _learns_beside_masks(model)


def _learns_beside_masks(model: PreTrainedModel) -> bool:
    """Whether attention has a learned bias (T5) or sinks (gpt-oss)."""
    has_bias = hasattr(model.config, "relative_attention_num_buckets")
    return has_bias or any(name.endswith(".sinks") for name, _ in model.named_parameters())


def _why_not_offsets(model: PreTrainedModel) -> str | None:
    config = model.config
    if config.is_encoder_decoder:
        return f"{config.model_type} has a decoder that reads its encoder, for which there are masks only"
    has_cap = getattr(config, "attn_logit_softcapping", None) is not None
    others = set(getattr(config, "layer_types", None) or []) - LAYERS_BY_OFFSETS
    if not model._supports_flash_attn or has_cap or others or _learns_beside_masks(model):
        return f"{config.model_type}'s attention has more than documents and windows"
    return None


def _why_not_kernel(attention: Attention, model: PreTrainedModel, around: Surroundings) -> str | None:
    if around.device_type != "cuda":
        return "flash-attn needs a GPU" if attention == "flash" else None
    if attention == "flash" and not has_flash_attn():
        return "the package flash-attn is not installed"
    if not around.in_16_bits:
        return "its kernel multiplies in bf16 or fp16"
    if not around.is_ampere:
        return "its kernel needs a GPU from Ampere on (A100, RTX 30 and later)"
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return None if head_dim <= LARGEST_HEAD else f"its kernel takes a head_dim of {LARGEST_HEAD} at most"


def check_attention(attention: Attention, model: PreTrainedModel, around: Surroundings) -> None:
    """Check that a model can compute attention as asked for.

    Raises:
        UserError: it can't.
    """
    if (why := why_not(attention, model, around)) is not None:
        raise UserError(f"--attention {attention}: {why}; leave it out, or give --attention sdpa")


def attention_in_words(attention: Attention, model: PreTrainedModel, device_type: str, has_documents: bool) -> str:
    """What computes attention, and from what."""
    if "segment_ids" in parameters(model):
        return "none; states begin anew with each document" if has_documents else "none"
    if attention == "varlen" and device_type == "cpu":
        return "torch's SDPA, a document at a time"
    if attention == "varlen":
        return "torch's FlashAttention-2, by where documents begin"
    if attention == "flash":
        return "flash-attn, by where documents begin"
    if attention == "flex":
        return "FlexAttention, by a mask's blocks"
    kind = model.config._attn_implementation
    name = "torch's SDPA" if kind == "sdpa" else f"{kind}, as {model.config.model_type}'s is not SDPA's"
    return name + (", explicit masks of documents" if has_documents else "")


def masks_because(attention: Attention, model: PreTrainedModel, around: Surroundings) -> str | None:
    """Say why SDPA gets explicit masks on a GPU, which is slow; None if it doesn't, or if that was asked for."""
    return why_not("varlen", model, around) if attention == "sdpa" and _needs_masks(model, around) else None


# ------------------------------------------------------------------------------------------------ is it so?


def use(attention: Attention, model: PreTrainedModel) -> None:
    """Let a model compute attention so."""
    if attention in IMPLEMENTATIONS:
        model.set_attn_implementation(IMPLEMENTATIONS[attention])


def tried(attention: Attention, model: PreTrainedModel, device: torch.device) -> Attention:
    """Return what is to compute attention: what was chosen, or sdpa with a warning if a trial shows that it is wrong.

    Args:
        attention: the choice.
        model: one of the architecture, with weights, on the CPU.
        device: where it is to be trained.
    """
    if attention not in BY_OFFSETS:
        return attention
    why = differs_by_offsets(model)
    if why is None and device.type == "cuda":
        why = kernel_differs(attention, device)
    if why is None:
        return attention
    say(f"Warning: --attention {attention}: {why}; torch's SDPA computes it, with explicit masks")
    return "sdpa"


@torch.no_grad()
def differs_by_offsets(model: PreTrainedModel) -> str | None:
    """Say how a model's logits by offsets differ from those by explicit masks; None if they don't.

    Whether an architecture hands on all that its attention needs is tried on two documents, on the CPU.
    """
    before, ids = model.config._attn_implementation, probe_tokens(model)
    segments = (torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] // 3).long()[None]
    try:
        with evaluating(model):
            explicit = probed_logits(model, ids, segments)
            model.set_attn_implementation(VARLEN)
            if not takes_offsets(model):
                return "its attention can't be exchanged"
            tell_documents(ids, segments, None)
            moved = (probed_logits(model, ids, segments) - explicit).abs().max()
    except Exception as error:  # each architecture has its own way not to take offsets
        return f"{type(error).__name__}: {one_line(error)}"
    finally:
        model.set_attn_implementation(before)
    return None if moved <= 1e-4 * explicit.abs().max() else "logits differ from those of explicit masks"


def kernel_differs(attention: Attention, device: torch.device) -> str | None:
    """Say how a kernel's attention and its gradients differ from SDPA's under an explicit mask; None if they don't."""
    segments, place = torch.tensor([[0] * 40 + [1] * 24, [0] * 64], device=device), torch.arange(64, device=device)
    is_near = (place[:, None] - place < WINDOW) & (place[:, None] >= place)
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & is_near
    numbers = torch.randn(3, 2, 2, 64, 64, generator=torch.Generator().manual_seed(0), device="cpu")
    query, key, value = states = [part.to(device, torch.bfloat16).requires_grad_() for part in numbers]
    attend = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATIONS[attention]]
    try:
        tell_documents(segments, None, offsets_of(segments))
        ours = attend(nn.Module(), query, key, value, None, is_causal=True, sliding_window=WINDOW)[0].transpose(1, 2)
        found = [ours, *torch.autograd.grad(ours.sum(), states)]
    except Exception as error:  # a kernel that this GPU, or this build of torch, does not have
        return f"{type(error).__name__}: {one_line(error)}"
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    wanted = [theirs, *torch.autograd.grad(theirs.sum(), states)]
    alike = all(torch.allclose(*pair, rtol=0.05, atol=0.05) for pair in zip(found, wanted, strict=True))
    return None if alike else "its kernel differs from SDPA on this device"
