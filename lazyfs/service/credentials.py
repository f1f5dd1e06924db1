"""Credentials that systemd passes to a service: LoadCredential=aws:FILE and its like, systemd.exec(5).

Its job: name that file to boto3, whose own rules hold for all the rest. Must not know what is in it.
"""

import os
from collections.abc import Mapping

NAME = "aws"
"""The credential's name in a unit: a file as ~/.aws/credentials is."""

VARIABLE = "AWS_SHARED_CREDENTIALS_FILE"


def use_credentials_of_service() -> None:
    """Have boto3 read `$CREDENTIALS_DIRECTORY/aws`, if there is one and nobody named another shared credentials file.
    To be called before boto3 is asked for a session."""
    path = _passed(os.environ)
    if path is not None:
        os.environ[VARIABLE] = path


def credentials_for(environment: Mapping[str, str]) -> int | None:
    """The same file as a descriptor, for a command that runs as another user, who must not open what is this service's;
    it reads `/dev/fd/N`. In memory, and gone with who has it. None if there is none."""
    path = _passed(environment)
    if path is None:
        return None
    with open(path, "rb") as stream:
        text = stream.read()
    descriptor = os.memfd_create("lazyfs-credentials")
    os.write(descriptor, text)
    os.fchmod(descriptor, 0o444)  # who has the descriptor may read it, and nobody else has a way to it
    return descriptor


def _passed(environment: Mapping[str, str]) -> str | None:
    path = os.path.join(environment.get("CREDENTIALS_DIRECTORY", ""), NAME)
    return path if VARIABLE not in environment and os.path.isabs(path) and os.path.exists(path) else None
