"""Names that follow from content: two models of one name compute the same."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from vqvdm.building import check_arguments
from vqvdm.errors import InputError


class Configured(ConfigMixin):
    """Settings of a network or pipeline, saved without the path they were loaded from (diffusers writes it down)."""

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build a network from its settings, as `from_pretrained` does, but check them first.

        Raises:
            InputError: a setting of another type, or a network that this machine's memory cannot hold.
        """
        where = f"{cls.config_name} of {cls.__name__}"
        if not isinstance(config, Mapping):  # diffusers takes text for a name on the hub
            raise InputError(f"{where}: must be a table of settings, not {config!r:.60}")
        if issubclass(cls, nn.Module):
            settings, _, _ = super().extract_init_dict(dict(config), **kwargs)
            check_arguments(cls, settings, {"": where}, "")
        return super().from_config(dict(config), return_unused_kwargs, **kwargs)

    def to_json_string(self) -> str:
        """The settings as they stand in config.json."""
        settings = json.loads(super().to_json_string())
        settings.pop("_name_or_path", None)
        return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def changed_settings(network: Any) -> dict[str, Any]:
    """The constructor's arguments of a diffusers model that are not its defaults.

    So that an argument that is added later leaves the names of older models alone.
    """
    defaults = default_settings(type(network))
    stated = {name: json.loads(json.dumps(value)) for name, value in network.config.items() if name in defaults}
    return {name: value for name, value in stated.items() if value != defaults[name]}


def own_settings(configured: Any) -> dict[str, Any]:
    """All settings in the config of a diffusers model or scheduler, without those that diffusers adds for itself."""
    return _counted(configured.config)


def default_settings(kind: type) -> dict[str, Any]:
    """The constructor's arguments of a diffusers model with their defaults, as plain values."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: json.loads(json.dumps(parameter.default, default=str)) for parameter in parameters}


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name these settings and weights.

    Args:
        settings: JSON's kinds of values; keys that begin with "_" do not count.
        tensors: the weights by name.
    """
    digest = hashlib.sha256(json.dumps(_counted(settings), sort_keys=True, default=list).encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("_")}
