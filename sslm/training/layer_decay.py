"""Layer-wise decay of the learning rate: what lies deeper changes less.

After Howard & Ruder 2018, arXiv:1801.06146, as in ELECTRA and BEiT: with n blocks and a decay d, what comes after the
blocks has the whole rate, block i (from 1) the rate times d^(n + 1 - i), and embeddings d^(n + 1). An encoder and a
decoder count their blocks apart. A head that shares its weights with the embeddings is an embedding.
"""

from torch import nn
from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.system.errors import UserError


def rates(model: PreTrainedModel, decay: float) -> dict[nn.Parameter, float]:
    """Map each parameter of a model to what its learning rate is multiplied by.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    >>> llama = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))
    >>> found = {name.split(".weight")[0]: rates(llama, 0.5)[p] for name, p in llama.named_parameters()}
    >>> found["model.embed_tokens"], found["model.layers.0.mlp.up_proj"], found["model.norm"], found["lm_head"]
    (0.125, 0.25, 1.0, 1.0)
    """
    stacks = _stacks(model)
    deepest = decay ** (max(map(len, stacks), default=0) + 1)
    found: dict[nn.Parameter, float] = {}
    for stack in stacks:
        for number, block in enumerate(stack):
            for parameter in block.parameters():
                found.setdefault(parameter, decay ** (len(stack) - number))
    embeddings = _embeddings(model)
    for parameter in model.parameters():
        found.setdefault(parameter, deepest if parameter in embeddings else 1.0)
    return found


def check_layer_decay(model: PreTrainedModel) -> None:
    """Raise UserError if it is not known which layers of a model lie deeper."""
    if not blocks(model):
        what = f"{model.config.model_type}'s layers can't be told apart"
        raise UserError(f"--optim.layer_decay: {what}; leave it out")


def _stacks(model: PreTrainedModel) -> list[list[nn.Module]]:
    """List the blocks of the encoder and of the decoder, or of the only stack; blocks inside blocks left out."""
    known = set(blocks(model))
    inner = {part for block in known for part in block.modules() if part is not block}
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if module in known and module not in inner:
            stacks.setdefault(name.rpartition(".")[0], []).append(module)
    return list(stacks.values())


def _embeddings(model: PreTrainedModel) -> set[nn.Parameter]:
    """What turns tokens and places into vectors: embeddings, and what belongs to them by its name, such as a norm."""
    head = model.get_output_embeddings()
    apart = set() if head is None else set(head.parameters())  # some call it embed_out
    found = {
        parameter
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or "emb" in f"{name}.{own}"
    }
    looked_up = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return (found - apart) | looked_up
