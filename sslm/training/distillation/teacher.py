"""A teacher: a trained model that is opened, checked against the student, and asked at each micro-batch.

It has no gradients and no optimizer states, is in no checkpoint but by its fingerprint, and computes in a number format
of its own, whatever the student's. Under fsdp and hsdp its weights are shared by the same devices.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from sslm.config.distill import DistillConfig
from sslm.data.corpus.tokenizer import Tokenizer, identity
from sslm.data.module import DataModule
from sslm.models.divergence import Live, Mix, losses_beside
from sslm.models.document_check import check_documents
from sslm.models.linear_head import suits
from sslm.models.masks import num_positions
from sslm.models.network import Network
from sslm.models.task import network_for
from sslm.parallel.parallelize import forget_gathered, shard_frozen
from sslm.runs.trained import Trained, open_trained
from sslm.system.errors import UserError

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


class Distillation:
    """What a student learns beside its own objective.

    Args:
        teacher: the model to learn from, whole, with its weights on the CPU.
        how: the loss.
        replicas: groups of devices that hold all weights among them, as for the student.
    """

    def __init__(self, teacher: PreTrainedModel, how: DistillConfig, replicas: int = 1) -> None:
        self.how, self.replicas = how, replicas
        self._teacher = teacher
        self.fingerprint = fingerprint(teacher)
        """What a checkpoint keeps, to refuse to go on with another teacher."""
        self._network: Network

    def prepare(self, data: DataModule | None, mesh: DeviceMesh | None, device: torch.device) -> None:
        """Put the teacher where the student is, sharded like it if there is a mesh."""
        model: Any = self._teacher.eval().requires_grad_(False)
        model.to(DTYPES.get(self.how.precision, model.dtype))
        with torch.device("cpu"):
            max_scored = None if data is None else data.max_scored
            self._network = network_for(model, max_scored, chunks_loss=suits(model)).eval()
        if mesh is not None:
            shard_frozen(self._network, model, mesh, self.replicas)
        self._network.to(device)

    def losses(self, student: Network, tensors: dict[str, Tensor]) -> Tensor:
        """[rows] each row's loss: the objective's own, and the divergence from the teacher."""
        said = student(**tensors, outputs=True)
        kind = said.states.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            taught = self._network(**tensors, outputs=True)
        mix = Mix(self.how.weight, self.how.temperature, self.how.divergence)
        rows = losses_beside(said, Live(taught), student.token_losses, mix).rows
        forget_gathered(self._network)
        return rows


def fingerprint(model: PreTrainedModel) -> str:
    """Hash a model's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def open_teacher(path: str, auto_class: str, problem_type: str | None, data: DataModule) -> Trained:
    """Open a teacher, and refuse one that can't say anything about what the student reads.

    Args:
        path: as --distill.teacher takes it.
        auto_class: transformers' auto class of the student.
        problem_type: what labels are, as the student's config says it.
        data: what both read.

    Raises:
        UserError: it is another kind of model, or has another tokenizer, other labels, or fewer positions.
    """
    flag = f"--distill.teacher {path}"
    teacher = open_trained(path, prefers_export=True)
    config: Any = teacher.model.config
    if teacher.auto_class != auto_class:
        what = f"is {_kind(teacher.auto_class)}, and the student {_kind(auto_class)}"
        raise UserError(f"{flag}: {what}; give a teacher that was trained for the same objective")
    check_same_tokenizer(flag, teacher.tokenizer, data)
    if config.vocab_size < data.vocab_size:
        what = f"has {config.vocab_size:,} rows for the tokenizer's {data.vocab_size:,} entries"
        raise UserError(f"{flag}: {what}; give a teacher of this vocabulary")
    labels = list(data.labels)
    names = [str(config.id2label[number]) for number in range(len(config.id2label))] if labels else []
    if names != labels:
        raise UserError(f"{flag}: its labels are {', '.join(names[:4])}, the data's {', '.join(labels[:4])}")
    if (most := num_positions(config)) is not None and most < data.num_positions:
        what = f"takes at most {most:,} tokens, sequences have {data.num_positions:,}"
        raise UserError(f"{flag}: {what}; give a smaller --seq_len, or another teacher")
    if data.config.document_mask:
        check_documents(teacher.model)
    config.problem_type = problem_type
    return teacher


def check_same_tokenizer(flag: str, theirs: Tokenizer, data: DataModule) -> None:
    """Refuse a teacher to which ids mean other tokens; rows and tokens that were added at the end may differ."""
    ours = data.tokenizer
    if ours is None:
        raise UserError(f"{flag}: the corpus has no tokenizer to compare with the teacher's; prepare it with one")
    shared = min(len(ours), len(theirs))
    if identity(ours, shared) != identity(theirs, shared):
        what = "was trained with another tokenizer, so its probabilities are of other tokens"
        raise UserError(f"{flag}: {what}; give text or a corpus with the teacher's, or leave --data.tokenizer out")


def _kind(auto_class: str) -> str:
    return auto_class.removeprefix("AutoModelFor")
