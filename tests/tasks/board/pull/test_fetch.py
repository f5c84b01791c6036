"""Pulling from a hub that behaves badly: what arrives is whole, or nothing is there that was not before."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from npu.catalog import find_models
from tasks.board.pull.download import DownloadFailed, direct_opener, opener, transfers
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.fetch import pull
from tasks.board.pull.hub import Hub as Client
from tasks.board.pull.machine import Machine
from tasks.board.pull.shelf import Shelf
from tasks.commands import CommandCode, PullProgress, PullStep
from tests.fakes.hub import COMMIT, Fault, Hub, Repo
from tests.npu.test_gguf import gguf

WEIGHTS = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(range(256)) * 8000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
GGUF = "people/Tiny-1B-GGUF"
FILE = "Tiny-1B-Q4_K_M.gguf"
INDEX = f"""
[[model]]
name = "tiny:1b"
licence = "free"
[[model.file]]
engine = "llamacpp"
repository = "{GGUF}"
revision = "main"
file = "{FILE}"
sha256 = "{SHA256}"
dtype = "Q4_K_M"
"""


@dataclass
class Site:
    """A hub, a models folder, and whoever pulls."""

    hub: Hub
    shelf: Shelf
    waited: list[float] = field(default_factory=list)

    def pull(self, what: str = "tiny:1b", *, token: str | None = None) -> list[PullProgress]:
        client = Client(opener(), self.hub.url, token, pause=0.0, wait=self.waited.append)
        shelf = replace(self.shelf, hub=client, wait=self.waited.append, pause=0.0)
        return list(pull(what, shelf, pull_id="p1", local=True))

    def refusal(self, what: str = "tiny:1b", *, token: str | None = None) -> PullFailed:
        with pytest.raises(PullFailed) as caught:
            self.pull(what, token=token)
        assert not find_models(self.shelf.models_dir).models
        assert not [entry for entry in self.shelf.models_dir.iterdir() if not entry.name.startswith(".")]
        return caught.value

    @property
    def weights(self) -> Path:
        return self.shelf.models_dir / "tiny-1b" / FILE


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub = Hub()
    hub.repos[GGUF] = Repo({FILE: WEIGHTS, "LICENSE": b"do as you like", "README.md": b"#"}, card={"license": "mit"})
    (tmp_path / "models").mkdir()
    (tmp_path / "index.toml").write_text(INDEX)
    machine = Machine(None, None, 4 << 30)
    with hub.serving():
        yield Site(hub, Shelf(tmp_path / "models", lambda: machine, Client(opener()), tmp_path / "index.toml"))


def last(steps: Sequence[PullProgress]) -> PullProgress:
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert [step.ended for step in steps] == [False] * (len(steps) - 1) + [True]
    return steps[-1]


def test_a_name_becomes_a_model(site: Site) -> None:
    """With its licence, a manifest, and a record of what came from where."""
    steps = site.pull()
    assert (last(steps).step, last(steps).id) == (PullStep.DONE, "tiny-1b")
    assert [step.step for step in steps if step.message][:1] == [PullStep.CHOOSING]
    assert steps[1].message.startswith(f"tiny:1b is {FILE} (2 MB) from {GGUF}, for the CPU. Licence: free.")
    fetched = next(step for step in steps if step.step is PullStep.FETCHING)
    assert (fetched.digest, fetched.total) == (f"sha256:{SHA256}", len(WEIGHTS))
    catalog = find_models(site.shelf.models_dir)
    model = catalog.find("tiny:1b")
    assert model is not None and model.path == site.weights and not catalog.problems
    assert site.weights.read_bytes() == WEIGHTS
    record = json.loads((site.weights.parent / "pulled.json").read_text())
    assert record["source"] == {"repository": GGUF, "commit": COMMIT, "file": FILE}
    assert {file["name"]: file["sha256"] for file in record["files"]}[FILE] == SHA256
    assert {path.name for path in site.weights.parent.iterdir()} == {FILE, "LICENSE", "manifest.toml", "pulled.json"}


def test_what_is_there_is_not_fetched_again(site: Site) -> None:
    """But what has changed there replaces what an earlier pull left."""
    site.pull(GGUF)
    before = len(site.hub.ranges())
    assert last(site.pull(GGUF)).message == "tiny-1b is there already."
    assert len(site.hub.ranges()) == before
    site.hub.repos[GGUF].files[FILE] = changed = WEIGHTS + b"more"
    site.pull(GGUF)
    assert site.weights.read_bytes() == changed


def test_a_name_that_only_this_machine_knows_is_there(site: Site) -> None:
    """Whatever put it there; one whose file is no model is not."""
    bare = site.shelf.models_dir / "Mini-135M-Q4_0.gguf"
    bare.write_bytes(WEIGHTS)
    for name in ("mini-135m", "mini:135m", "Mini-135M-Q4_0"):
        assert last(site.pull(name)).message == "mini-135m is there already."
    bare.write_bytes(b"GGUF")
    for name in ("mini-135m", "mini:1b"):
        with pytest.raises(PullFailed, match=f"There is no model '{name}' in the index"):
            site.pull(name)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault(cut=5000), Fault(cut=100_000)], id="cut"),
        pytest.param([Fault(lie=1)], id="promises a byte too many"),
        pytest.param([Fault(status=503), Fault(cut=10), Fault(status=500)], id="errors"),
        pytest.param([Fault(cut=5000), Fault(no_ranges=True)], id="forgets ranges"),
        pytest.param([Fault(cut=5000), Fault(status=416)], id="denies the range"),
    ],
)
def test_it_is_gone_on_with_until_it_is_whole(site: Site, faults: list[Fault]) -> None:
    """Whatever the network does meanwhile."""
    site.hub.faults = faults
    # A length that is not the listed one is no cut, and is refused at once.
    if faults[0].lie:
        assert site.refusal().code == CommandCode.DAMAGED
        return
    site.pull()
    assert site.weights.read_bytes() == WEIGHTS


def test_an_interrupted_pull_is_gone_on_with_by_the_next(site: Site) -> None:
    """From the byte where it ended, in another process perhaps."""
    site.hub.faults = [Fault(cut=300_000)] + [Fault(status=503)] * 9
    assert site.refusal().code == CommandCode.NETWORK
    site.hub.faults = []
    site.pull()
    assert site.hub.ranges()[-2] == "bytes=300000-"
    assert site.weights.read_bytes() == WEIGHTS


def test_a_file_that_changes_meanwhile_is_begun_anew(site: Site) -> None:
    """By its entity tag: two halves of two files are no file."""
    site.hub.tags[FILE] = '"old"'
    site.hub.faults = [Fault(cut=300_000)] + [Fault(status=503)] * 9
    site.refusal()
    site.hub.tags[FILE] = '"new"'
    site.hub.faults = []
    site.pull()
    headers = next(headers for path, headers in reversed(site.hub.asked) if path.endswith(FILE) and "cdn" in path)
    assert (headers["Range"], headers["If-Range"]) == ("bytes=300000-", '"old"')
    assert site.weights.read_bytes() == WEIGHTS


def test_what_arrives_damaged_is_deleted(site: Site) -> None:
    """The digest is the hub's, where the index has none; and the next pull begins anew."""
    spoilt = WEIGHTS[:-1] + b"!"
    (site.shelf.index).write_text(INDEX.replace(SHA256, "unverified"))
    site.hub.faults = [Fault(cut=len(WEIGHTS) - 1)]
    site.hub.tags[FILE] = ""
    steps = pull_with_a_changed_end(site, spoilt)
    assert steps.code == CommandCode.DAMAGED and SHA256 in str(steps)
    site.pull()
    assert site.weights.read_bytes() == WEIGHTS


def pull_with_a_changed_end(site: Site, spoilt: bytes) -> PullFailed:
    """The listing tells the right digest, and the file behind it is another of the same length."""
    files = site.hub.repos[GGUF].files
    client = Client(opener(), site.hub.url, pause=0.0, wait=site.waited.append)
    steps = pull(
        "tiny:1b", replace(site.shelf, hub=client, pause=0.0, wait=site.waited.append), pull_id="p", local=True
    )
    assert next(steps).step is PullStep.CHOOSING
    assert next(steps).step is PullStep.CHOOSING
    files[FILE] = spoilt
    with pytest.raises(PullFailed) as caught:
        list(steps)
    files[FILE] = WEIGHTS
    return caught.value


def test_a_hub_that_has_another_file_than_the_index_is_not_believed(site: Site) -> None:
    """Before anything is fetched."""
    site.hub.repos[GGUF].files[FILE] = WEIGHTS + b"x"
    assert site.refusal().code == CommandCode.DAMAGED
    assert site.hub.ranges() == []


def test_a_web_page_is_no_model(site: Site) -> None:
    """A mirror's page of regrets has a digest, too."""
    site.hub.repos[GGUF].files[FILE] = b"<html><body>not found</body></html>"
    assert "this is not a GGUF file" in str(site.refusal(GGUF))


@pytest.mark.parametrize("waited", [7.0, 300.0])
@pytest.mark.parametrize("by_date", [False, True])
def test_a_limited_rate_is_waited_for(site: Site, by_date: bool, waited: float) -> None:
    """As long as the server asks, in seconds or by a date, and it is told."""
    asked = formatdate(time() + waited) if by_date else f"{waited:.0f}"
    site.hub.faults = [Fault(status=429, headers={"Retry-After": asked})]
    site.hub.listing_faults = [Fault(status=429, headers={"Retry-After": "3"})]
    steps = site.pull()
    assert site.waited[0] == 3.0
    least = 0 if by_date else waited  # a date comes nearer meanwhile
    assert any(least <= seconds <= waited for seconds in site.waited[1:])
    assert any("asks to wait" in step.message for step in steps)


def test_a_server_that_cannot_be_reached_asks_for_nothing(tmp_path: Path) -> None:
    """What is said is what happened, for as long as it is tried again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a"
        moves = transfers(url, tmp_path / "a", opener=direct_opener(), wait=lambda _: None)
        said: list[str] = []
        with pytest.raises(DownloadFailed):
            said.extend(move.waiting for move in moves)
    assert said[0] == "It could not be fetched (Connection refused): again in 1 s."
    assert not any("asks to wait" in each for each in said)


def test_a_rate_that_is_limited_for_long_is_told(site: Site) -> None:
    """An hour is for whoever asked to wait, not for us."""
    site.hub.faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    assert "come back in 60 minutes" in str(site.refusal())
    site.hub.listing_faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    assert "come back in 60 minutes" in str(site.refusal())


def test_a_gated_repository_is_explained(site: Site) -> None:
    """Which page to open, and how the token is set; and with the token it is fetched."""
    site.hub.repos[GGUF].gated = True
    refused = site.refusal()
    assert refused.code == CommandCode.SOURCE_FORBIDDEN
    assert f"{site.hub.url}/{GGUF} is gated" in str(refused) and "HF_TOKEN=" in str(refused)
    assert "accept the terms" in str(site.refusal(token="no"))
    site.pull(token="yes")
    assert site.weights.read_bytes() == WEIGHTS


def test_the_token_is_the_hubs_alone(site: Site) -> None:
    """Nobody it sends us on to sees it."""
    site.pull(token="secret-token")
    told = [("Authorization" in headers, path.startswith("/cdn/")) for path, headers in site.hub.asked]
    assert (True, False) in told and (False, True) in told and (True, True) not in told


def test_a_repository_that_is_not_there_is_told_as_such(site: Site) -> None:
    """A hub answers 401 for it, so as not to tell of private ones."""
    refused = site.refusal("nobody/nothing")
    assert "does not exist, or is private" in str(refused)


def test_a_hub_out_of_reach_is_told(site: Site) -> None:
    """With the ways around: a proxy, a mirror."""
    site.hub.listing_faults = [Fault(status=503)] * 9
    refused = site.refusal()
    assert refused.code == CommandCode.NETWORK and "HF_ENDPOINT" in str(refused)


def test_a_full_disk_is_told_before_the_download(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is needed, and what is free."""
    usage = shutil.disk_usage(site.shelf.models_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=101_000_000))
    refused = site.refusal()
    assert refused.code == CommandCode.NO_SPACE
    assert "needs 102 MB more" in str(refused) and "101 MB are free" in str(refused)
    assert site.hub.ranges() == []
    # Of a file that no hub lists, the server tells the size when it is asked for it.
    alone = f"{site.hub.store_url}/cdn/{GGUF}/{FILE}"
    assert f"{FILE} needs 102 MB more" in str(site.refusal(alone))


def test_somebody_elses_model_is_left_alone(site: Site) -> None:
    """A name that is taken is refused with the place that has it."""
    own = site.shelf.models_dir / "mine"
    own.mkdir()
    (own / "tiny-1b-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(PullFailed, match=r"taken by .*mine"):
        site.pull()
    assert site.hub.ranges() == []


def test_a_file_or_a_folder_is_copied(site: Site, tmp_path: Path) -> None:
    """From a stick, with what belongs to the weights; and a hidden half of it never shows."""
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / FILE).write_bytes(WEIGHTS)
    (stick / "holiday.jpg").write_bytes(b"x")
    (stick / "LICENSE").write_bytes(b"free")
    assert last(site.pull(str(stick))).id == "tiny-1b"
    assert {path.name for path in site.weights.parent.iterdir()} == {FILE, "LICENSE", "manifest.toml", "pulled.json"}
    assert site.hub.asked == []
    shutil.rmtree(site.weights.parent)
    site.pull(str(stick / FILE))
    assert site.weights.read_bytes() == WEIGHTS
    with pytest.raises(PullFailed, match=r"has no \.gguf or \.rkllm file in it"):
        site.pull(str(tmp_path))
    (stick / "other.gguf").write_bytes(WEIGHTS)
    with pytest.raises(PullFailed, match=f"several models in it: {FILE}, other.gguf"):
        site.pull(str(stick))


def test_an_address_is_fetched(site: Site) -> None:
    """Of any server, which gets no token."""
    site.pull(f"{site.hub.store_url}/cdn/{GGUF}/{FILE}", token="secret-token")
    assert site.weights.read_bytes() == WEIGHTS
    assert all("Authorization" not in headers for _, headers in site.hub.asked)
    assert "does not end in the name" in str_of(site, f"{site.hub.store_url}/x.zip")


def test_a_file_that_is_cut_where_it_lies_is_refused(site: Site) -> None:
    """At the pull, with the reason, and no part of it stays; once it is whole there, it is fetched."""
    whole = gguf(tensor_bytes=4096)
    address = f"{site.hub.store_url}/cdn/{GGUF}/{FILE}"
    site.hub.repos[GGUF].files[FILE] = whole[:-4000]
    refused = site.refusal(address)
    assert refused.code == CommandCode.DAMAGED
    assert f"{FILE} arrived as it is where it came from, and cannot be used: it was cut short: " in str(refused)
    assert not list(site.shelf.models_dir.rglob(f"{FILE}*"))
    site.hub.repos[GGUF].files[FILE] = whole
    site.pull(address)
    assert site.weights.read_bytes() == whole


def test_what_has_changed_at_an_address_is_fetched_anew(site: Site) -> None:
    """By its size or, where that is the same, by its entity tag; where nobody answers, what is there is kept."""
    address = f"{site.hub.store_url}/cdn/{GGUF}/{FILE}"
    files, tags = site.hub.repos[GGUF].files, site.hub.tags
    tags[FILE] = '"one"'
    site.pull(address)
    for changed, tag in ((WEIGHTS, '"one"'), (WEIGHTS + b"more", '"one"'), (WEIGHTS + b"less", '"two"')):
        again = changed == site.weights.read_bytes()
        files[FILE], tags[FILE] = changed, tag
        assert (last(site.pull(address)).message == "tiny-1b is there already.") is again
        assert site.weights.read_bytes() == changed
    site.hub.faults = [Fault(status=503)]
    assert last(site.pull(address)).message == "tiny-1b is there already."


def test_what_was_damaged_here_is_fetched_anew(site: Site) -> None:
    """The disk has less of it than what came, or it is no model any more; but what no pull put there is left alone."""
    for damaged in (WEIGHTS[:-1], bytes(len(WEIGHTS))):
        site.pull()
        site.weights.write_bytes(damaged)
        assert last(site.pull()).message == ""
        assert site.weights.read_bytes() == WEIGHTS
    shutil.rmtree(site.weights.parent)
    (site.shelf.models_dir / FILE).write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(PullFailed, match="which no pull put there"):
        site.pull()


def str_of(site: Site, what: str) -> str:
    with pytest.raises(PullFailed) as caught:
        site.pull(what)
    return str(caught.value)


def test_two_pulls_of_a_model_do_not_meet(site: Site) -> None:
    """The second waits for the first, whichever process does it, and finds the model there."""
    shelf = replace(site.shelf, hub=Client(opener(), site.hub.url))
    first = pull("tiny:1b", shelf, pull_id="p1", local=True)
    while next(first).step is not PullStep.FETCHING:
        pass
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        list(first)

    second = pull("tiny", replace(shelf, wait=wait), pull_id="p2", local=True)
    assert last(list(second)).message.endswith("is there already.")
    assert waits == [1.0]
