"""What the tests of all rooms share: hypothesis without chance or deadlines, and credentials of nobody."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from tests.rooms.building import CacheMaker
from tests.rooms.memory_store import MemoryStore
from tests.servers.clients import S3Endpoint

settings.register_profile(
    "rooms",
    derandomize=True,  # a test that fails once in a hundred runs is found when it is written, or never
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("rooms")


@pytest.fixture(scope="session")
def _aws() -> Iterator[None]:
    """The credentials of the test servers, where boto3's own chain finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", S3Endpoint.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3Endpoint.secret_key)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        yield


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory for a cache."""
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def caches(place: Path) -> Iterator[CacheMaker]:
    """Opens disk caches on `place`; all are closed in the end."""
    with CacheMaker(place) as maker:
        yield maker


@pytest.fixture
def directory(place: Path) -> Iterator[CacheDirectory]:
    """A cache directory with this daemon in it."""
    made = CacheDirectory(place, create=False)
    yield made
    made.close()


@pytest.fixture
def store() -> MemoryStore:
    """An empty store in memory."""
    return MemoryStore()


@pytest.fixture
def disk(caches: CacheMaker) -> Disk:
    """An empty disk cache."""
    return caches.open()
