"""The options of a mount in the kernel's words, and what to say when it refuses them."""

import os


def mount_options(source_url: str, *, allow_other: bool, allow_root: bool, noexec: bool) -> set[str]:
    """The options of the mount: always read-only, without devices and set-uid, permissions checked by the kernel.

    `fsname` is the source: some loaders turn memory mapping off for names of other products' mounts.
    """
    options = {"fsname=" + _spelled(source_url), "subtype=lazyfs"}
    options |= {"ro", "nosuid", "nodev", "noatime", "default_permissions"}
    if allow_other:
        options.add("allow_other")
    if allow_root:
        options.add("allow_root")
    if noexec:
        options.add("noexec")
    return options


def _spelled(text: str) -> str:
    """The text as libfuse reads it in an option (fuse_opt.c): a comma ends one, a backslash stands before three octal
    digits, and pyfuse3 takes nothing but ASCII."""
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b",\\" else f"\\{byte:03o}" for byte in raw)


def advice(options: set[str]) -> str:
    """What a mount that was refused most likely lacks."""
    if options & {"allow_other", "allow_root"} and os.geteuid() != 0:
        return "allow-other and allow-root need the line user_allow_other in /etc/fuse.conf"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not open to you; in a container, pass it with --device /dev/fuse"
    return "is the package fuse3 installed, and may you mount here?"
