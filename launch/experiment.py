"""From a configuration file to the objects of a run: the only place that knows ``ConfigDict``."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

import nasjax
from nasjax import data, relax, relax_extras, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.supernet import Supernet
from nasjax.search import Oracle, TableKey
from nasjax.train import optim, phases, sharding, steps
from nasjax.train.checkpoint import Checkpointer
from nasjax.train.progressive import Stage
from nasjax.train.session import Session, open_session


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain, JSON-able values."""
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def build(factory: Callable[..., Any], values: Mapping[str, Any], section: str) -> Any:
    """Call ``factory`` with a section of the configuration, or say which key it does not know."""
    known = {field.name for field in dataclasses.fields(factory)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise NasjaxError(f"config.{section} has no key {name!r}; {did_you_mean(name, known)}")
    return factory(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def recipe(values: Mapping[str, Any], section: str) -> phases.Recipe:
    """The training recipe that a section describes."""
    values = dict(values)
    parts = {"optimizer": optim.Optimizer, "augmentation": data.Augmentation}
    for name, factory in parts.items():
        if name in values:
            values[name] = build(factory, values[name], f"{section}.{name}")
    return build(phases.Recipe, values, section)


def budget(values: Mapping[str, Any] | None) -> steps.Budget | None:
    """The budget of a search; none where its target is 0."""
    if not values or not values.get("target"):
        return None
    return build(steps.Budget, values, "search.budget")


def alphas_optimizer(values: Mapping[str, Any]) -> optim.Optimizer:
    """The optimizer of the architecture parameters."""
    known = {"learning_rate", "weight_decay", "betas"}
    for name in values:
        if name not in known:
            raise NasjaxError(
                f"config.search.alphas has no key {name!r}; {did_you_mean(name, known)}"
            )
    return optim.alphas_optimizer(**values)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The objects every launcher needs.

    Attributes:
      config: the configuration, plain.
      session: working directory and devices.
      supernet: what is searched.
      dataset: the data.
    """

    config: Mapping[str, Any]
    session: Session
    supernet: Supernet
    dataset: data.Dataset

    def recipe(self, section: str) -> phases.Recipe:
        """The recipe of ``config.SECTION`` (of ``config.search.recipe`` for ``search``)."""
        if section not in self.config:
            raise NasjaxError(f"this configuration has no section {section!r}; add one.")
        values = self.config[section]
        return recipe(values["recipe"] if section == "search" else values, section)

    def widened(self, partial_channels: int) -> Supernet:
        """The super-network of a stage, of whose channels one in so many sees the operations."""
        values = self.config["space"]
        if partial_channels == values.get("partial_channels", 1):
            return self.supernet
        return spaces.make(**{**values, "partial_channels": partial_channels})


def left_out(supernet: Supernet, settings: Mapping[str, Any]) -> relax_extras.Masks:
    """Masks of the options that ``config.search.leave_out`` leaves out.

    Raises:
      NasjaxError: if the space has no such option.
    """
    return relax_extras.without(supernet.space, *(settings.get("leave_out") or ()))


def edge_weights(
    supernet: Supernet, settings: Mapping[str, Any]
) -> Callable[[relax.Relaxation], relax.Relaxation] | None:
    """What weighs the edges, where ``config.search.edge_weights`` says so.

    Raises:
      NasjaxError: if the space has no edges.
    """
    if not settings.get("edge_weights"):
        return None
    if not supernet.nodes:
        raise NasjaxError(
            f"space {supernet.space.name!r} has no edges to weigh; leave "
            "config.search.edge_weights False."
        )
    return lambda method: relax_extras.with_edge_weights(method, supernet.nodes)


def stages(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a search: those of ``config.search.stages``, or a single one.

    Raises:
      NasjaxError: if a stage is badly described, or the last one's network is not that of
        ``config.space``.
    """
    settings, width = config["search"], config["space"].get("partial_channels", 1)
    first = settings.get("alphas_from_epoch", 0.0)
    found = [_stage(stage) for stage in settings.get("stages") or ()]
    if not found:
        return (Stage(settings["recipe"]["epochs"], width, alphas_from_epoch=first),)
    if first:
        raise NasjaxError(
            f"config.search.alphas_from_epoch is {first}, but there are config.search.stages; give "
            "each stage its own."
        )
    if found[-1].partial_channels != width:
        raise NasjaxError(
            f"the last of config.search.stages has partial_channels="
            f"{found[-1].partial_channels}, but config.space.partial_channels is {width}; what is "
            "found belongs to the last stage, so make the two equal."
        )
    return tuple(found)


def _stage(values: Any) -> Stage:
    if not isinstance(values, Mapping) or "epochs" not in values:
        raise NasjaxError(
            f"{values!r} is no stage of config.search.stages; a mapping with epochs was expected."
        )
    return build(Stage, values, "search.stages")


def open_oracle(experiment: Experiment) -> Oracle | None:
    """The table that ``config.oracle`` names; None where it names none.

    Raises:
      NasjaxError: if the table does not fit the space.
    """
    values = dict(experiment.config.get("oracle") or {})
    for name in values:
        if name not in ("path", "accuracy"):
            known = did_you_mean(name, ["path", "accuracy"])
            raise NasjaxError(f"config.oracle has no key {name!r}; {known}")
    if not values.get("path"):
        return None
    space, columns = experiment.supernet.space, experiment.supernet.columns
    if not columns:
        raise NasjaxError(
            f"no table is known of space {space.name!r}; leave config.oracle.path empty."
        )
    key = TableKey.by_column(columns)
    oracle = Oracle.read(str(values.pop("path")), key, size=space.size, **values)
    if space.decoding is None:
        for arch in architecture.every(space):  # a row of something else would be missed too late
            oracle.accuracy(arch)
    return oracle


def open_experiment(
    config: ConfigDict | Mapping[str, Any],
    workdir: str,
    *,
    tensorboard: bool = False,
    profile: int = 0,
) -> Experiment:
    """Build the objects of a run and claim its working directory."""
    values = plain(config)
    supernet = spaces.make(**values["space"])
    # An empty option is one left at its default, so that a name can be replaced on its own.
    dataset = data.load(**{n: v for n, v in values["data"].items() if v != ""})
    place = values.get("sharding", "replicated")
    if place not in sharding.RULES:
        raise NasjaxError(f"config.sharding is {place!r}; {did_you_mean(place, sharding.RULES)}")
    session = open_session(
        workdir,
        values,
        mesh=sharding.make_mesh(**values.get("mesh", {})),
        rules=sharding.RULES[place],
        seed=values["seed"],
        tensorboard=tensorboard,
        profile=profile,
    )
    return Experiment(values, session, supernet, dataset)


def read_arch(supernet: Supernet, text: str) -> dict[str, Any]:
    """The architecture called ``text``, or the one in a file: an arch.json, or pareto.json:NUMBER.

    Raises:
      NasjaxError: if the file is no architecture, or one of another space.
    """
    name, _, index = text.rpartition(":")
    if index.isdigit() and name.endswith(".json"):
        return _pareto_arch(supernet, pathlib.Path(name), int(index))
    path = pathlib.Path(text)
    if not path.is_file():
        if path.suffix == ".json":
            raise NasjaxError(f"there is no file {text}; give an arch.json or a name.")
        return supernet.architecture(text)
    try:
        content = json.loads(path.read_text())
        space, arch = content["space"], content["architecture"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise NasjaxError(
            f'{path} is no architecture; {{"space": ..., "architecture": ...}} was expected.'
        ) from None
    if space != supernet.space.name:
        raise NasjaxError(
            f"{path} holds an architecture of space {space!r}, but the configuration searches "
            f"{supernet.space.name!r}; use the configuration it was found with."
        )
    return supernet.architecture(arch)


def _pareto_arch(supernet: Supernet, path: pathlib.Path, number: int) -> dict[str, Any]:
    """Architecture ``number`` of a pareto.json, counted from 1."""
    try:
        content = json.loads(path.read_text())
        space, archs = content["space"], content["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        raise NasjaxError(
            f"{path} is no Pareto set; the pareto.json of a search was expected."
        ) from None
    if space != supernet.space.name:
        raise NasjaxError(
            f"{path} holds architectures of space {space!r}, but the configuration has "
            f"{supernet.space.name!r}; use the configuration they were found with."
        )
    if not 1 <= number <= len(archs):
        raise NasjaxError(f"{path} has {len(archs)} architectures, so 1 to {len(archs)} exist.")
    return supernet.architecture(archs[number - 1]["architecture"])


def read_weights(supernet: Supernet, source: str, mesh: Any) -> Any:
    """Super-network weights: of a search's working directory, or of the AutoFormer authors' file.

    Args:
      supernet: whose weights they are.
      source: a directory, or a file (.pth, .safetensors).
      mesh: the devices, each of which gets a copy.

    Raises:
      NasjaxError: if ``source`` is neither.
    """
    path = pathlib.Path(source)
    if path.is_file():
        from nasjax.interop import import_weights, read_state_dict

        weights = import_weights(read_state_dict(path), supernet)["params"]
        return jax.device_put(jax.device_get(weights), sharding.replicated(mesh))
    directory = path / "checkpoints" / "search"
    if not directory.is_dir():
        raise NasjaxError(
            f"{source} holds no searched super-network; give the --workdir of launch/search.py "
            "or a file of weights (.pth, .safetensors)."
        )
    checkpoints = Checkpointer(directory, {})
    try:
        weights = checkpoints.read_weights()
    finally:
        checkpoints.close()
    expected = jax.tree.map(lambda x: x.shape, supernet.shapes["params"])
    if jax.tree.map(lambda x: x.shape, weights) != expected:
        raise NasjaxError(
            f"the super-network in {source} is not one of space {supernet.space.name!r}; use the "
            "configuration it was searched with."
        )
    # They come on a single device, which does not go together with arrays on all of them.
    return jax.device_put(jax.device_get(weights), sharding.replicated(mesh))


def announce(experiment: Experiment, batch_size: int) -> None:
    """Say what is about to run: the devices, the space, and the cost of a step."""
    if jax.process_index() != 0:
        return
    supernet = experiment.supernet
    device = jax.devices()[0]
    least, most = _range(supernet, "params")
    print(f"nasjax {nasjax.__version__}, jax {jax.__version__}")
    print(
        f"  devices  {jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)"
    )
    print(f"  mesh     {dict(experiment.session.mesh.shape)}")
    print(
        f"  data     {experiment.dataset.name}: {len(experiment.dataset.train):,} training, "
        f"{len(experiment.dataset.test):,} test images of {experiment.dataset.image_shape}"
    )
    print(f"  space    {supernet.space.name}: {supernet.space.size:,} architectures")
    print(f"  params   {least:,} to {most:,}")
    if "flops" in supernet.costs:
        least, most = _range(supernet, "flops")
        print(f"  FLOPs    {least:,} to {most:,} multiply-adds an image")
        # A forward pass and a backward pass of twice its cost, by gradient at two levels.
        search = experiment.config.get("search", {})
        sampled = bool((search.get("sampler") or {}).get("kind"))
        times = 3 if sampled else 6
        levels = "for each sub-network" if sampled else "at either level"
        print(
            f"  a step   {times * batch_size * most:,} multiply-adds ({batch_size} images {levels})"
        )
    print(f"  workdir  {experiment.session.workdir}", flush=True)


def _range(supernet: Supernet, cost: str) -> tuple[float, float]:
    """A cost of the smallest and of the largest architecture.

    Which option of a static choice costs most does not follow from its size (of patches the
    smallest), so all are looked at.
    """
    ends = [supernet.architecture(name) for name in ("smallest", "largest")]
    for name in supernet.space.static:
        options = supernet.space.choice(name).options
        ends = [{**arch, name: option} for arch in ends for option in options]
    costs = [supernet.count(cost, arch) for arch in ends]
    return min(costs), max(costs)


if __name__ == "__main__":
    sys.exit("experiment.py only helps the launchers; run search.py, train.py or evaluate.py.")
