"""`lazyfs completion`: what a shell needs to complete the words of lazyfs, out of click."""

import click
from click.shell_completion import get_completion_class

from lazyfs.errors import UsageError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete lazyfs's commands, options and paths.

    \b
    bash: lazyfs completion bash > ~/.local/share/bash-completion/completions/lazyfs
    zsh:  lazyfs completion zsh > ~/.zfunc/_lazyfs    (a directory of $fpath)
    fish: lazyfs completion fish > ~/.config/fish/completions/lazyfs.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise UsageError(f"click does not know the shell {shell}")
    click.echo(made(ctx.find_root().command, {}, "lazyfs", "_LAZYFS_COMPLETE").source())
