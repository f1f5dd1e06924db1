"""The index against a dictionary: what is present, what is spoken for, who was used last, through every event."""

import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lazyfs.cache.answer import Answer
from lazyfs.cache.index import VERDICTS_BESIDE, Index
from lazyfs.cache.records import WHOLE_FILE, Run, Written, disk_size
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCKS_PER_CHUNK, CHUNK_SIZE, MIB, SEGMENT_CHUNKS, ObjectVersion

SIZES = (1, MIB, 70 * MIB + 5, 130 * MIB)
VERSIONS = [ObjectVersion("p", f"k{number}", '"e"', size) for number, size in enumerate(SIZES)]
UNBOUND = 1 << 50


def sums(number: int) -> bytes:
    """Checksums that tell chunks apart."""
    return number.to_bytes(8, "little") * BLOCKS_PER_CHUNK


def which_of(run: Run) -> int:
    """The number of the version whose file it is in."""
    return next(which for which, version in enumerate(VERSIONS) if version.object_id == run.object_id)


class IndexMachine(RuleBasedStateMachine):
    """Any order of keeping, discarding, burying, digging and reopening leaves the index as a dictionary would be."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = TemporaryDirectory()
        self.path = Path(self.scratch.name) / "index"
        self.index = Index(self.path)
        self.present: dict[tuple[int, int], int] = {}
        self.graves: dict[Run, int] = {}
        self.claimed: dict[int, tuple[Run, int]] = {}

    def teardown(self) -> None:
        """Close the index and delete it."""
        self.index.close()
        self.scratch.cleanup()

    @rule(which=st.integers(0, 3), first=st.integers(0, 129), count=st.integers(1, 4), daemon=st.integers(1, 2))
    def keep(self, which: int, first: int, count: int, daemon: int) -> None:
        """Claim, and settle what was written. Nothing is written where something has to be cleared."""
        run = self.claim(daemon, which, first, count)
        if run is None:
            return
        del self.claimed[daemon]
        version = VERSIONS[which]
        numbers = range(run.first, run.stop)
        counted = self.index.settle(daemon, [Written(version, run.generation, n, sums(n)) for n in numbers])
        assert counted == len([n for n in numbers if (which, n) not in self.present])
        self.present |= {(which, n): run.generation for n in numbers}

    def claim(self, daemon: int, which: int, first: int, count: int) -> Run | None:
        """The run that was claimed, if there was room between the graves."""
        version = VERSIONS[which]
        first = min(first, version.chunk_count - 1)
        run = Run(version.object_id, self.index.generation(version), first, min(first + count, version.chunk_count))
        size = sum(disk_size(version.chunk_length(n)) for n in range(run.first, run.stop))
        answer = self.index.claim(daemon, [run], size, UNBOUND, [version])
        if any(run.overlaps(grave) for grave in self.graves) or daemon in self.claimed:
            assert answer is Answer.BLOCKED
            return None
        assert answer is Answer.GRANTED
        self.claimed[daemon] = (run, size)
        return run

    @rule(daemon=st.integers(3, 5), which=st.integers(0, 3), first=st.integers(0, 129), count=st.integers(1, 4))
    def claim_and_die(self, daemon: int, which: int, first: int, count: int) -> None:
        """A daemon that claims and never settles."""
        self.claim(daemon, which, first, count)

    @rule(daemon=st.integers(3, 5))
    def release_the_dead(self, daemon: int) -> None:
        """Another daemon ends its claim: what is not there has to be cleared, except where others write."""
        self.index.settle(daemon, [])
        run, _ = self.claimed.pop(daemon, (None, 0))
        if run is None:
            return
        which = which_of(run)
        if self.missing(run) and not any(at == which for at, _ in self.present) and not self.claims_on(run.object_id):
            self.graves[Run(run.object_id, run.generation, 0, WHOLE_FILE)] = 0
            return
        for one in self.missing(run):
            if not any(one.overlaps(other) for other in self.claims_on(run.object_id)):
                self.graves[one] = disk_size(VERSIONS[which].chunk_length(one.first))

    def missing(self, run: Run) -> list[Run]:
        """The chunks of it that are not present, each as a run."""
        numbers = [n for n in range(run.first, run.stop) if (which_of(run), n) not in self.present]
        return [Run(run.object_id, run.generation, n, n + 1) for n in numbers]

    def claims_on(self, object_id: bytes) -> list[Run]:
        """What is being written of an object."""
        return [run for run, _ in self.claimed.values() if run.object_id == object_id]

    @rule(which=st.integers(0, 3), number=st.integers(0, 129))
    def discard(self, which: int, number: int) -> None:
        """One chunk turned out wrong."""
        freed = self.index.discard(VERSIONS[which].object_id, number)
        assert self._buried() == freed

    @rule(which=st.integers(0, 3))
    def bury_object(self, which: int) -> None:
        """Everything of one object goes, or nothing if somebody writes to it."""
        object_id = VERSIONS[which].object_id
        freed = self.index.bury_object(object_id)
        assert self._buried() == freed
        assert self.claims_on(object_id) or not any(at == which for at, _ in self.present)

    @rule(size=st.integers(1, 80 * MIB))
    def bury(self, size: int) -> None:
        """Least recently used chunks go until so much is free."""
        before = self.total()
        freed = self.index.bury(size)
        assert self._buried() == freed
        assert self.claimed or freed >= min(size, before)

    def _buried(self) -> int:
        """Follow in the model what the index forgot; the bytes of it."""
        freed = 0
        for run in set(self.index.graves()) - self.graves.keys():
            which = which_of(run)
            gone = [k for k in self.present if k[0] == which and (run.whole or run.first <= k[1] < run.stop)]
            size = sum(disk_size(VERSIONS[which].chunk_length(number)) for _, number in gone)
            for key in gone:
                del self.present[key]
            self.graves[run] = size
            freed += size
        return freed

    @precondition(lambda self: bool(self.graves))
    @rule()
    def dig(self) -> None:
        """The disk was cleared."""
        run = next(iter(self.graves))
        self.index.dug([run])
        del self.graves[run]

    @rule(which=st.integers(0, 3), segment=st.integers(0, 2))
    def touch(self, which: int, segment: int) -> None:
        """A use changes nothing but the order."""
        self.index.touch({(VERSIONS[which].object_id, segment)})

    @rule()
    def reopen(self) -> None:
        """Nothing is lost by a restart."""
        self.index.close()
        self.index = Index(self.path)

    def total(self) -> int:
        """Bytes of the chunks that the model has."""
        return sum(disk_size(VERSIONS[which].chunk_length(number)) for which, number in self.present)

    @invariant()
    def presence_is_that_of_the_model(self) -> None:
        """Every chunk, by record and by bit."""
        for which, version in enumerate(VERSIONS):
            wanted = {number for at, number in self.present if at == which}
            found = {
                segment * SEGMENT_CHUNKS + place
                for segment in range(-(-version.chunk_count // SEGMENT_CHUNKS))
                for place in range(SEGMENT_CHUNKS)
                if self.index.present(version.object_id, segment) >> place & 1
            }
            assert found == wanted
            assert self.index.present_chunks(version.object_id) == len(wanted)
            for number in list(wanted)[:3]:
                kept = self.index.kept(version.object_id, number)
                assert kept is not None
                assert (kept.generation, kept.sums) == (self.present[which, number], sums(number))

    @invariant()
    def what_is_spoken_for_is_the_sum(self) -> None:
        """Chunks, graves, claims, and the file of the index itself."""
        claimed = sum(size for _, size in self.claimed.values())
        spoken_for = self.total() + sum(self.graves.values()) + claimed
        before = self.own_size()
        own = self.index.used() - spoken_for
        # A filesystem that allocates late has given the file more, or less, by the time one looks.
        assert own in (before, self.own_size())

    def own_size(self) -> int:
        return (self.path / "data.mdb").stat().st_blocks * 512

    @invariant()
    def what_is_unfinished_is_remembered(self) -> None:
        """Graves and claims of the dead are found by the next daemon, and nobody writes where another will clear."""
        assert set(self.index.graves()) == set(self.graves)
        assert self.index.claims() == {daemon: [run] for daemon, (run, _) in self.claimed.items()}
        assert not any(run.overlaps(grave) for run, _ in self.claimed.values() for grave in self.graves)


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=40)  # each opens an LMDB file and asks for 400 records a step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an index is to be."""
    return tmp_path / "index"


def kept_index(path: Path) -> Index:
    """An index with three objects of one chunk each, used in the order of their names."""
    index = Index(path)
    for version in (ObjectVersion("p", name, '"e"', MIB) for name in "abc"):
        generation = index.generation(version)
        assert index.claim(1, [Run(version.object_id, generation, 0, 1)], MIB, UNBOUND, [version])
        assert index.settle(1, [Written(version, generation, 0, sums(0))]) == 1
    return index


def test_least_recently_used_goes_first(path: Path) -> None:
    """A touch moves an object to the end of the queue."""
    index = kept_index(path)
    ids = {ObjectVersion("p", name, '"e"', MIB).object_id: name for name in "abc"}
    index.touch({(next(i for i, name in ids.items() if name == "a"), 0)})
    order = []
    for _ in range(3):
        assert index.bury(1) == MIB
        order += [ids[run.object_id] for run in index.graves()]
        index.dug(index.graves())
    index.close()
    assert order == ["b", "c", "a"]


def test_verdicts_of_what_has_left_the_cache_are_forgotten(path: Path) -> None:
    """Not at once, but before they are many; what is here keeps its own."""
    index = kept_index(path)
    here = [ObjectVersion("p", name, '"e"', MIB).object_id for name in "abc"]
    for object_id in here:
        index.put_verdict(object_id, b"here")
    gone = [number.to_bytes(16, "big") for number in range(2 * VERDICTS_BESIDE)]
    for object_id in gone:
        index.put_verdict(object_id, b"gone")
    assert [index.verdict(object_id) for object_id in here] == [b"here"] * 3
    assert 0 < sum(index.verdict(object_id) is not None for object_id in gone) <= VERDICTS_BESIDE + 6
    assert index.verdict(gone[-1]) == b"gone"
    index.close()


def test_a_claim_beyond_the_bound_is_refused(path: Path) -> None:
    """Space is spoken for before it is written, or not at all."""
    index = kept_index(path)
    used = index.used()
    assert not index.claim(1, [], 1, used)
    assert index.used() == used
    assert index.claim(1, [], CHUNK_SIZE, used + CHUNK_SIZE)
    index.close()


def test_a_record_with_any_byte_flipped_is_absent(path: Path) -> None:
    """The seal covers key and value: no flipped bit makes a chunk present, or its checksums others."""
    index = kept_index(path)
    version = ObjectVersion("p", "a", '"e"', MIB)
    with index._env.begin(db=index._segments) as txn:
        key, value = next((bytes(k), bytes(v)) for k, v in txn.cursor() if k.startswith(version.object_id))
    for place in (*range(40), *range(40, len(value), 257), len(value) - 1):
        broken = bytearray(value)
        broken[place] ^= 0x10
        with index._env.begin(write=True, db=index._segments) as txn:
            txn.put(key, bytes(broken))
        assert index.kept(version.object_id, 0) is None
        assert index.present(version.object_id, 0) == 0
    index.close()


def test_a_record_under_another_key_is_absent(path: Path) -> None:
    """A sound record that was swapped with another's does not speak for it."""
    index = kept_index(path)
    with index._env.begin(write=True, db=index._segments) as txn:
        records = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
        for (key, _), (_, value) in zip(records, records[1:] + records[:1], strict=True):
            txn.put(key, value)
    assert [index.kept(key[:16], 0) for key, _ in records] == [None] * 3
    index.close()


@pytest.mark.parametrize("raw", [b"", b"noise" * 4000, bytes(8192)])
def test_a_file_that_is_no_index_is_refused(path: Path, raw: bytes) -> None:
    """Noise, zeros: an error by name, and no crash. An empty file is as good as none."""
    path.mkdir()
    (path / "data.mdb").write_bytes(raw)
    if raw:
        with pytest.raises(CacheUnavailable):
            Index(path)
    else:
        Index(path).close()


def test_an_index_of_another_format_is_refused(path: Path) -> None:
    """One that a newer lazyfs wrote is not guessed at."""
    kept_index(path).close()
    with lmdb.open(str(path), max_dbs=8) as env, env.begin(write=True, db=env.open_db(b"meta")) as txn:
        txn.put(b"format", b"lazyfs-index-99")
    with pytest.raises(CacheUnavailable, match="lazyfs-index-99"):
        Index(path)


def test_an_index_that_lmdb_has_given_up_is_opened_again(path: Path) -> None:
    """A write that fails (here of pages beyond the size a file may have) makes LMDB refuse the environment for good,
    reads included. The file is as it was, so reads go on at once, and writes when the disk can."""
    index = kept_index(path)
    version = ObjectVersion("p", "a", '"e"', MIB)
    used = index.used()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size, hard))
    try:
        for _ in range(3):
            with pytest.raises(CacheUnavailable):
                index.put_listings({b"key": bytes(MIB)})
            assert index.kept(version.object_id, 0) is not None
            assert index.used() == used
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    index.put_listings({b"key": bytes(MIB)})
    assert index.listing(b"key") == bytes(MIB)
    assert index.kept(version.object_id, 0) is not None
    index.close()
