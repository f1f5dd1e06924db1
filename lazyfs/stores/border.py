"""The border where the exceptions of boto3 and of what is below it end: each becomes one of ours.

Must not know what was asked for.
"""

import http.client
from collections.abc import Callable
from typing import Any, TypeVar

import botocore.exceptions
import urllib3

from lazyfs.errors import AccessDenied, NotFound, StoreError, Transient
from lazyfs.stores.answers import failure

T = TypeVar("T")


def translated(function: Callable[..., T], *args: Any) -> T:
    """Call, with every foreign exception turned into one of ours. The border where boto3's exceptions end."""
    try:
        return function(*args)
    except StoreError:
        raise
    except botocore.exceptions.ClientError as error:
        raise _client_failure(error) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        raise AccessDenied(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a --profile, "
            "or use --no-sign-request for a public bucket"
        ) from error
    except botocore.exceptions.ParamValidationError as error:
        raise NotFound(f"S3 has no such name: {error}") from error
    except (
        botocore.exceptions.BotoCoreError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        # Of botocore's own: credentials that are expired when they come, and a time of an object that is none.
        RuntimeError,
        # A body closed under our feet by a broken connection: http.client then reads from None.
        AttributeError,
        ValueError,
    ) as error:
        raise Transient(f"{type(error).__name__}: {error}") from error


def status_of(error: botocore.exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _client_failure(error: botocore.exceptions.ClientError) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return failure(status_of(error), code, str(error.response.get("Error", {}).get("Message", "") or error))
