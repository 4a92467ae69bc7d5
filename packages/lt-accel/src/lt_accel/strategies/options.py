"""Options of the strategy ``ddp``, in the spelling of ``DistributedDataParallel`` and of other trainers: what is wrong.

An option that another flag of the trainer has is refused with that flag, and one that does nothing here with the
reason. At its default each is accepted, so that code that writes them all works.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lt_interface import Plan, Problem
from lt_interface.errors import nearest

__all__ = ["backend_of", "backend_problems", "option_problems"]

_ELSEWHERE = {
    "accelerator": "Trainer(accelerator=...)",
    "parallel_devices": "Trainer(devices=...)",
    "cluster_environment": "Trainer(plugins=[...])",
    "checkpoint_io": "Trainer(plugins=[...])",
    "precision_plugin": "Trainer(precision=...)",
    "mixed_precision": 'Trainer(precision="bf16-mixed")',
}
_NOT_HERE = {
    "model_averaging_period": (
        None,
        "gradients are averaged in each step, so that parameters are the same on every rank and need no averaging",
        "Leave it out.",
    ),
    "device_ids": (None, "each rank has one device, the one that the trainer gives it", "Write Trainer(devices=...)."),
    "output_device": (None, "outputs stay on the rank's device", "Leave it out."),
    "dim": (0, "each rank has a batch of its own, and none is split", "Leave it out."),
    "process_group": (
        None,
        "the default process group is used",
        "Make your own the default one: a group that stands when the trainer starts is taken.",
    ),
    "check_reduction": (False, "it is checked in any case that each gradient was exchanged", "Leave it out."),
    "init_sync": (True, "every rank must begin with rank 0's values", "Leave it out."),
    "delay_all_reduce_named_params": (None, "no exchange of single parameters is delayed", "Leave it out."),
    "param_to_hook_all_reduce": (None, "no exchange of single parameters is delayed", "Leave it out."),
    "skip_all_reduce_unused_params": (False, "unused parameters are exchanged with their bucket", "Leave it out."),
}
_SWITCHES = ("find_unused_parameters", "gradient_as_bucket_view", "static_graph", "broadcast_buffers")
_BUILT_IN = ("nccl", "mpi", "ucc")  # or not, as torch was built


def option_problems(who: str, taken: Mapping[str, Any], others: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the options of a strategy.

    Args:
        who: Its class, as the user wrote it.
        taken: The options that it has.
        others: What else was given.
    """
    found = [p for name, value in others.items() if (p := _refused(f"{who}({name})", name, value, taken)) is not None]
    for name in _SWITCHES:
        if not isinstance(taken[name], bool):
            found.append(Problem(f"{who}({name})", "it must be True or False", repr(taken[name])))
    cap, timeout = taken["bucket_cap_mb"], taken["timeout"]
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int | float) or cap <= 0):
        found.append(Problem(f"{who}(bucket_cap_mb)", "it must be a number above 0", repr(cap), "Write 25."))
    if not isinstance(timeout, timedelta) or timeout <= timedelta():
        fix = "Write datetime.timedelta(minutes=30)."
        found.append(Problem(f"{who}(timeout)", "it must be a timedelta above 0", repr(timeout), fix))
    found += _hook_problems(who, taken["ddp_comm_hook"], taken["ddp_comm_state"], taken["ddp_comm_wrapper"])
    backend = taken["process_group_backend"]
    if backend is not None and (unknown := [b for b in _parts(backend) if b not in _known()]):
        fix = nearest(unknown[0], _known()) or "Leave it out: it is chosen by the device."
        rule = f"the backend must be one of {', '.join(_known())}, or one for each kind of device"
        found.append(Problem(f"{who}(process_group_backend)", rule, repr(backend), fix))
    return found


def _refused(where: str, name: str, value: Any, taken: Mapping[str, Any]) -> Problem | None:
    if name in _ELSEWHERE:
        rule, fix = "it is the trainer's own flag", f"Write {_ELSEWHERE[name]}."
        return None if value is None else Problem(where, rule, type(value).__name__, fix)
    if name in _NOT_HERE:
        default, rule, fix = _NOT_HERE[name]
        return None if value == default else Problem(where, rule, repr(value), fix)
    names = [*taken, *_ELSEWHERE, *_NOT_HERE]
    return Problem(where, "there is no such option", fix=nearest(name, names), is_type=True)


def _hook_problems(who: str, hook: Any, state: Any, wrapper: Any) -> list[Problem]:
    found = []
    for name, value in (("ddp_comm_hook", hook), ("ddp_comm_wrapper", wrapper)):
        builtin: Any = getattr(dist, "BuiltinCommHookType", ())
        if value is not None and not callable(value) and not (name == "ddp_comm_hook" and isinstance(value, builtin)):
            rule, fix = "it must be a function", "Take one of torch.distributed.algorithms.ddp_comm_hooks."
            found.append(Problem(f"{who}({name})", rule, repr(value), fix))
        elif hook is None and value is not None:
            found.append(Problem(f"{who}({name})", "it wraps a hook", "no ddp_comm_hook", "Add it."))
    if hook is None and state is not None:
        found.append(Problem(f"{who}(ddp_comm_state)", "it is a hook's state", "no ddp_comm_hook", "Add it."))
    if "post_localSGD" in getattr(hook, "__name__", "") or type(state).__name__ == "PostLocalSGDState":
        rule = "under post-local SGD parameters differ between ranks, and what is evaluated and saved is rank 0's"
        found.append(Problem(f"{who}(ddp_comm_hook)", rule, fix="Take another hook, such as powerSGD_hook."))
    return found


def backend_of(backend: str | None, device_type: str) -> str:
    """Return torch's word for the backend of a process group: one for the device, and gloo for the CPU beside it.

    Args:
        backend: What the user wrote; None to go by the device.
        device_type: Where the module lies.
    """
    if backend is not None and (":" in backend or backend != "nccl"):
        return backend
    if device_type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device_type}:{backend or dist.get_default_backend_for_device(device_type)}"


def backend_problems(who: str, backend: str | None, plan: Plan) -> list[Problem]:
    """Return why ranks of a plan cannot exchange over a backend, before any of them tries.

    Args:
        who: The strategy.
        backend: What the user wrote; None to go by the device.
        plan: What was decided.
    """
    if plan.processes == 1:
        return []
    where, given = f"{who}(process_group_backend)", repr(backend) if backend else "none given"
    parts = _parts(backend or backend_of(None, plan.device_type))
    absent = [b for b in parts if b in _BUILT_IN and not getattr(dist, f"is_{b}_available")()]
    if "nccl" in parts and plan.device_type == "cpu":
        rule = "nccl exchanges between cards, and this run is on CPUs"
        return [Problem(where, rule, given, 'Write process_group_backend="gloo", or leave it out.')]
    if absent:
        rule = f"this build of torch must have the backend {absent[0]}"
        return [Problem(where, rule, given, 'Write process_group_backend="gloo", or install another build.')]
    return []


def _parts(backend: Any) -> list[str]:
    """Return the backends in a word such as ``"cpu:gloo,cuda:nccl"``."""
    return [part.rpartition(":")[2] for part in str(backend).split(",")]


def _known() -> list[str]:
    return [name for name in dist.Backend.backend_list if name not in ("undefined", "fake")]
