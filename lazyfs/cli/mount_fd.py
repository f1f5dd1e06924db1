"""`lazyfs mount-fd`: the privileged half of a mount, which does nothing but mount, wait and unmount.

Its job: mount a /dev/fuse descriptor in the name of a user, run a command as that user, without any privilege, with the
descriptor as /dev/fd/3, and take the mount away when the command has ended. Must not know what the command does.
"""

import contextlib
import ctypes
import fcntl
import os
import pwd
import signal
import subprocess

import click

from lazyfs.errors import SetupError, UsageError
from lazyfs.service import handed, mounts
from lazyfs.service.credentials import VARIABLE, credentials_for

DESCRIPTOR, CREDENTIALS = 3, 4
"""Of the command: the mount, and what systemd passed to this side (`credentials.py`)."""

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
"""linux/prctl.h."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@click.command("mount-fd", context_settings={"ignore_unknown_options": True})
@click.argument("mountpoint", type=click.Path())
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--user", required=True, help="Whom the mount belongs to and the command runs as; a name or a number.")
@click.option("--source", default="lazyfs", help="What mount(8) shows as the source.")
@click.option("--allow-other", is_flag=True, help="Let other users read the mount, root included.")
@click.option("--noexec", is_flag=True, help="Refuse to execute files of the mount.")
def mount_fd(
    mountpoint: str, command: tuple[str, ...], user: str, source: str, allow_other: bool, noexec: bool
) -> None:
    """Mount at MOUNTPOINT as root, and run COMMAND without privileges to serve it as /dev/fd/3.

    COMMAND is `lazyfs mount --foreground SOURCE /dev/fd/3` with its options, after `--`. It runs as --user, without
    capabilities and unable to gain any. Signals are passed on to it; when it has ended, the mount is taken away.
    """
    uid, gid = _user(user)
    place = mounts.prepare_mountpoint(mountpoint)
    # Blocked before there is anything to lose, and taken one by one below: no moment in which one would end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    descriptor = handed.mount_descriptor(
        source, place, uid=uid, gid=gid, allow_other=allow_other, noexec=noexec
    )
    try:
        raise SystemExit(_run(command, descriptor, uid, gid))
    finally:
        # Lazily: what is open on it has had its ENOTCONN, and must not keep a dead mount in the tree.
        with contextlib.suppress(SetupError):
            mounts.unmount(place, lazy=True)


def _user(text: str) -> tuple[int, int]:
    """User and group id; `UsageError` for a user that does not exist."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
    except KeyError:
        if text.isdigit():  # as in containers, where nobody has names
            return int(text), int(text)
        raise UsageError(f"there is no user {text!r}; make one with: useradd --system {text}") from None
    return entry.pw_uid, entry.pw_gid


def _run(command: tuple[str, ...], descriptor: int, uid: int, gid: int) -> int:
    """Run the command with the descriptor, which this process lets go of: a connection ends with its last one. Its exit
    status, 128 and the signal for one that was killed."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def become() -> None:
        # In the child: libc and system calls only.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*PASSED_ON, signal.SIGCHLD))
        os.dup2(kept[0], DESCRIPTOR)
        if len(kept) > 1:
            os.dup2(kept[1], CREDENTIALS)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)  # from root to another user, which clears every capability
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
    # Above 4, so that neither is overwritten by the other's dup2.
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)]
    os.close(descriptor)
    credentials = credentials_for(environment)
    if credentials is not None:
        environment[VARIABLE] = f"/dev/fd/{CREDENTIALS}"
        kept.append(fcntl.fcntl(credentials, fcntl.F_DUPFD, 10))
        os.close(credentials)
    passed = (DESCRIPTOR, CREDENTIALS)[: len(kept)]
    try:
        with subprocess.Popen(
            command, env=environment, pass_fds=passed, preexec_fn=become  # noqa: PLW1509 (no threads here)
        ) as child:
            for number in kept:
                os.close(number)
            while child.poll() is None:
                number = signal.sigwait((*PASSED_ON, signal.SIGCHLD))
                if number != signal.SIGCHLD:
                    child.send_signal(number)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"cannot run {command[0]!r}: {error}") from None
