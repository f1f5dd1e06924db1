"""boto3's client of a bucket's endpoint, made when there are credentials to make it with: the only importer of boto3.

Its job: every setting of the client, with its reason. One client for each mount (clients are thread safe), made once
because making one costs about 50 ms; credentials stay botocore's affair, which refreshes them. Must not know what is
asked. Any thread.
"""

import functools
import logging
import threading
from functools import partial
from typing import Any

import boto3
import botocore.exceptions
import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from lazyfs.errors import SetupError, Transient
from lazyfs.stores.profiles import profile_of
from lazyfs.stores.signing import Signer
from lazyfs.stores.traffic import Traffic
from lazyfs.stores.wire import CONNECT_TIMEOUT, STALL_TIMEOUT

log = logging.getLogger(__name__)


def session_of(profile: str | None) -> boto3.session.Session:
    """A new session, which looks for credentials of its own. `ProfileNotFound` of botocore for a profile that is not
    there.

    What botocore's own files say of S3 and of endpoints is read once for all sessions: that took three quarters of
    making a client, 0.15 s of 0.2 on a slow machine, for each source of a mount.
    """
    botocore_session = botocore.session.get_session()
    if profile is not None:
        botocore_session.set_config_variable("profile", profile)
    loader = _loader(botocore_session.get_config_variable("data_path"))
    botocore_session.register_component("data_loader", loader)
    made = boto3.session.Session(botocore_session=botocore_session)
    loader.search_paths[:] = dict.fromkeys(loader.search_paths)  # each session of boto3 adds its own files
    return made


@functools.cache
def _loader(data_path: str | None) -> botocore.loaders.Loader:
    return botocore.loaders.create_loader(data_path)


class Connection:
    """A client and the signer that watches it."""

    def __init__(
        self,
        *,
        endpoint_url: str | None,
        region: str | None,
        profile: str | None,
        no_sign_request: bool,
        path_style: bool,
        ca_bundle: str | None,
        connections: int,
        traffic: Traffic,
        provider: str = "auto",
        transfer_acceleration: bool = False,
        dual_stack: bool = False,
        fips: bool = False,
    ) -> None:
        """Sends nothing to S3. `SetupError` for a profile or a CA bundle that does not exist.

        `provider` as for `profiles.profile_of`. `path_style`: the bucket in the path also where the profile has it in
        the host.
        """
        self.server = profile_of(provider, endpoint_url)
        try:
            self._session = session_of(profile)
        except botocore.exceptions.ProfileNotFound as error:
            raise SetupError(f"{error}; see `aws configure list-profiles`") from error
        self._unsigned = no_sign_request
        self._traffic = traffic
        self._arguments: dict[str, Any] = {
            "endpoint_url": endpoint_url,
            "region_name": region,
            "verify": ca_bundle,
            "config": Config(
                # Else botocore chooses by bucket: told "s3v4", it signs requests to multi-region access points (SigV4A)
                # and to S3 Express (a session) in a way that is refused there.
                signature_version=UNSIGNED if no_sign_request else None,
                s3={
                    "addressing_style": "path" if path_style else self.server.addressing,
                    "use_accelerate_endpoint": transfer_acceleration,
                },
                # None leaves it to AWS_USE_DUALSTACK_ENDPOINT, AWS_USE_FIPS_ENDPOINT and the profile.
                use_dualstack_endpoint=dual_stack or None,
                use_fips_endpoint=fips or None,
                # All asking again is fetch.py's: two retriers multiply.
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Servers other than AWS stumble over the checksums newer SDKs add by default.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=STALL_TIMEOUT,
                max_pool_connections=connections + 8,
                tcp_keepalive=True,
            ),
        }
        self._lock = threading.Lock()
        self._made: tuple[Any, Signer] | None = None
        try:
            self.ready()
        except Transient as error:
            # Whoever gives them may do so later, and until then the cache is read without.
            log.warning("there are no credentials yet: %s", error)
        except (botocore.exceptions.BotoCoreError, ValueError, OSError) as error:
            raise SetupError(f"cannot set up S3: {error}") from error

    def ready(self) -> tuple[Any, Signer]:
        """The client, any because the stubs type each of the 300 calls and not the raw body that is read here, and its
        signer. `Transient` while who shall give the credentials does not."""
        with self._lock:
            if self._made is None:
                try:
                    self._made = self._make()
                except (
                    botocore.exceptions.CredentialRetrievalError,
                    botocore.exceptions.MetadataRetrievalError,
                ) as error:
                    raise Transient(f"{type(error).__name__}: {error}") from error
            return self._made

    def _make(self) -> tuple[Any, Signer]:
        session, arguments = self._session, self._arguments
        region = arguments["region_name"] or session.region_name or self.server.region
        made: Any = session.client("s3", **{**arguments, "region_name": region})
        made.meta.events.register("before-call.s3.HeadBucket", _as_it_is)
        self._traffic.watch(made)
        accepted = self.server.accept_encoding
        if accepted != "identity":  # which http.client says of itself
            for name in ("GetObject", "HeadObject"):
                made.meta.events.register(f"before-send.s3.{name}", partial(_accepting, accepted))
        return made, Signer(made, None if self._unsigned else session.get_credentials(), accepted)

    def close(self) -> None:
        """Close the client's connections that are idle."""
        if self._made is not None:
            self._made[0].close()


def _accepting(coding: str, request: Any, **_: Any) -> None:
    """Say so in a request that is signed already, for there are servers that change this header before they look."""
    request.headers["Accept-Encoding"] = coding


def _as_it_is(params: dict[str, Any], **_: Any) -> None:
    """Let the HEAD of a bucket, by which botocore finds out where a request was redirected to, not be redirected
    itself: botocore would send another one to find out where to, 80 of them until Python ends the recursion."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
