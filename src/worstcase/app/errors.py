"""Errors in one line: what was wrong, what is allowed, what to do, in the words of the command line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, HydraException
from hydra.utils import instantiate
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from worstcase.app.doors import CONF
from worstcase.text import visible

PLACES = ("dataset", "method", "model", "attack", "trainer")
"""Groups whose settings are arguments in the library's messages: ``steps=`` is shown as ``method.steps=``."""
ADDED = {"gradient_clip_val": "+trainer.gradient_clip_val", "lr": "model.optimizer.lr"}
"""Settings that a message may advise, though they stand in no file or deeper."""


class JobFailed(CompactHydraException):
    """A job that failed and has said why; a sweep goes on with the others."""


def in_one_line(error: BaseException, settings: Mapping[str, Any] | None = None) -> str:
    """The message of an error, without the details that Hydra and OmegaConf add.

    Args:
        error: of Hydra, of the library or of anything below.
        settings: of the job, whose names replace those of the library's arguments.
    """
    if isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        return _no_such_setting(error)
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]} is needed: {missing[1]}=VALUE"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        hint = "; presets are chosen with th_g=NAME" if error.full_key == "thg" else ""
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}{hint}"
    text = str(error).split("Config search path:")[0]
    if re.match(r"Caught \w+ in DataLoader worker", text):  # its traceback follows, the error comes last
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    if text.startswith("Config group override must be"):
        text = not_a_choice(sys.argv[1:]) or text
    return visible(_as_settings(text, settings or {})) or type(error).__name__


def instantiated(settings: Mapping[str, Any], place: str, **arguments: Any) -> Any:
    """Build what a group of the settings describes, such as a data set.

    Args:
        settings: of the job.
        place: of the group among them, such as ``model.optimizer``.
        arguments: that it is given besides.

    Raises:
        ValueError: an argument is refused.
    """
    config: Any = settings
    for key in place.split("."):
        config = config[key]
    try:
        return instantiate(config, **arguments)
    except HydraException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        message = str(error.__cause__)
        name = message.partition("=")[0]
        if within := re.search(r"full_key: (\S+)", str(error)):
            message = f"{place}.{within[1]}.{message}" if name.isidentifier() else message
        elif name in config and name not in settings and "." not in place:
            message = f"{place}.{message}"
        raise ValueError(message) from error.__cause__


def not_a_choice(arguments: Sequence[str]) -> str:
    """The message about the first argument whose value is no file of its group; empty if there is none."""
    for argument in arguments:
        place, _, value = argument.partition("=")
        group = Path(CONF, place.partition("@")[0])
        if group.is_dir() and not all((group / f"{name}.yaml").exists() for name in value.split(",")):
            number = "; a number is thg=NUMBER" if place == "th_g" else ""
            return f"{argument}: must be one of {', '.join(sorted(p.stem for p in group.glob('*.yaml')))}{number}"
    return ""


def _no_such_setting(error: ConfigKeyError | ConfigAttributeError) -> str:
    said = no_such_setting(str(error.full_key), [str(key) for key in error.parent_node or () if key != "hydra"])
    if str(error.full_key).startswith("trainer.") and "did you mean" not in said:
        said += f"; another of Lightning's is added by +{error.full_key}=VALUE"
    return said


def no_such_setting(name: str, known: Iterable[str]) -> str:
    """The message about a setting that is none of those at its place."""
    similar = difflib.get_close_matches(name.rpartition(".")[2], known := list(known), n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
    return f"there is no setting {name}; {hint}"


def _as_settings(text: str, settings: Mapping[str, Any]) -> str:
    """A message about arguments, ``name=``, as one about settings; paths stay as they are."""
    homes = dict(ADDED)
    for place in reversed(PLACES):
        group = settings.get(place)
        homes |= {key: f"{place}.{key}" for key in group if key not in settings} if isinstance(group, dict) else {}
    name = re.compile(r"(?<![\w.+@-])([a-z_]+)(?==)")
    words = (word if "/" in word else name.sub(lambda of: homes.get(of[1], of[1]), word) for word in text.split())
    return " ".join(words)
