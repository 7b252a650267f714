"""Text that goes on, beside plain `model.generate` of the same settings: CPU seconds and their ratio, in turns.

    OMP_NUM_THREADS=1 python benchmarks/generate.py --rounds 9

Fresh weights of a Llama of 10M parameters; 8 prompts of different lengths; 128 new tokens; nothing ends early.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, PreTrainedModel

from sslm.models.build import build
from sslm.models.generation.draws import Sampling
from sslm.models.generation.writing import Prompt, Writer, padded

VOCAB, PROMPTS, NEW_TOKENS = 8192, 8, 128
WAYS: dict[str, tuple[Sampling, int, dict[str, Any]]] = {
    "greedy": (Sampling(), 1, {"do_sample": False}),
    "drawn": (Sampling(0.8), 1, {"do_sample": True, "temperature": 0.8, "top_k": 0}),
    "top_k 50": (Sampling(0.8, top_k=50), 1, {"do_sample": True, "temperature": 0.8, "top_k": 50}),
    "top_p 0.9": (Sampling(0.8, top_p=0.9), 1, {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9}),
    "4 beams": (Sampling(), 4, {"do_sample": False, "num_beams": 4}),
}


def llama() -> PreTrainedModel:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, max_position_embeddings=512, **sizes)
    return build(config, "AutoModelForCausalLM", 0).eval()


def contestants(way: str) -> dict[str, Callable[[], object]]:
    """What is timed: each with a model of its own."""
    sampling, num_beams, how = WAYS[way]
    prompts = [Prompt(n, [(7 * n + k) % 8000 + 5 for k in range(5 + 9 * n)]) for n in range(PROMPTS)]
    model, plain = llama(), llama()
    writer = Writer(model, str, sampling, [VOCAB - 1], VOCAB - 1, max_new_tokens=NEW_TOKENS, num_beams=num_beams)
    ids, mask = padded([prompt.ids for prompt in prompts], on_left=True)
    how |= {"max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "suppress_tokens": [VOCAB - 1]}
    return {
        "sslm": lambda: writer.write(prompts),
        "model.generate": lambda: plain.generate(ids, attention_mask=mask, **how),  # type: ignore[operator]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=WAYS, action="append")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print("| | sslm, CPU s | model.generate, CPU s | ratio |\n|---|---|---|---|")
    for way in options.only or WAYS:
        taken: dict[str, list[float]] = {"sslm": [], "model.generate": []}
        running = contestants(way)
        for turn in range(options.rounds + 1):
            for name in list(running)[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                running[name]()
                taken[name].append(time.process_time() - start)
        pairs = list(zip(taken["sslm"][1:], taken["model.generate"][1:], strict=True))  # the first warms up
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(seconds[1:]) for seconds in taken.values())
        print(f"| {way} | {ours:.2f} | {theirs:.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
