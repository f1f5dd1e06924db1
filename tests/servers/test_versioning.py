"""Versions on our server as on the real ones: what a put, a delete and a list of versions do."""

from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import pytest

from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.moto_server import MotoServer
from tests.servers.swift import SwiftServer


@pytest.fixture(scope="module", params=["ours", "swift", "moto"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[S3Endpoint]:
    """Each of the three."""
    if request.param == "swift":
        swift: SwiftServer = request.getfixturevalue("swift")
        yield swift
        return
    with FastS3Server() if request.param == "ours" else MotoServer() as server:
        yield server


@pytest.fixture
def bucket(endpoint: S3Endpoint, request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A client and a bucket that keeps versions, of the test's own."""
    client, name = endpoint.client(), request.function.__name__.replace("_", "-")
    if isinstance(endpoint, FastS3Server):
        endpoint.objects.versioning = ""
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="before", Body=b"0")
    assert "Status" not in client.get_bucket_versioning(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    return client, name


def refused(call: Any, **arguments: Any) -> tuple[int, str, str | None]:
    """Status, code and the delete marker of an answer that is an error."""
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        call(**arguments)
    answer = raised.value.response
    said = answer["ResponseMetadata"]
    return said["HTTPStatusCode"], answer["Error"]["Code"], said["HTTPHeaders"].get("x-amz-delete-marker")


def test_the_life_of_a_key(endpoint: S3Endpoint, bucket: tuple[Any, str]) -> None:
    client, name = bucket
    key = {"Bucket": name, "Key": "dir/ä +"}
    ids = [client.put_object(**key, Body=body)["VersionId"] for body in (b"one", b"three")]
    assert len(set(ids)) == 2
    answer = client.get_object(**key)
    assert (answer["Body"].read(), answer["VersionId"]) == (b"three", ids[1])
    answer = client.get_object(**key, VersionId=ids[0], Range="bytes=1-2")
    assert (answer["Body"].read(), answer["VersionId"]) == (b"ne", ids[0])
    marker = client.delete_object(**key)
    assert marker["DeleteMarker"] is True
    status, code, marked = refused(client.get_object, **key)
    assert (status, code) == (404, "NoSuchKey")
    assert marked in ("true", None)  # Swift does not say it
    assert refused(client.get_object, **key, VersionId=marker["VersionId"])[0] in (404, 405)
    assert client.get_object(**key, VersionId=ids[1])["Body"].read() == b"three"
    listed = client.list_object_versions(Bucket=name, Prefix="dir/")
    assert [(one["VersionId"], one["IsLatest"], one["Size"]) for one in listed["Versions"]] == [
        (ids[1], False, 5),
        (ids[0], False, 3),
    ]
    assert [(one["VersionId"], one["IsLatest"]) for one in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    client.delete_object(**key, VersionId=marker["VersionId"])
    if isinstance(endpoint, SwiftServer):  # it does not bring back what was below the marker
        return
    assert client.get_object(**key)["VersionId"] == ids[1]
    client.delete_object(**key, VersionId=ids[1])
    assert client.get_object(**key)["Body"].read() == b"one"


def test_what_was_there_before_versions(endpoint: S3Endpoint, bucket: tuple[Any, str]) -> None:
    """It is `null`, and stays below what comes on top of it; in Swift, under an id of its own from then on."""
    client, name = bucket
    (before,) = client.list_object_versions(Bucket=name)["Versions"]
    assert (before["Key"], before["VersionId"], before["IsLatest"]) == ("before", "null", True)
    client.put_object(Bucket=name, Key="before", Body=b"1")
    listed = client.list_object_versions(Bucket=name)["Versions"]
    below = listed[1]["VersionId"] if isinstance(endpoint, SwiftServer) else "null"
    assert client.get_object(Bucket=name, Key="before", VersionId=below)["Body"].read() == b"0"


def test_pages_and_delimiters(bucket: tuple[Any, str]) -> None:
    """Page by page it is the same as in one; a common prefix is one, whatever is below it."""
    client, name = bucket
    for key in ("a", "b/one", "b/two", "c", "d/x"):
        for body in (b"1", b"22", b"333"):
            client.put_object(Bucket=name, Key=key, Body=body)
    client.delete_object(Bucket=name, Key="a")
    client.delete_object(Bucket=name, Key="b/one")
    flat = pages(client, name, 1000)
    assert [key for key, *_ in flat] == ["a"] * 4 + ["b/one"] * 4 + ["b/two"] * 3 + ["before"] + ["c"] * 3 + ["d/x"] * 3
    assert pages(client, name, 2) == flat
    folded = [one for one in flat if "/" not in one[0]] + [("b/", ""), ("d/", "")]
    assert sorted(pages(client, name, 1000, Delimiter="/")) == sorted(folded)
    assert sorted(pages(client, name, 2, Delimiter="/")) == sorted(folded)
    behind = [one for one in flat if one[0] > "b/one"]
    assert pages(client, name, 1000, KeyMarker="b/one")[-len(behind) :] == behind  # moto has the key itself as well


def pages(client: Any, bucket: str, most: int, **arguments: Any) -> list[tuple[str, str]]:
    """Keys and ids of all versions, and common prefixes, from pages of `most`; sorted by key."""
    found = []
    while True:
        answer = client.list_object_versions(Bucket=bucket, MaxKeys=most, **arguments)
        items = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
        found += [(one["Key"], one["VersionId"]) for one in items]
        found += [(one["Prefix"], "") for one in answer.get("CommonPrefixes", ())]
        if not answer["IsTruncated"]:
            return sorted(found)
        arguments |= {"KeyMarker": answer["NextKeyMarker"]}
        arguments.pop("VersionIdMarker", None)
        if answer.get("NextVersionIdMarker"):
            arguments["VersionIdMarker"] = answer["NextVersionIdMarker"]
