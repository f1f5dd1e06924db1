"""The `lazyfs` command."""

import contextlib
import gc
import json
import logging
import os
import resource
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from lazyfs import __version__
from lazyfs.cli import background
from lazyfs.cli.bake import bake
from lazyfs.cli.completion import completion
from lazyfs.cli.doctor import doctor
from lazyfs.cli.du import du
from lazyfs.cli.evict import evict
from lazyfs.cli.export import export
from lazyfs.cli.fsck import fsck
from lazyfs.cli.loglevel import log_level
from lazyfs.cli.models import ls, publish, rm
from lazyfs.cli.mount_fd import mount_fd
from lazyfs.cli.paths import sized
from lazyfs.cli.pin import pin, unpin
from lazyfs.cli.reload import reloading
from lazyfs.cli.settings import FROM_FILE, OF_SOURCES, Setting, as_arguments, as_toml, resolve, setting_options
from lazyfs.cli.sources import (
    PATHS,
    SourceWords,
    configured,
    find_sources,
    source_arguments,
    sources_as_toml,
    split_places,
)
from lazyfs.cli.top import top
from lazyfs.cli.upgrade import upgrade
from lazyfs.cli.verify import verify
from lazyfs.cli.warm import warm
from lazyfs.config import Config, SourceConfig
from lazyfs.errors import LazyfsError, SetupError, UsageError
from lazyfs.service import handed, mounts
from lazyfs.service.credentials import use_credentials_of_service
from lazyfs.service.logs import level_signals, set_up_logging, told

SWITCH_INTERVAL = 0.0005
"""Seconds until a thread that waits for the interpreter asks for it. While answers to the kernel were written with the
interpreter held, the writer waited some 3 ms for each MiB with Python's 5 ms, and 0.2 ms was best. Now nobody holds it
for long; with 0.1 and 0.2 ms the many threads that wait wake each other so often that 4 of 10 cold reads of a GiB took
half as long again, and with 0.5 to 5 ms none of 20."""


GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""With Python's own (700, 10, 10), looking for cycles took 8 in 100 of the daemon's CPU when 32 readers walked a cold
file. What reads leave behind has none; the modules, which are most objects, are not looked at again at all."""


class _Group(click.Group):
    """Turns our errors into one sentence and an exit status: 2 for a wrong call, 1 for what cannot be done."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            background.fail(error, 2)
        except LazyfsError as error:
            background.fail(error, 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lazyfs")
def cli() -> None:
    """Model weights from S3, mounted read-only: open and memory-map at once, fetch what is touched, keep it on disk."""


@cli.command()
@click.argument("places", nargs=-1, metavar="[SOURCE] MOUNTPOINT", type=click.Path(readable=False))
@click.option(
    "--source",
    "named",
    multiple=True,
    metavar="NAME=URL",
    help="Instead of SOURCE, several times: mount each as the directory NAME.",
)
@click.option(
    "--source-option",
    "source_options",
    multiple=True,
    metavar="NAME:OPTION=VALUE",
    help="An option of one --source, where it is not that of the mount: " + ", ".join(OF_SOURCES) + ".",
)
@click.option("--foreground", "-f", is_flag=True, help="Stay, and log to stderr.")
@click.option("--print-config", is_flag=True, help="Show every setting and where it came from, and mount nothing.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--successor-fd", type=int, hidden=True)
@setting_options
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    places: tuple[str, ...],
    named: tuple[str, ...],
    source_options: tuple[str, ...],
    foreground: bool,
    print_config: bool,
    ready_fd: int | None,
    successor_fd: int | None,
    **_: Any,
) -> None:
    """Mount SOURCE (s3://bucket or s3://bucket/prefix/, as it was at a time with ?versionAt=TIME) at MOUNTPOINT, an
    empty directory, or /dev/fd/N of `mount-fd`; or several sources side by side in it, with --source or tables
    [[source]] in the file of --config.

    Returns when the mount can be read, and goes on in the background. Credentials are found as boto3 finds them:
    environment, ~/.aws, container or instance role. Every option is also LAZYFS_<NAME> in the environment.
    """
    config, settings = resolve(ctx)
    place, mountpoint = split_places(places, os.environ)
    words = find_sources(place, named, source_options, os.environ, ctx.meta.get(FROM_FILE))
    sources = configured(words, config)
    if print_config:
        head, end = sources_as_toml(words)
        click.echo(head + as_toml(settings) + end)
        return
    if successor_fd is not None:
        _serve(ctx, config, sources, "", None, None, successor_fd)
        return
    try:
        descriptor = handed.descriptor_of(mountpoint)
        at = mounts.prepare_mountpoint(mountpoint) if descriptor is None else handed.place_of(descriptor)
        if foreground:
            _serve(ctx, config, sources, at, ready_fd, descriptor)
        else:
            _start(config, settings, words, at, descriptor)
    except LazyfsError as error:
        background.tell(ready_fd, told(str(error)).encode())
        raise


def _start(
    config: Config, settings: list[Setting], words: list[SourceWords], mountpoint: str, descriptor: int | None
) -> None:
    paths = {"cache_dir", "lower_cache_dir", "log_file", "access_log", *PATHS}
    settings = [
        Setting(s.name, os.path.abspath(s.words), "flag") if s.name in paths and s.words not in (None, "-") else s
        for s in settings
    ]
    at, passed = (mountpoint, ()) if descriptor is None else (f"/dev/fd/{descriptor}", (descriptor,))
    flags, places = source_arguments(words)
    arguments = [*as_arguments(settings), *flags, "--", *places, at]
    background.start(cli, arguments, mountpoint, config.log_file, passed)


def _serve(
    ctx: click.Context,
    config: Config,
    sources: list[SourceConfig],
    mountpoint: str,
    ready_fd: int | None,
    descriptor: int | None,
    successor_fd: int | None = None,
) -> None:
    # Here and not above: boto3, pyfuse3 and lmdb take 0.3 s, which every other command can do without. 9 in 100 of that
    # went into looks for garbage among what is there to stay.
    gc.disable()
    import trio  # noqa: PLC0415

    from lazyfs.service.serving import serve  # noqa: PLC0415
    from lazyfs.service.succession import Successor  # noqa: PLC0415

    use_credentials_of_service()
    set_up_logging(config.log_level, config.log_format)
    os.umask(0o077)
    # A dump of this process would hold credentials and gigabytes of weights. Not PR_SET_DUMPABLE, which would keep its
    # own user from looking at it in /proc and with debuggers: who can do that can read ~/.aws as well.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.freeze()
    gc.enable()
    try:
        ready = partial(background.tell, ready_fd, background.READY)
        signals = {**reloading(ctx), **level_signals(config.log_level)}
        successor = None if successor_fd is None else Successor(successor_fd)
        at = mountpoint if successor is None else successor.mountpoint
        trio.run(partial(serve, signals=signals, handed=descriptor, successor=successor), config, sources, at, ready)
    except LazyfsError:
        raise
    except KeyboardInterrupt:
        raise SetupError("interrupted before the mount was ready") from None
    except BaseException as error:
        logging.getLogger("lazyfs").exception("a defect ended the mount")
        raise SetupError(f"a defect of lazyfs ended the mount: {type(error).__name__}: {error}") from None


@cli.command()
@click.argument("mountpoint", type=click.Path())
@click.option("--lazy", "-l", is_flag=True, help="Also when it is in use: gone from the tree now, ended when closed.")
def unmount(mountpoint: str, lazy: bool) -> None:
    """Unmount MOUNTPOINT, and wait until its daemon has written what it had."""
    path = _mountpoint(mountpoint)
    try:
        pid = json.loads(mounts.stats_of(path))["pid"]
    except (OSError, TimeoutError, ValueError):
        pid = None
    mounts.unmount(path, lazy=lazy or pid is None)
    if pid is not None and not lazy and not mounts.wait_for_exit(pid, 30):
        raise SetupError(f"{path} is unmounted, but its daemon (pid {pid}) has not ended after 30 s")


@cli.command()
@click.argument("mountpoint", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def stats(mountpoint: str, as_json: bool) -> None:
    """What the mount at MOUNTPOINT has done since it started."""
    path = _mountpoint(mountpoint)
    try:
        found = json.loads(mounts.stats_of(path))
    except (OSError, TimeoutError) as error:
        raise SetupError(f"the mount at {path} does not answer: {error}") from None
    click.echo(json.dumps(found) if as_json else json.dumps(found, indent=2))


@cli.command()
@click.argument("mountpoint", type=click.Path(), required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON, a list of mounts.")
def status(mountpoint: str | None, as_json: bool) -> None:
    """What is mounted, and whether it answers; exit status 1 if a mount does not."""
    wanted = _mountpoint(mountpoint) if mountpoint else None
    found = []
    for one in mounts.mounts():
        if one.fstype != mounts.FSTYPE or wanted not in (None, one.mountpoint):
            continue
        try:
            report = json.loads(mounts.stats_of(one.mountpoint))
            health = "ok"
            with contextlib.suppress(OSError):  # a daemon of an earlier version
                report["pinned"] = mounts.ask(one.mountpoint, "pinned").get("bytes", 0)
        except (OSError, TimeoutError, ValueError) as error:
            report, health = {}, f"does not answer: {error}"
        log = str(background.log_path(one.mountpoint, None))
        found.append({"mountpoint": one.mountpoint, "source": one.source, "health": health, "log": log, **report})
    if as_json:
        click.echo(json.dumps(found))
    else:
        for report in found:
            click.echo(told(f"{report['source']} at {report['mountpoint']}: {report['health']}"))
            if report["health"] == "ok":
                store, chunks, kernel = report["store"], report["chunks"], report["kernel"]
                click.echo(
                    f"  pid {report['pid']}, up {report['uptime']:.0f} s, cache {report['disk']['used'] >> 20} MiB, "
                    f"fetched {store['bytes_received'] >> 20} MiB in {store['get_requests']} requests, "
                    f"{chunks['disk_hits']} chunks from disk, {report['failures']} failures"
                )
                click.echo(
                    f"  kernel: read_ahead_kb {kernel['read_ahead_kb']}, max_background {kernel['max_background']}, "
                    f"congestion_threshold {kernel['congestion_threshold']}, "
                    f"shard_read_ahead_kb {kernel.get('shard_read_ahead_kb', 0)}"
                )
                if passed := report.get("passthrough"):
                    able = f"cannot: {passed['unable']}" if passed["unable"] else f"{passed['files']} files now"
                    click.echo(f"  read by the kernel itself: {able}")
                if report.get("metrics"):
                    click.echo(f"  metrics: {report['metrics']}")
                    if page := _page_of(report["mountpoint"]):
                        click.echo(f"  page: {page}")
                if os.path.exists(report["log"]):
                    click.echo(f"  log: {report['log']}")
                if report.get("pinned"):
                    click.echo(f"  pinned: {sized(report['pinned'])} of the cache")
                for job in report.get("jobs", []):
                    click.echo(
                        f"  warming: {job['files_here']} of {job['files']} files, {sized(job['bytes_here'])} of "
                        f"{sized(job['bytes'])} ({job['step']})"
                    )
                if report["verified"]["under_way"]:
                    click.echo(f"  verifying: {report['verified']['under_way']} objects")
                for line in _sources_in_words(report.get("sources", [])):
                    click.echo(told(line))
        if not found:
            click.echo("no lazyfs mount")
    if any(report["health"] != "ok" for report in found):
        raise SystemExit(1)


def _page_of(mountpoint: str) -> str:
    """Where a browser sees the mount, names included; empty for who may not, or where there is none."""
    try:
        return str(mounts.ask(mountpoint, "page").get("url", ""))
    except (OSError, TimeoutError):
        return ""


def _sources_in_words(sources: list[dict[str, Any]]) -> Iterator[str]:
    """What `status` says of each source: of one that is the root, only what is wrong or hidden."""
    for one in sources:
        indent = "  "
        if one["name"]:
            at = f" at {one['endpoint_url']}" if one["endpoint_url"] else ""
            answers = {None: "was not asked yet", True: "answers", False: f"is in trouble: {told(one['trouble'])}"}
            yield f"  {one['name']}: {one['url']}{at} {answers[one['answers']]}"
            indent = "    "
        elif one["answers"] is False:
            yield f"  S3 is in trouble: {told(one['trouble'])}"
        for reason, count in one["hidden"].items():
            yield f"{indent}{count} keys hidden: {reason}"


WITHOUT_A_MOUNT = (doctor, fsck, publish, ls, rm, export, bake)

for command in (verify, warm, pin, unpin, evict, du, top, log_level, upgrade, completion, mount_fd, *WITHOUT_A_MOUNT):
    cli.add_command(command)


def _mountpoint(text: str) -> str:
    """The path of an existing lazyfs mount; `UsageError` for anything else."""
    path = os.path.join(
        os.path.realpath(os.path.dirname(os.path.abspath(text))), os.path.basename(os.path.abspath(text))
    )
    found = mounts.mounted_at(path)
    if found is None or found.fstype != mounts.FSTYPE:
        raise UsageError(f"{text} is not a lazyfs mount; `lazyfs status` lists them")
    return path


def main() -> None:
    """Entry point of the `lazyfs` script."""
    sys.exit(cli())
