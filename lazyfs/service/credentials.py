"""Credentials that systemd passes to a service: LoadCredential=aws:FILE and its like, systemd.exec(5).

Its job: name that file to boto3, whose own rules hold for all the rest. Must not read it.
"""

import os

NAME = "aws"
"""The credential's name in a unit: a file as ~/.aws/credentials is."""


def use_credentials_of_service() -> None:
    """Have boto3 read `$CREDENTIALS_DIRECTORY/aws`, if there is one and nobody named another shared credentials file.
    To be called before boto3 is asked for a session."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and os.path.exists(path := os.path.join(directory, NAME)):
        os.environ.setdefault("AWS_SHARED_CREDENTIALS_FILE", path)
