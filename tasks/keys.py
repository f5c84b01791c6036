"""Every Redis key and channel this project owns. Nothing else builds one.

Keys of a job (the braces are literal: a cluster keeps both in one slot); they expire some time after the job's end:

rl:{ID}                hash     the job's record
rl:{ID}:events         stream   its events in order, with the pieces they came from; entry ids are sequence numbers
rl:{ID}:kept           string   what its front keeps of the request, where it is to be asked about later

Keys of a model:

rl:waiting:MODEL       zset     job -> lane, turn and order of acceptance; empty sets vanish
rl:running:MODEL       zset     job -> end of its worker's lease, ms by Redis' clock; empty sets vanish
rl:turns:MODEL         zset     owners and their turns (`tasks/policy.py`); vanishes with the last job of the model that ends
rl:lanes:MODEL         hash     how far the turns of each lane are; vanishes likewise

Files and batches, which go when their time by the service's clock is over, or when somebody deletes them:

rl:files               hash     file -> what is known of it
rl:files:due           zset     file -> when its time is over, ms
rl:batches             hash     batch -> what its client asked for
rl:batches:due         zset     batch -> when it is forgotten, ms; only those that have ended
rl:batch:ID            hash     how far a batch is
rl:batch:ID:items      hash     line -> its job, of those that are on their way

Calls to webhooks, which go when they were answered, or given up:

rl:webhooks            hash     job -> ATTEMPTS STATE URL: who is to be told that it has ended so
rl:webhooks:due        zset     job -> when the next attempt is due, ms

What never expires, by design; `PERMANENT` lists it and a test compares:

rl:order               string   counts accepted jobs: the order of acceptance
rl:clock               string   SHIFT:SEEN of the service's clock, ms: how far Redis' has jumped, and the last look
rl:clock:shifts        list     SINCE:SHIFT, the last hundred: when the service stopped, and its clock with it
rl:secret              string   makes ids of what clients call a request, so that nobody else can; from the first of these on
rl:gates               hash     MODEL -> paused or draining; models that are neither have no field
rl:cards               hash     MODEL/BOARD -> card; known models are remembered while nobody serves them
rl:drained             hash     boards that are to serve nothing -> when that was asked for, Unix seconds
rl:api_keys            hash     digest of a key -> its name and scopes
rl:settings            hash     setting -> its value for the whole service, who changed it and when
rl:presence            hash     workers and boards that breathe, while there are any; past the append-only file
rl:serve.MODEL         list     Celery: calls to serve, while there are any
rl:_kombu.*            set, zset   Celery: which queue a call goes to
rl:unacked*            hash, zset, string   Celery: calls that are being served

What expires by itself:

rl:limits:OWNER        hash     what the owner of a limited API key may still ask for (`tasks/limits.py`)
rl:limits:OWNER:jobs   set      its jobs
rl:refusal             string   why no job is accepted at the moment, while `up` says it again and again
rl:carried:counts      hash     and :ended, :failed: what is written of those below when the service stops (`tasks/carried.py`)
rl:disk                string   nothing: written last, it is on the disk when all before it is (`tasks/disk.py`)

The same, and is written past the append-only file:

rl:ended rl:failed     list     jobs that ended, and those that failed, the newest first
rl:last:MODEL          hash     board -> what it served last of the model, as digests (`tasks/policy.py`)
rl:slowed:MODEL        hash     board -> how many times as long its jobs take while heat slows it down
rl:pace                hash     MODEL -> milliseconds its jobs have lately held a worker
rl:counts              hash     NAME MODEL LANE [which] -> a count of what became of jobs (`tasks/counts.py`), or NAME MODEL
                                [which] of models

Channels: rl:{ID}:live (events as they happen), rl:control:WORKER, rl:commands:BOARD, rl:replies:PROCESS,
rl:pulls:BOARD (how far models are that it fetches).
"""

from __future__ import annotations

PREFIX = "rl:"
ORDER = "rl:order"
GATES = "rl:gates"
CARDS = "rl:cards"
PRESENCE = "rl:presence"
PACE = "rl:pace"
COUNTS = "rl:counts"
CLOCK = "rl:clock"
CLOCK_SHIFTS = "rl:clock:shifts"
REFUSAL = "rl:refusal"
SECRET = "rl:secret"
DISK_MARK = "rl:disk"
FILES = "rl:files"
FILES_DUE = "rl:files:due"
BATCHES = "rl:batches"
BATCHES_DUE = "rl:batches:due"
API_KEYS = "rl:api_keys"
DRAINED = "rl:drained"
ENDED = "rl:ended"
FAILED = "rl:failed"
SETTINGS = "rl:settings"
WEBHOOKS = "rl:webhooks"
WEBHOOKS_DUE = "rl:webhooks:due"

PERMANENT = (
    *(
        ORDER,
        CLOCK,
        CLOCK_SHIFTS,
        SECRET,
        GATES,
        CARDS,
        PRESENCE,
        DRAINED,
        API_KEYS,
        SETTINGS,
        "rl:serve.*",
        "rl:_kombu.*",
        "rl:unacked*",
    ),
    *(WEBHOOKS, WEBHOOKS_DUE, FILES, FILES_DUE, BATCHES, BATCHES_DUE, "rl:batch:*"),
)
"""Patterns of the keys that may stand without an expiry when no job is left."""


def carried(key: str) -> str:
    """Where a key lies that is written past the append-only file, while the service is stopped."""
    return f"{PREFIX}carried:{key.removeprefix(PREFIX)}"


JOBS = "rl:{*}"
"""The records of all jobs, as a pattern."""


def job(job_id: str) -> str:
    """The record of a job."""
    return f"rl:{{{job_id}}}"


def events(job_id: str) -> str:
    """The events of a job."""
    return f"rl:{{{job_id}}}:events"


def kept(job_id: str) -> str:
    """What a job's front keeps of the request."""
    return f"rl:{{{job_id}}}:kept"


def live(job_id: str) -> str:
    """The channel on which a job's events are published."""
    return f"rl:{{{job_id}}}:live"


def waiting(model: str) -> str:
    """The jobs that wait for a model."""
    return f"rl:waiting:{model}"


def running(model: str) -> str:
    """The jobs that workers hold for a model."""
    return f"rl:running:{model}"


def turns(model: str) -> str:
    """Whose turn it is among those who ask for a model."""
    return f"rl:turns:{model}"


def slowed(model: str) -> str:
    """The boards that heat slows down, while they serve a model."""
    return f"rl:slowed:{model}"


def lanes(model: str) -> str:
    """How far each lane of a model is."""
    return f"rl:lanes:{model}"


def batch(batch_id: str) -> str:
    """How far a batch is."""
    return f"rl:batch:{batch_id}"


def batch_items(batch_id: str) -> str:
    """Those items of a batch that are on their way."""
    return f"rl:batch:{batch_id}:items"


QUEUES = PREFIX + "*ing:*"
"""A pattern that finds the waiting and running sets of all models, and no key of a job."""


def model_of(queue: str) -> str:
    """The model of such a set."""
    return queue.split(":", 2)[2]


def control(worker: str) -> str:
    """The channel on which a worker is told to cancel or to stop."""
    return f"rl:control:{worker}"


def commands(board: str) -> str:
    """The channel on which a board takes commands."""
    return f"rl:commands:{board}"


def replies(process: str) -> str:
    """The channel on which one process takes the replies of boards."""
    return f"rl:replies:{process}"


def pulls(board: str) -> str:
    """The channel on which a board tells how far the models are that it fetches."""
    return f"rl:pulls:{board}"


def call_queue(model: str) -> str:
    """The name of the Celery queue with the calls to serve a model; Celery puts the prefix before it."""
    return f"serve.{model}"


def calls(model: str) -> str:
    """The list behind that queue."""
    return PREFIX + call_queue(model)
