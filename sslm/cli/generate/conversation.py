"""Writing in turns, on the terminal."""

import sys
from contextlib import suppress

from sslm.cli.generate.chat import Chat, Message
from sslm.cli.generate.prompts import Given
from sslm.cli.generate.shown import Shown
from sslm.cli.generate.tasks import Task
from sslm.system.errors import UserError
from sslm.system.exits import DONE
from sslm.system.output import print_error


def converse(task: Task) -> int:
    """Answer line after line until there are no more; what was said before is the context of what follows.

    With a chat template lines are messages. Without, all is one text, if the model goes on with texts: and so do you.
    For other models each line is a prompt by itself.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited
    context = context_of(task)
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
        try:
            context.reply(reply(task, Given(turn, context.prompt, "this line", {})))
        except UserError as error:
            context.take_back(line)
            print_error(str(error))
        turn += 1


def context_of(task: Task) -> "OneText | Messages":
    """Choose what is kept of what was said."""
    if isinstance(task.chat, Chat):
        return Messages(task.chat)
    return OneText() if task.echoes(Given(0, "", "this line", {})) else Lines()


def reply(task: Task, given: Given) -> str:
    """Show an answer as it comes, and return what there is of it: Ctrl-C ends it."""
    shown, said = Shown(), list[str]()

    def show(text: str) -> None:
        said.append(text)
        shown(text)

    with suppress(KeyboardInterrupt):
        (answer,) = task.answer([given], show if task.streams else None)
        if not task.streams:
            show(answer.text)
    print(flush=True)
    return "".join(said)


class OneText:
    """A text that both write."""

    def __init__(self) -> None:
        self.prompt = ""

    def add(self, line: str) -> None:
        self.prompt += line

    def take_back(self, line: str) -> None:
        """Undo `add`."""
        self.prompt = self.prompt.removesuffix(line)

    def reply(self, text: str) -> None:
        self.prompt += text


class Lines(OneText):
    """Prompts that have nothing to do with one another."""

    def add(self, line: str) -> None:
        self.prompt = line

    def reply(self, text: str) -> None:
        """Forget the reply: the next line is another prompt."""


class Messages:
    """Messages of a chat."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.messages, self.prompt = chat, list[Message](), ""

    def add(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})

    def take_back(self, line: str) -> None:
        """Undo `add`."""
        self.messages.pop()

    def reply(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def tokens(self, _: str) -> list[int]:
        """Return the tokens of all messages."""
        return self.chat.tokens(self.messages)
