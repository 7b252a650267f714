"""An estimate of activations by formula, for architectures that can't be measured."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.parallel.planning.kept import Activations, Kept


def by_formula(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], *, bytes_per_number: int, casts: bool = False
) -> Activations:
    """Estimate the activations of a training step.

    Per token and block, 13 numbers of the model's width and 4 of the feed-forward layer's, or of those experts' that
    the token is sent to; per logit, two in fp32. After Korthikanti et al. 2022, arXiv:2205.05198, without the
    attention's matrix, and made to agree with a measured Llama. Under autocast (`casts`) four of the 13 are fp32, and
    each weight of the blocks has its copy.
    """
    config = model.config
    tokens, width = shapes["input_ids"][0], config.hidden_size
    feed_forward = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 4 * width)
    feed_forward *= getattr(config, "num_experts_per_tok", None) or 1
    layers, stream = max(len(blocks(model)), 1), 4.0 * tokens * width
    of_block = float(tokens * (bytes_per_number * (13 * width + 4 * feed_forward) + casts * 8 * width))
    copies = casts * sum(float(bytes_per_number * p.numel()) for block in blocks(model) for p in block.parameters())
    products = float(bytes_per_number * tokens * (5 * width + 3 * feed_forward))
    head = 8.0 * shapes["labels"][0] * config.vocab_size
    inside, products = layers * of_block, layers * products

    def kept(rows: int) -> Kept:
        in_blocks, of_largest = rows * inside + copies, rows * of_block + copies / layers
        inputs = rows * layers * stream
        return Kept(2 * rows * stream, inputs, 0.0, in_blocks, of_largest, rows * products, in_blocks, rows * head)

    return Activations(kept(1), kept(2), has_head=True)
