"""An exported Llama as a GGUF file, for llama.cpp and what is built on it; weights in fp32.

pip install gguf
python examples/to_gguf.py runs/mine/export mine.gguf
llama-cli -m mine.gguf -p "Once upon a time"

llama.cpp's own convert_hf_to_gguf.py knows tokenizers by their digest, and so none that sslm has trained.
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(export: Path, out: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    if model.config.model_type != "llama":
        sys.exit(f"{export}: is a {model.config.model_type}; this example writes Llamas")
    writer = gguf.GGUFWriter(out, "llama")
    add_shape(writer, model.config)
    add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        if name not in tied:
            writer.add_tensor(names.get_name(name, (".weight",)), permuted(name, tensor.float(), model.config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter, config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer) -> None:
    """Byte-level BPE that splits text as GPT-2's does, as all tokenizers that sslm trains."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    splits = described["pre_tokenizer"]
    if described["model"]["type"] != "BPE" or splits.get("type") != "ByteLevel" or not splits["use_regex"]:
        sys.exit("the tokenizer is not byte-level BPE as GPT-2's; llama.cpp's convert_hf_to_gguf.py may know it")
    special = {token["id"] for token in described["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    )
    writer.add_add_bos_token(False)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_bos_token_id(tokenizer.eos_token_id)


def permuted(name: str, tensor: torch.Tensor, config) -> torch.Tensor:
    """Rows of queries and keys as llama.cpp rotates them: pairs side by side, where transformers has two halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor.contiguous()
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
