"""Perplexity by `sslm evaluate`, text read and tokenised, beside a bare loop over its batches: CPU seconds, in turns.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py --rounds 5

Fresh weights of a Llama of 10M parameters and a vocabulary of 8,192, on the documentation that this Python carries. The
bare loop has the batches ready, calls the model and takes the loss of all places.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from sslm.data.corpus.embedded import embedded_documents
from sslm.data.corpus.tokenizer import end_of_document
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.token_documents import AS_PREPARED, TextOptions, open_documents
from sslm.evaluation.journal import Journal
from sslm.evaluation.measuring import BATCH_TOKENS, Measuring
from sslm.evaluation.methods import method_of
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.models.scoring import causal_rows, in_batches, padded
from sslm.runs.trained import open_trained

SEQ_LEN = 512


def contestants(folder: Path, documents: int) -> dict[str, Callable[[], object]]:
    """What is timed: each with a model of its own, opened beforehand."""
    texts = list(islice(embedded_documents(), documents))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in texts))
    tokenizer = train_bpe(islice(embedded_documents(), 2000), 8192)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8192, tie_word_embeddings=True, max_position_embeddings=SEQ_LEN, **sizes)
    build(config, "AutoModelForCausalLM", 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trained, plain = open_trained(str(folder)), open_trained(str(folder))
    text = open_documents(str(folder / "text.jsonl"), "text", tokenizer, TextOptions(folder))
    method = method_of(trained, AS_PREPARED, None, None)
    one = Measuring(trained, LanguageModel(trained.model, 1).eval(), Journal(None))
    rows = causal_rows(text.pieces(), [end_of_document(tokenizer)], SEQ_LEN, SEQ_LEN // 2)
    batches = [padded(batch, False) for batch in in_batches(rows, None, BATCH_TOKENS["cpu"])]
    return {"sslm": lambda: one.on_text(text, method), "bare loop": lambda: bare(plain.model, batches)}


@torch.inference_mode()
def bare(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    total = 0.0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        total += F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").item()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=30)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {"sslm": [], "bare loop": []}
    with tempfile.TemporaryDirectory() as folder:
        running = contestants(Path(folder), options.documents)
        for turn in range(options.rounds + 1):
            for name in list(running)[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                running[name]()
                taken[name].append(time.process_time() - start)
    pairs = list(zip(taken["sslm"][1:], taken["bare loop"][1:], strict=True))  # the first warms up
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    print(f"sslm {ours:.2f} CPU s, bare loop {theirs:.2f} CPU s, speed {ratio:.3f} of the bare loop")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
