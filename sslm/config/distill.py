"""Settings of distillation: a trained model whose probabilities a smaller one learns, beside its own objective."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import NOT_NEGATIVE, SHARE, Range, Section, setting

TEMPERATURE = Range("a number from 0.01 to 1000", lambda number: 0.01 <= number <= 1000)
"""Beyond it logits, or the divergence times its square, are no numbers in fp32."""


@dataclass(frozen=True)
class DistillConfig(Section):
    """A teacher, of any objective (Hinton et al. 2015, arXiv:1503.02531): without one, all of this rests."""

    prefix = "distill"

    teacher: str | None = setting(None, may_change=True, is_path=True)
    """Trained model to learn from: a run, a folder or a name on the hub; it must have the same tokenizer."""
    cache: str | None = setting(None, may_change=True, is_path=True)
    """Folder of sslm distill-cache, to learn from in place of the teacher, which is not in memory then."""
    weight: float = setting(0.5, SHARE, may_change="if named")
    """w of the loss (1 - w) x own + w x temperature^2 x divergence."""
    temperature: float = setting(1.0, TEMPERATURE, may_change="if named")
    """What the logits of both are divided by before the divergence is taken."""
    divergence: Literal["forward_kl", "reverse_kl", "js"] = setting("forward_kl", may_change="if named")
    """forward_kl: of the student from the teacher (Hinton et al. 2015); reverse_kl: of the teacher from the student (Gu
    et al. 2023); js: Jensen-Shannon (Agarwal et al. 2023)."""
    hidden_weight: float = setting(0.0, NOT_NEGATIVE)
    """What the squared differences of hidden states are multiplied by; above 0, the loss is the above and these (Jiao
    et al. 2020)."""
    attention_weight: float = setting(0.0, NOT_NEGATIVE, may_change="if named")
    """The same of attention's scores before the softmax, head by head."""
    layer_map: str | None = setting(None, may_change="if named")
    """Which of the student's layers is compared with which of the teacher's: 0:0,1:2,2:4, 0 being the embeddings;
    default: all, evenly."""
    from_layers: str | None = None
    """Layers of the teacher that the student is made of, and begins with: 0,2,4, or 'every 2'; default: the student is
    what --model says."""
    precision: Literal["saved", "32", "bf16"] = setting("saved", may_change="if named")
    """Number format in which the teacher computes: that in which it was saved, fp32, or bf16."""
