"""Commands to a board, and what it answers: for what must not wait behind a generation.

`tasks/asking.py` sends them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import msgspec

from tasks.requests import ChatRequest

BUSY = "busy"
"""The code of the reply to a command of a kind of which too many wait already."""
AWAY = "board_away"
"""The code of the failure of a command to a board that does not listen."""
SILENT = "timeout"
"""A board that took the command did not answer in time."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Start a worker for the model and load it. The reply comes when that has begun, or cannot. Where others have something to do
    first, it is also begun, for jobs will wait for it; and a model that requests do not load is refused. It is the other way
    round where somebody asked for the load alone, `by_hand`."""

    model: str
    by_hand: bool = False


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Stop the model's workers after their running jobs. The reply says whether there were any."""

    model: str


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Let the model stay loaded for so many seconds after its last job; below 0 for ever. It holds until it is unloaded."""

    model: str
    seconds: float


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """The token ids of a text. With `parse_special` control tokens in it are read as such."""

    model: str
    text: str
    add_special: bool = True
    parse_special: bool = True


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """The bytes that each token adds to a text, in base64; control tokens add none."""

    model: str
    tokens: tuple[int, ...]


class Render(msgspec.Struct, frozen=True, tag="render"):
    """The text that the chat template makes of a chat."""

    model: str
    request: ChatRequest


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """The token ids of a chat's whole prompt."""

    model: str
    request: ChatRequest


class Count(msgspec.Struct, frozen=True, tag="count"):
    """How many tokens a chat's whole prompt has, whether or not it fits."""

    model: str
    request: ChatRequest


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """What a model's files say that its card does not: a `Description`."""

    model: str


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Render, tokenize and check a waiting job now, and fail it at once if it can never run."""

    model: str
    job: str


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Fetch a model onto the board. The reply is a `PullProgress`, at once; the rest is told on the channel `keys.pulls`.

    `model` is a name of the index of models, such as `qwen3:0.6b`, or a repository of Hugging Face, `OWNER/NAME` or
    `hf.co/OWNER/NAME`, for one of its files with `:QUANTIZATION` or `/FILE` behind it. Addresses and paths are for the
    command line of the board. A pull goes on when nobody listens any more, and a second one of the same name joins it.
    `tasks/pulls.py` does both for whoever wants to read it through.
    """

    model: str


class PullState(msgspec.Struct, frozen=True, tag="pull_state"):
    """How a pull stands: the reply is its last `PullProgress`. A board remembers the pulls that ended lately."""

    model: str
    """What was asked for."""
    pull: str
    """The id in its progress."""


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Unload the model and remove its files. Refused for a model that others are made from."""

    model: str


class Copy(msgspec.Struct, frozen=True, tag="copy"):
    """Make a model that is `model` under the name `to`, without a second copy of its weights."""

    model: str
    to: str


class Create(msgspec.Struct, frozen=True, tag="create"):
    """Make the model `model` out of `base`, one the board has, without a second copy of its weights. What is left out is as
    in the base; a model made so before is replaced. With `files` it has no base, and is made of those."""

    model: str
    base: str = ""
    system: str | None = None
    """The system message of chats that have none."""
    template: str | None = None
    """Jinja, instead of the base's own."""
    sampling: dict[str, float | int | bool] = {}
    """By the names of a manifest's `[sampling]`."""
    stop: tuple[str, ...] | None = None
    context_length: int | None = None
    adapter: str | None = None
    """The one of the base's adapters that answers when a request names none."""
    files: dict[str, str] = {}
    """The digests of files that were sent to the board's machine (`tasks/blobs.py`), by their names: weights, and what belongs
    beside them."""
    adapters: dict[str, str] = {}
    """The same of an adapter, which goes with `files`."""


class Lend(msgspec.Struct, frozen=True, tag="lend"):
    """Open the files of a model, over HTTP, to the board that asks. The reply is a `Loan`, once their digests are known."""

    model: str
    address: str = ""
    """Of the board that asks; empty where that is the machine of Redis."""


class LentFile(msgspec.Struct, frozen=True):
    """One file of a model: its name in the model's folder, its bytes and its digest."""

    name: str
    size: int
    sha256: str


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """Where the files of a model can be had for about an hour after they were last asked for: `url`, a slash, and the name."""

    url: str
    id: str
    names: tuple[str, ...] = ()
    engine: str = ""
    soc: str | None = None
    files: tuple[LentFile, ...] = ()
    """The weights first."""


class UseRuntime(msgspec.Struct, frozen=True, tag="use_runtime"):
    """Use another release of the NPU's runtime from now on, one that is installed on the board. It is tried first, and the reply,
    a `RuntimeUsed`, comes once the board's models are loaded with it, or with what they had."""

    version: str
    model: str = ""
    """What to try it with; else the models that are loaded, else the smallest."""


class RuntimeUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The release a board uses now, and the one it had; empty where it had none."""

    version: str
    before: str = ""
    tried: tuple[str, ...] = ()
    """The models it was tried with. None: there are none for the NPU."""


Shelving: TypeAlias = Pull | PullState | Delete | Copy | Create
"""What changes which models a board has, and what tells of it."""

Changing: TypeAlias = Shelving | UseRuntime | Lend
"""What is done with the files of a board."""

Command: TypeAlias = (
    Load | Unload | Keep | Tokenize | Detokenize | Render | Encode | Count | Describe | Prepare | Changing
)


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is asked where a request does not say."""

    template: str = ""
    """Its chat template, in Jinja; empty for a base model."""
    sampling: dict[str, float | int | bool] = {}
    """By the names of a manifest's `[sampling]`."""
    stop: tuple[str, ...] = ()
    system: str | None = None
    """The system message of chats that have none."""


class CommandCode(StrEnum):
    """Why a command failed that changes models or runtimes, or loads a model; the other commands fail as jobs do."""

    MODEL_MISSING = "model_missing"
    """The board has no model of that name."""
    NAME_REFUSED = "name_refused"
    """The new name is none that a model may have, or another has it."""
    MODEL_IN_USE = "model_in_use"
    """Other models are made from it."""
    NOT_POSSIBLE = "not_possible"
    """What is asked of the new model its engine or its base cannot do."""
    SOURCE_MISSING = "source_missing"
    """There is nothing of that name to pull."""
    FILE_MISSING = "file_missing"
    """A file that the new model is to be made of was not sent to this board's machine."""
    SOURCE_FORBIDDEN = "source_forbidden"
    """Its owner wants to know who asks: terms to be accepted, a token to be set."""
    DOES_NOT_FIT = "does_not_fit"
    """It cannot run on this board: its chip, its runtime or its memory."""
    NO_ROOM_YET = "no_room_yet"
    """It fits once others can be unloaded that have something to do now, or were loaded just now."""
    RUNTIME_REFUSED = "runtime_refused"
    """That release of the runtime is not installed or cannot be used; the board goes on with the one it has."""
    NO_SPACE = "no_space"
    """The disk cannot hold it."""
    DAMAGED = "damaged"
    """What arrived is not what was asked for."""
    NETWORK = "network"
    """It could not be fetched for another reason; what has arrived is kept for the next pull."""
    PULL_FORGOTTEN = "pull_forgotten"
    """The board knows no pull of that id: it was started anew meanwhile, or the pull ended long ago."""


class PullStep(StrEnum):
    """What a pull is at."""

    CHOOSING = "choosing"
    """Looking for the files; `message` says in the end which were chosen, and why."""
    FETCHING = "fetching"
    """A file is on its way; `file`, `digest`, `completed` and `total` are its own."""
    VERIFYING = "verifying"
    """The file is held to its digest, which `digest` is from now on."""
    PLACING = "placing"
    """The model gets its place among the others."""
    DONE = "done"
    """`id` is what it is called here. It was there already when nothing was fetched before."""
    FAILED = "failed"
    """`message` says why and what to do, and `code` in a word."""


class PullProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pull is."""

    pull: str
    """The id of this pull; another one of the same model has another."""
    model: str
    """What was asked for."""
    number: int
    """Counts up; a message that comes with a smaller one is late."""
    step: PullStep
    message: str = ""
    file: str = ""
    digest: str = ""
    """`sha256:…`; empty while nobody knows it."""
    completed: int = 0
    total: int | None = None
    """Bytes; None when the source does not say."""
    id: str = ""
    code: str = ""

    @property
    def ended(self) -> bool:
        """Whether no more comes."""
        return self.step in (PullStep.DONE, PullStep.FAILED)
