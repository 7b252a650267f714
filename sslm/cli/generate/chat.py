"""Conversations as a model was trained on them: by the chat template that came with its tokenizer."""

import inspect
from typing import Any

from sslm.data.corpus.tokenizer import Tokenizer
from sslm.system.errors import UserError, one_line

Message = dict[str, str]


class Chat:
    """A conversation.

    A template is a program of somebody else's; transformers runs it in Jinja's sandbox. The names of special tokens in
    a message stay text.

    Args:
        tokenizer: has a chat template.
        name: of the model, for errors.
        system: message before all others.

    Raises:
        UserError: there is no chat template.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, system: str | None) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"--chat: the tokenizer of {name} has no chat template; leave the flag out")
        self.tokenizer, self.name = tokenizer, name
        self.first: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def __call__(self, prompt: str) -> list[int]:
        """Make one message the beginning of a conversation: the tokens after which the reply comes."""
        return self.tokens([{"role": "user", "content": prompt}])

    def tokens(self, messages: list[Message]) -> list[int]:
        """Return the tokens of a conversation, after which the next reply comes."""
        how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        if "sanitize_control_tokens" in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            how["sanitize_control_tokens"] = True
        try:
            ids: Any = self.tokenizer.apply_chat_template(self.first + messages, **how)
        except Exception as error:  # whatever somebody else's program trips over
            why = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"--chat: the chat template of {self.name} fails on these messages ({why})") from None
        return list(ids)
