"""Launchers of a third party, which start one rank in another process: by a fork, and by a new interpreter."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lt_interface import ClusterEnvironment, Outcome, Plan, Problem

SECONDS = 120.0


def run_rank(main: Callable[[Any], Outcome], request: Any, sending: Any) -> None:
    """Run a rank, send its outcome or its error as pickle bytes, and end without the interpreter's clean-up."""
    torch.set_num_threads(1)
    try:
        answer = True, pickle.dumps(main(request))
    except BaseException as error:
        answer = False, pickle.dumps(error)
    sending.send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class ForkLauncher:
    """Launcher of one rank that inherits the request."""

    name = "test_fork"
    passes = "inherited"
    method = "fork"

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse more than one process."""
        if plan.processes == 1:
            return []
        return [Problem(f"Trainer(launcher={self.name!r})", "it starts one process", fix="Write devices=1.")]

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Run the rank and return its outcome, or raise its error; no process outlives the call."""
        what = request.to_bytes() if self.passes == "bytes" else request
        context: Any = multiprocessing.get_context(self.method)
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=run_rank, args=(main, what, sending), daemon=False)
        process.start()
        sending.close()
        try:
            if not receiving.poll(SECONDS):
                raise TimeoutError(f"{self.name}: the rank gave no answer")
            went_well, answer = receiving.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: the rank died") from None
        finally:
            receiving.close()
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        result = pickle.loads(answer)
        if not went_well:
            raise result
        outcome: Outcome = result
        return outcome


class SpawnLauncher(ForkLauncher):
    """Launcher of one rank in a new interpreter, which gets the request as bytes."""

    name = "test_spawn"
    passes = "bytes"
    method = "spawn"
