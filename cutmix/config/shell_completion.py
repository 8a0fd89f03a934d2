"""A completion script for bash and zsh, from the commands and the fields that are their flags. No torch here."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from cutmix.errors import InputError

SHELLS = ("bash", "zsh")

_SCRIPT = """# completion of cutmix in bash and zsh: eval "$(cutmix --completion {shell})"
{prelude}_cutmix() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  local words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$command $before" in
{choices}
    esac
    if [ -z "$words" ]; then
      case "$current" in
        -*)
          case "$command" in
{flags}
          esac ;;
        *)
          [ "$COMP_CWORD" -eq 2 ] && case "$command" in
{firsts}
          esac ;;
      esac
    fi
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
  [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -o filenames -F _cutmix cutmix
"""


def completion_script(
    shell: str, commands: Mapping[str, Iterable[type]], choices: Mapping[str, Iterable[str]],
    firsts: Mapping[str, Iterable[str]],
) -> str:  # fmt: skip
    """Return a script that completes commands, flags, the values of flags that have a few, and file names.

    ``commands`` are the dataclasses whose fields are the flags of each command; ``choices`` are values of flags, by
    "COMMAND --FLAG", beside those of their types; ``firsts`` are words that may follow a command, such as the recipes
    of train.
    """
    if shell not in SHELLS:
        raise InputError(f"--completion is {shell}; expected {' or '.join(SHELLS)}")
    values, flags = {key: tuple(words) for key, words in choices.items()}, {}
    for command, kinds in commands.items():
        flags[command] = {"--help": None}
        for kind in kinds:
            hints = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                _add(command, field.name, hints[field.name], flags[command], values)
    zsh = "(( $+functions[compdef] )) || { autoload -U compinit && compinit }\n" * (shell == "zsh")
    zsh += "autoload -U +X bashcompinit && bashcompinit\n" * (shell == "zsh")
    return _SCRIPT.format(
        shell=shell, prelude=zsh, commands=" ".join(commands),
        choices=_cases(((f'"{key}"', words) for key, words in values.items()), 6),
        flags=_cases(flags.items(), 12), firsts=_cases(firsts.items(), 12),
    )  # fmt: skip


def _add(command: str, name: str, hint: Any, flags: dict[str, None], values: dict[str, tuple[str, ...]]) -> None:
    """Add the flags of a field, and the values that its type names."""
    kinds, extras = _unfold(hint)
    if tyro.conf.Positional in extras or tyro.conf.Suppress in extras:
        return
    flag = "--" + next((e.name for e in extras if getattr(e, "name", None)), name).replace("_", "-")
    flags[flag] = None
    if bool in kinds:
        flags[f"--no-{flag[2:]}"] = None
    words = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if words:
        values.setdefault(f"{command} {flag}", tuple(words))


def _unfold(hint: Any) -> tuple[list[Any], list[Any]]:
    """Return the types inside a hint, and its annotations."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        kinds, more = _unfold(inner)
        return kinds, [*extras, *more]
    if get_origin(hint) in (Union, UnionType, tuple):
        parts = [_unfold(part) for part in get_args(hint) if part is not ...]
        return [kind for kinds, _ in parts for kind in kinds], [extra for _, extras in parts for extra in extras]
    return [hint], []


def _cases(cases: Iterable[tuple[str, Iterable[str]]], indent: int) -> str:
    return "\n".join(f'{" " * indent}{key}) words="{" ".join(words)}" ;;' for key, words in cases)
