"""The machine: FUSE, rights, limits, the kernel. Must not know the bucket or the cache. Changes nothing."""

import ctypes
import os
import platform
import resource
import shutil
import stat
from pathlib import Path

from lazyfs.objects import MIB
from lazyfs.service import machine, mounts
from lazyfs.service.doctor.findings import Check, Finding, Patient, fail, ok, warn

CAP_SYS_ADMIN = 21
OVERHEAD = 120 * MIB
"""Of a daemon, beyond its memory budget."""

IN_CONTAINER = "in a container, start it with: --device /dev/fuse --cap-add SYS_ADMIN"
HELPER = Path("/sbin/mount.lazyfs")


def device(_: Patient) -> Finding:
    """The kernel's end of every FUSE mount."""
    path = "/dev/fuse"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail(f"{path} is not there", f"modprobe fuse; {IN_CONTAINER}")
    except PermissionError:
        return fail(f"{path} cannot be opened by you", f"chmod 666 {path}; {IN_CONTAINER}")
    return ok(f"{path} can be opened")


def fusermount(_: Patient) -> Finding:
    """What mounts for a user, and unmounts for everybody."""
    path = shutil.which("fusermount3")
    if path is None:
        return fail("fusermount3 is not installed", "apt-get install fuse3")
    if os.geteuid() == 0:
        return ok(f"{path}, as root")
    found = os.stat(path)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        return fail(f"{path} is not setuid root, which it must be for a user to mount", f"sudo chmod u+s {path}")
    return ok(f"{path} is setuid root")


def right_to_mount(_: Patient) -> Finding:
    """Root in a container often has no right to mount."""
    if os.geteuid() != 0:
        return ok("fusermount3 mounts for you")
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    if not effective >> CAP_SYS_ADMIN & 1:
        return fail("root without CAP_SYS_ADMIN may not mount", IN_CONTAINER)
    return ok("root may mount")


def user_allow_other(patient: Patient) -> Finding:
    """Only for those who are not root and want it."""
    if not (patient.config.allow_other or patient.config.allow_root):
        return ok("not needed without --allow-other")
    if os.geteuid() == 0:
        return ok("root needs no user_allow_other")
    conf = Path("/etc/fuse.conf")
    try:
        words = {line.strip() for line in conf.read_text(encoding="utf-8", errors="replace").splitlines()}
    except OSError:
        words = set()
    if "user_allow_other" not in words:
        return fail(
            f"--allow-other of a user takes user_allow_other in {conf}", f"echo user_allow_other | sudo tee -a {conf}"
        )
    return ok(f"user_allow_other is in {conf}")


def libfuse(_: Patient) -> Finding:
    """The library that pyfuse3 was built for."""
    for name in ("libfuse3.so.3", "libfuse3.so.4"):
        try:
            found = int(ctypes.CDLL(name).fuse_version())
        except OSError:
            continue
        doubt = "; a lazy unmount may hang in it, which lazyfs ends after 10 s" if found < 318 else ""
        return ok(f"libfuse {found // 100}.{found % 100}{doubt}")
    return fail("libfuse3 is not installed", "apt-get install fuse3 libfuse3-3")


def kernel(_: Patient) -> Finding:
    """What the version of the kernel means."""
    release = platform.release()
    found = version(release)
    if found < (4, 20):
        return warn(f"Linux {release} reads 128 KiB a request at most; 1 MiB takes 4.20", "update the kernel")
    if found < (5, 14):
        return ok(f"Linux {release}; before 5.14 memory is not made ready in advance")
    return ok(f"Linux {release}")


def version(release: str) -> tuple[int, int]:
    """`6.18.44-generic` as (6, 18); (0, 0) for what is no version."""
    numbers = release.partition("-")[0].split(".")[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and all(n.isdecimal() for n in numbers) else (0, 0)


def tuning(patient: Patient) -> Finding:
    """read_ahead_kb and max_background, which only root can set."""
    lost = "reads will be 2 to 3 times slower, mapped ones more"
    if os.geteuid() != 0:
        return warn(f"only root can set read_ahead_kb and max_background: {lost}", "mount as root, or by fstab")
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        return warn(f"/sys is read-only, so read_ahead_kb cannot be set: {lost}", "mount on the host, or --privileged")
    config = patient.config
    return ok(f"read_ahead_kb {config.read_ahead_kb} and max_background {config.max_background} can be set")


def memory(patient: Patient) -> Finding:
    """The limit of the machine and of every cgroup above, against the budget."""
    budget = patient.config.memory_budget or machine.default_memory_budget()
    return weighed(machine.memory_limit(), budget)


def weighed(limit: int, budget: int) -> Finding:
    """A memory budget against the limit, both in bytes."""
    most = budget + OVERHEAD
    words = f"the limit is {limit // MIB} MiB, and a daemon takes up to {most // MIB}, its budget and 120 MiB"
    if most > limit:
        least = max(16, (limit - OVERHEAD) // MIB)
        return fail(f"{words}: it would be killed", f"raise the limit, or use --memory-budget={least}MiB")
    if 2 * most > limit:
        return warn(
            f"{words}: more than half", f"raise the limit, or use --memory-budget={max(16, budget // MIB // 2)}MiB"
        )
    return ok(words)


def open_files(patient: Patient) -> Finding:
    """Connections, object files, and what a process has anyway."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * patient.config.max_connections + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warn(f"RLIMIT_NOFILE is {soft}, and {needed} are wanted", f"ulimit -n {needed}")
    return ok(f"RLIMIT_NOFILE is {soft}")


def user_namespace(_: Patient) -> Finding:
    """In one, root is not root."""
    if Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]:
        return ok("not in a user namespace")
    return warn("in a user namespace: kernel parameters cannot be set, and others may not see the mount")


def helper(_: Patient) -> Finding:
    """For mount(8) and fstab."""
    link = f'ln -sf "$(command -v mount.lazyfs)" {HELPER}'
    if os.access(HELPER, os.X_OK):
        return ok(f"{HELPER} is there, for mount(8) and fstab")
    if os.path.lexists(HELPER):
        return warn(f"{HELPER} leads to nothing that can be run", link)
    return ok(f"{HELPER} is not there, which only mount(8) and fstab need", link)


def existing(_: Patient) -> Finding:
    """Mounts that a crash left behind."""
    found = [mount.mountpoint for mount in mounts.mounts() if mount.fstype == mounts.FSTYPE]
    dead = [place for place in found if not _answers(place)]
    if dead:
        lines = "; ".join(f"fusermount3 -uz {place}" for place in dead)
        return fail(f"{len(dead)} of {len(found)} lazyfs mounts do not answer: {', '.join(dead)}", lines)
    return ok(f"all answer ({len(found)})" if found else "nothing is mounted by lazyfs")


def _answers(place: str) -> bool:
    try:
        return bool(mounts.stats_of(place))
    except (OSError, TimeoutError):
        return False


CHECKS = (
    Check("/dev/fuse", device),
    Check("fusermount3", fusermount),
    Check("right to mount", right_to_mount),
    Check("user_allow_other", user_allow_other),
    Check("libfuse", libfuse),
    Check("kernel", kernel),
    Check("kernel parameters", tuning),
    Check("user namespace", user_namespace),
    Check("memory", memory),
    Check("open files", open_files),
    Check("mount helper", helper),
    Check("existing mounts", existing, seconds=20),
)
"""All of them, in this order."""
