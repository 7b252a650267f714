"""sslm's batches and a model in a PyTorch loop of one's own; typed again after a kill, it goes on.

python examples/pytorch_loop.py my.txt out --steps 200
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig

from sslm import CausalLM, DataConfig, DataModule

SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}


def main(text: str, out: Path, steps: int, save_every: int) -> None:
    objective = CausalLM(LlamaConfig(vocab_size=1024, bos_token_id=None, eos_token_id=0, **SHAPE))
    corpus = DataConfig(train=text, tokenizer="bpe:1024")
    data = DataModule(corpus, objective.recipe, seq_len=128, batch_size=16, total_steps=steps)
    network = objective.build(data)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    saved = out / "saved.pt"
    if saved.exists():
        state = torch.load(saved)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        data.load_state_dict(state["data"])  # batches follow on the last ones; other data is refused

    batches = data.train_dataloader() if data.first_step < steps else []  # after the last step comes the next epoch
    for step, batch in enumerate(batches, data.first_step + 1):
        loss = mean_loss(network, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}  loss {loss.item():.6f}", flush=True)
        if step % save_every == 0 or step == steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "data": data.state_dict()}
            out.mkdir(parents=True, exist_ok=True)
            torch.save(state, out / "new.pt")
            (out / "new.pt").replace(saved)

    network.eval()
    with torch.no_grad():
        measured = [(network(**batch["tensors"]).sum(), num_targets(batch)) for batch in data.val_dataloader()]
    nats, targets = torch.tensor(measured, dtype=torch.float64).sum(0)
    print(f"held-out loss {nats / targets:.6f}")
    network.model.save_pretrained(out / "export")  # for transformers
    data.tokenizer.save_pretrained(out / "export")


def mean_loss(network: torch.nn.Module, batch: dict) -> torch.Tensor:
    return network(**batch["tensors"]).sum() / num_targets(batch)


def num_targets(batch: dict) -> torch.Tensor:
    return (batch["tensors"]["labels"] != -100).sum()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save_every", type=int, default=50)
    main(**vars(parser.parse_args()))
