"""Build any architecture of transformers; its first weights depend on the seed and their modules' names only."""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from sslm.models.architecture import HALVES, brief, read_config, set_vocab_size
from sslm.models.blocks import evaluating
from sslm.models.masks import unread_masks
from sslm.models.probe import probe_tokens
from sslm.system.errors import UserError

NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names that configs have for the number of a block's experts."""


def build(config: PreTrainedConfig, auto_class: str, seed: int) -> PreTrainedModel:
    """Build a model with fresh weights; each module's depend on (seed, its name) only."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)  # for what an architecture initialises in its constructors only
        model = construct(config, auto_class)
    draw(named_modules(model), seed)
    model.tie_weights()
    return model


def construct(config: PreTrainedConfig, auto_class: str) -> PreTrainedModel:
    """Call an architecture's constructor, in fp32; only transformers' code and ours is run."""
    model: PreTrainedModel = getattr(transformers, auto_class).from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )
    return model


def on_meta(config: PreTrainedConfig, auto_class: str) -> PreTrainedModel:
    """Build a model without its weights, to count parameters, or to raise UserError if it can't be built."""
    try:
        with torch.device("meta"), no_init_weights():
            model = construct(config, auto_class)
    except Exception as error:  # whatever a constructor trips over, it is about the settings
        raise UserError(f"--model: {config.model_type} can't be built with these settings ({brief(error)})") from None
    model.tie_weights()
    return model


def shallow_model(config: PreTrainedConfig, auto_class: str, seed: int = 0) -> PreTrainedModel:
    """Build a model of the same architecture and widths with few layers, one of each kind among them, and few experts.

    If a model is too large or sharded, this one shows by running what it does: where its head begins, whether it is
    causal, whether it keeps documents apart. An architecture that counts its layers in its own way is built whole.
    """
    try:
        return build(_shallow(config), auto_class, seed)
    except Exception:  # each architecture refuses in its own way
        return build(copy.deepcopy(config), auto_class, seed)


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, half, None) for half in HALVES)):
        if isinstance(part, PreTrainedConfig):
            kinds = list(getattr(part, "layer_types", None) or [])
            enough = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
            for key, value in list(vars(part).items()):  # each layer's kind, and what else is said of each
                if kinds and isinstance(value, list) and len(value) == len(kinds):
                    setattr(part, key, value[:enough])
            for key in ("num_hidden_layers", "num_decoder_layers", "decoder_layers"):
                if isinstance(number := getattr(part, key, None), int):
                    setattr(part, key, min(number, enough))
            for key in NUM_EXPERTS if (getattr(part, "n_group", None) or 1) == 1 else ():
                if isinstance(number := getattr(part, key, None), int):
                    setattr(part, key, min(number, max(getattr(part, "num_experts_per_tok", None) or 2, 2)))
    return config


def check_runs(model: PreTrainedModel, auto_class: str) -> None:
    """Check that a model takes plain tokens: settings may pass the config's checks and still not go together.

    It is tried on the meta device, where that costs nothing; of what can't run there (mixtures of experts) a shallow
    one is built.
    """

    def fails(candidate: PreTrainedModel, device: str) -> str:
        try:
            ids = torch.zeros(1, 4, dtype=torch.long, device=device)
            both = {"decoder_input_ids": ids} if candidate.config.is_encoder_decoder else {}
            if both and isinstance(end := candidate.config.eos_token_id, int):
                ids[:, -1] = end  # by which it classifies a text
            with unread_masks(candidate):
                candidate.train()(input_ids=ids, **both, use_cache=False)
        except Exception as error:
            return brief(error)
        return ""

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if fails(model, "meta") and (why := fails(shallow_model(model.config, auto_class), "cpu")):
            raise UserError(f"--model: {model.config.model_type} with these settings fails on a few tokens ({why})")


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Check that no output depends on a later token: not every architecture with a language-model head is causal."""
    ids = probe_tokens(model)[0, :8]
    changed = torch.cat([ids[:-1], probe_tokens(model, shift=1)[0, len(ids) - 1 : len(ids)]])
    with evaluating(model):
        before, after = (model(input_ids=tokens[None], use_cache=False).logits[0, :-1] for tokens in (ids, changed))
    if (before - after).abs().max() > 1e-3 * before.abs().max():
        why = "is not causal, it sees the tokens it is to predict; take a decoder such as llama or gpt2"
        raise UserError(f"--model.model_type {model.config.model_type}: {why}")


class Named(NamedTuple):
    """A module, and what its first weights depend on."""

    name: str
    module: nn.Module
    owner: PreTrainedModel
    """The model whose rules hold for the module's first weights."""


def draw(modules: Iterable[Named], seed: int) -> None:
    """Draw each module's first weights from (seed, its name), whatever torch's default dtype and device are."""
    defaults = torch.device("cpu"), local_torch_dtype(torch.float32)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), defaults[0], defaults[1]:
        for name, module, owner in modules:
            digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest, "little"))
            owner._init_weights(module)


def named_modules(model: PreTrainedModel) -> Iterator[Named]:
    """All modules, children before parents, as transformers initialises them."""

    def of(module: nn.Module, name: str, owner: PreTrainedModel) -> Iterator[Named]:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child_name, child in module.named_children():
            yield from of(child, f"{name}.{child_name}" if name else child_name, owner)
        yield Named(name, module, owner)

    return of(model, "", model)


def load_pretrained(
    folder: str, config: PreTrainedConfig, auto_class: str, seed: int
) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights of a checkpoint, a folder or a name on the hub, and list the names of those that are new.

    Rows of the vocabulary that only `config` has are drawn from the seed, as transformers draws them.

    Raises:
        UserError: weights are missing, can't be read, or have other shapes.
    """
    wanted, had, pad = config.vocab_size, read_config(folder).vocab_size, config.pad_token_id
    config = copy.deepcopy(config)
    set_vocab_size(config, had)
    if pad is not None and pad >= had:  # a row that comes below: until then an embedding would refuse it
        config.pad_token_id = None
    transformers.logging.set_verbosity_error()  # what is new is told by the caller
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, report = getattr(transformers, auto_class).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except Exception as error:  # missing, cut or foreign files
            raise UserError(f"--model.pretrained {folder}: its weights can't be read ({brief(error)})") from None
        if report["mismatched_keys"]:
            name = sorted(key for key, *_ in report["mismatched_keys"])[0]
            other = f"its weights have other shapes than these settings ask for ({name} first)"
            raise UserError(f"--model.pretrained {folder}: {other}; leave out the --model flags that change shapes")
        new = sorted(report["missing_keys"])
        if wanted != had:
            model.resize_token_embeddings(wanted)
            set_vocab_size(model.config, wanted)
            model.config.pad_token_id = pad
            new.append(f"{wanted - had} rows of the vocabulary")
    return model, new
