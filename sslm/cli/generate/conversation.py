"""Writing in turns, on the terminal."""

import sys
from contextlib import suppress

from sslm.cli.generate.chat import Chat, Message
from sslm.cli.generate.prompts import Given
from sslm.cli.generate.shown import Shown
from sslm.cli.generate.tasks import Task
from sslm.system.exits import DONE


def converse(task: Task) -> int:
    """Answer line after line until there are no more; what was said before is the context of what follows.

    With a chat template lines are messages. Without, all is one text: the model goes on with it, and so do you.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited
    context = Messages(task.chat) if isinstance(task.chat, Chat) else OneText()
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Ctrl-C ends a reply, Ctrl-D the conversation.")
    turn = 0
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            print()
            return DONE
        except KeyboardInterrupt:
            print()
            continue
        context.add(line)
        task.chat = context.tokens if isinstance(context, Messages) else None
        context.reply(reply(task, Given(turn, context.prompt, "the conversation", {})))
        turn += 1


def reply(task: Task, given: Given) -> str:
    """Show an answer as it comes, and return what there is of it: Ctrl-C ends it."""
    shown, said = Shown(), list[str]()

    def show(text: str) -> None:
        said.append(text)
        shown(text)

    with suppress(KeyboardInterrupt):
        task.answer([given], show)
    print(flush=True)
    return "".join(said)


class OneText:
    """A text that both write."""

    def __init__(self) -> None:
        self.prompt = ""

    def add(self, line: str) -> None:
        self.prompt += line

    def reply(self, text: str) -> None:
        self.prompt += text


class Messages:
    """Messages of a chat."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.messages, self.prompt = chat, list[Message](), ""

    def add(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})

    def reply(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def tokens(self, _: str) -> list[int]:
        """Return the tokens of all messages."""
        return self.chat.tokens(self.messages)
