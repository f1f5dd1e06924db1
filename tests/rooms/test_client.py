"""Sessions of boto3: what they share, and what each has of its own."""

import botocore.exceptions
import pytest

from lazyfs.stores.client import session_of


def test_sessions_share_what_botocores_files_say_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials are looked for by each, in the environment of that moment, also where another one has found some."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "first")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    first = session_of(None)
    found = first.get_credentials()
    assert found is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "second")
    second = session_of(None)
    other = second.get_credentials()
    assert other is not None
    assert (found.access_key, other.access_key) == ("first", "second")
    loaders = [session._session.get_component("data_loader") for session in (first, second)]
    assert loaders[0] is loaders[1]
    assert len(loaders[0].search_paths) == len(set(loaders[0].search_paths)), "a path more for each session"
    clients = [session.client("s3", region_name="us-east-1") for session in (first, second)]
    assert clients[0].meta.service_model is not clients[1].meta.service_model
    assert clients[0].meta.events is not clients[1].meta.events


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is said at once, also after a session that had none."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    session_of(None)
    with pytest.raises(botocore.exceptions.ProfileNotFound):
        session_of("missing")
