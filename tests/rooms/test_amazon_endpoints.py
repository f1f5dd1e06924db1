"""Where requests to AWS go and how they are signed, by option and by kind of bucket: up to the request that is built.

Where the signature is not plain SigV4, nothing is learned, so that both engines leave every GET to botocore."""

import io
from typing import Any

import pytest
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from lazyfs.config import Config, parse_source
from lazyfs.errors import UsageError
from tests.rooms.test_signing import Offline

pytestmark = pytest.mark.usefixtures("_aws")

ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/weights"
GLOBAL = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"
EXPRESS = "models--usw2-az1--x-s3"
SESSION = (
    b"<CreateSessionResult><Credentials><AccessKeyId>EXPRESS</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
    b"<SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"
)


def session(request: Any, **_: Any) -> AWSResponse:
    """The answer to CreateSession."""
    raw = urllib3.HTTPResponse(io.BytesIO(SESSION), status=200, preload_content=False)
    return AWSResponse(request.url, 200, HTTPHeaders(), raw)


@pytest.mark.parametrize(
    ("bucket", "options", "host", "region"),
    [
        ("models", {}, "models.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("models", {"transfer_acceleration": True}, "models.s3-accelerate.amazonaws.com", "us-west-2"),
        ("models", {"dual_stack": True}, "models.s3.dualstack.us-west-2.amazonaws.com", "us-west-2"),
        ("models", {"fips": True}, "models.s3-fips.us-west-2.amazonaws.com", "us-west-2"),
        (ARN, {}, "weights-123456789012.s3-accesspoint.eu-west-1.amazonaws.com", "eu-west-1"),
    ],
)
def test_plain_signatures_are_learned(bucket: str, options: dict[str, Any], host: str, region: str) -> None:
    """The next GET is written for the host and the region of botocore's first."""
    store = Offline(bucket, region="us-west-2", **options)
    pattern = store.learned()
    url, headers = store.sent[0]
    assert url == f"https://{host}/k"
    assert f"/{region}/s3/aws4_request" in headers["authorization"]
    assert pattern is not None
    assert (pattern.host, pattern.region, pattern.name, pattern.tls) == (host, region, "s3", True)


def test_a_multi_region_access_point_is_signed_for_all_regions() -> None:
    """By SigV4A, which awscrt counts for botocore, and never by us."""
    store = Offline(GLOBAL, region="us-west-2")
    assert store.learned() is None
    url, headers = store.sent[0]
    assert url == "https://mfzwi23gnjvgw.mrap.accesspoint.s3-global.amazonaws.com/k"
    assert headers["authorization"].startswith("AWS4-ECDSA-P256-SHA256 ")
    assert headers["x-amz-region-set"] == "*"


def test_a_directory_bucket_is_read_in_a_session() -> None:
    """S3 Express One Zone: botocore makes the session, and never us."""
    store = Offline(EXPRESS, region="us-west-2")
    store.store._client.meta.events.register("before-send.s3.CreateSession", session)
    assert store.learned() is None
    url, headers = store.sent[0]
    assert url == f"https://{EXPRESS}.s3express-usw2-az1.us-west-2.amazonaws.com/k"
    assert headers["x-amz-s3session-token"] == "token"
    assert "Credential=EXPRESS/" in headers["authorization"]


@pytest.mark.parametrize("arn", [ARN, GLOBAL])
def test_an_access_point_is_a_source(arn: str) -> None:
    """What follows the name is the prefix."""
    assert parse_source(f"s3://{arn}") == (arn, "")
    assert parse_source(f"s3://{arn}/a/b") == (arn, "a/b/")


@pytest.mark.parametrize("name", ["transfer_acceleration", "dual_stack", "fips"])
def test_an_endpoint_is_chosen_once(name: str) -> None:
    """An endpoint of one's own and a kind of AWS's exclude each other."""
    options: dict[str, Any] = {name: True}
    with pytest.raises(UsageError, match="leave --endpoint-url out"):
        Config(endpoint_url="http://127.0.0.1:9000", **options)
