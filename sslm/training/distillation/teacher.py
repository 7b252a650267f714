"""A teacher: a trained model that is opened, checked against the student, and asked at each micro-batch.

It has no gradients and no optimizer states, is in no checkpoint but by its fingerprint, and computes in a number format
of its own, whatever the student's. Under fsdp and hsdp its weights are shared by the same devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from sslm.config.distill import DistillConfig
from sslm.data.corpus.tokenizer import Tokenizer, identity
from sslm.data.module import DataModule
from sslm.data.stream.batches import BESIDE
from sslm.models.architecture import read_config
from sslm.models.divergence import Live, Mix, losses_beside
from sslm.models.document_check import check_documents
from sslm.models.head import LanguageModel
from sslm.models.layer_losses import layer_losses
from sslm.models.layer_states import LayerStates
from sslm.models.linear_head import suits
from sslm.models.masks import num_positions
from sslm.models.network import Network, is_scored
from sslm.models.outputs import Outputs
from sslm.models.quantized import library_of
from sslm.models.task import network_for
from sslm.models.weights import sha256_of_weights
from sslm.parallel.parallelize import forget_gathered, shard_frozen
from sslm.runs.trained import Trained, open_trained
from sslm.system.errors import UserError
from sslm.training.distillation.cache import TeacherCache, TopK
from sslm.training.distillation.layers import LayerPlan, depths_of, plan_layers, weights_of_layers

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


class LiveTeacher:
    """A trained model that is asked at each micro-batch.

    Args:
        model: the model, whole, with its weights on the CPU.
        precision: in which it computes, as --distill.precision takes it.
        replicas: groups of devices that hold all weights among them, as for the student.
    """

    def __init__(self, model: PreTrainedModel, precision: str = "saved", replicas: int = 1) -> None:
        self.replicas = replicas
        self.fingerprint = sha256_of_weights(model)
        self.model: Any = model.eval().requires_grad_(False)
        self._dtype = DTYPES.get(precision, model.dtype)
        self._network: Network

    def prepare(
        self,
        data: DataModule | None,
        mesh: DeviceMesh | None,
        device: torch.device,
        watch: Callable[[PreTrainedModel], LayerStates] | None = None,
    ) -> None:
        """Put the teacher where the student is, sharded like it if there is a mesh.

        Args:
            watch: makes what watches its layers; None: they are not watched.
        """
        model = self.model.to(self._dtype)
        with torch.device("cpu"):
            max_scored = None if data is None else data.max_scored
            self._network = network_for(model, max_scored, chunks_loss=suits(model)).eval()
        if data is not None and isinstance(self._network, LanguageModel):
            self._network.vocab_size = min(self._network.vocab_size, data.vocab_size)  # the rest is padding
        if watch is not None:
            self._network.layer_states = watch(model)
        if mesh is not None:
            shard_frozen(self._network, model, mesh, self.replicas)
        self._network.to(device)

    @torch.no_grad()
    def outputs(self, tensors: dict[str, Tensor]) -> Outputs:
        """Say what it thinks of a micro-batch; weights stay gathered until `forget`."""
        with torch.autocast(tensors["input_ids"].device.type, enabled=False):
            made: Outputs = self._network(**tensors, outputs=True)
        return made

    def forget(self) -> None:
        """Drop the weights that FSDP gathered."""
        forget_gathered(self._network)


class Distillation:
    """What a student learns beside its own objective.

    Args:
        teacher: the model to learn from, or what it said, read from a cache.
        how: the loss.
    """

    def __init__(self, teacher: LiveTeacher | TeacherCache, how: DistillConfig) -> None:
        self.teacher = teacher
        self.mix = Mix(how.weight, how.temperature, how.divergence)
        self.how, self.layer_weights = how, weights_of_layers(how)
        self._plan: LayerPlan | None = None

    @property
    def fingerprint(self) -> str:
        """What a checkpoint keeps, to refuse to go on with another teacher."""
        return self.teacher.fingerprint

    def watch(self, student: Network, probe: PreTrainedModel) -> None:
        """Let a student that is not sharded yet show its layers, if they are compared.

        Args:
            probe: one like it that can be run, and may have few of its layers.
        """
        if self.layer_weights.are_used and isinstance(self.teacher, LiveTeacher):
            with torch.device("cpu"):  # on which both are, and architectures make tensors
                self._plan = plan_layers(probe, depths_of(student.model), self.teacher.model, self.how)
            student.layer_states = self._plan.watch(student.model, self.layer_weights, is_teacher=False)

    def prepare(self, data: DataModule | None, mesh: DeviceMesh | None, device: torch.device) -> None:
        """Make ready what is learnt from, before the first step."""
        if not isinstance(self.teacher, LiveTeacher):
            return
        plan = self._plan
        watch = None if plan is None else partial(plan.watch, weights=self.layer_weights, is_teacher=True)
        self.teacher.prepare(data, mesh, device, watch)

    def losses(self, student: Network, tensors: dict[str, Tensor]) -> Tensor:
        """[rows] each row's loss: the objective's own, and the divergence from the teacher."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(BESIDE)}
        said = student(**own, outputs=True)
        if not isinstance(self.teacher, LiveTeacher):
            places = said.targets.shape[1]  # fewer than the cache's if all rows are shorter
            known = TopK(*(tensors[f"{BESIDE}{name}"][:, :places] for name in TopK._fields))
            return losses_beside(said, known, student.token_losses, self.mix).rows
        taught = self.teacher.outputs(own)
        rows = losses_beside(said, Live(taught), student.token_losses, self.mix).rows
        if said.layers is not None and taught.layers is not None:
            num_targets = is_scored(said.targets).flatten(1).sum(1)
            layers = said.layers.said, taught.layers.said, said.layers.places
            rows = rows + layer_losses(*layers, num_targets, self.layer_weights)
        self.teacher.forget()
        return rows


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
    if library_of(read_config(teacher.folder, "")) == "torchao":
        raise UserError(f"{flag}: its weights are of 8 bits, which can't be cast; give the model that it was made of")
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
