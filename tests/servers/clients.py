"""How to reach an S3 server: its address, its keys, and a boto3 client with both.

Everything is explicit, because the machine's own AWS_* variables and profiles are none of a test's business.
"""

from types import TracebackType
from typing import Any, Self


class S3Endpoint:
    """What all servers here have in common. As a context manager they stop at the end of the block."""

    access_key = "test:tester"
    secret_key = "testing"
    region = "us-east-1"

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        raise NotImplementedError

    def client(self, *, verify: str | None = None, **config: Any) -> Any:
        """A new boto3 client: path style, no second attempts.

        `verify` is the CA bundle for TLS, a path; `config` are fields of botocore's Config.
        """
        # Not at the top: a process that only serves has no use for 30 MB of boto3.
        from botocore.config import Config  # noqa: PLC0415

        from lazyfs.stores.client import session_of  # noqa: PLC0415

        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "signature_version": "s3v4",
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": 5,
            "read_timeout": 30,
            **config,
        }
        return session_of(None).client(
            "s3",
            endpoint_url=self.url,
            verify=verify,
            config=Config(**settings),
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )

    def stop(self) -> None:
        """End the server and wait until it is gone. Nothing happens if it is not running."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
