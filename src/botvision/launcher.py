"""The processes that torchrun or Slurm's srun has started. Imports no heavy libraries."""

from __future__ import annotations

import os
from dataclasses import dataclass

from botvision.errors import UserError


@dataclass(frozen=True)
class Launcher:
    """This process among the processes of a launcher.

    Args:
        name: name of the launcher for messages: torchrun or srun.
        rank: number of this process among all.
        local_rank: number of this process on its machine.
        devices: number of processes per machine.
        nodes: number of machines.
    """

    name: str
    rank: int
    local_rank: int
    devices: int
    nodes: int

    @classmethod
    def current(cls) -> Launcher | None:
        """Return this process as its launcher describes it, or None without a launcher.

        torchrun sets RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. srun sets the variables of
        a step. The shell of an sbatch script or of salloc has no step, and a step of one task is
        treated as no launcher: it may be an interactive shell.

        Raises:
            UserError: the machines have different numbers of processes.
            SystemExit: the same, in another process than the first one of srun.
        """
        torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if all(name in os.environ for name in torchrun):
            rank, local_rank, count, devices = (int(os.environ[name]) for name in torchrun)
            if count % devices:
                raise UserError(
                    f"torchrun has started {devices} of {count} processes on this machine; start "
                    "the same number on every machine"
                )
            return cls("torchrun", rank, local_rank, devices, count // devices)
        count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if count == 1:
            return None
        nodes, per_node = (
            os.environ[f"SLURM_STEP_{name}"] for name in ("NUM_NODES", "TASKS_PER_NODE")
        )
        rank, local_rank = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID"))
        if "," in per_node:  # such as 3,1; equal numbers are 2(x4)
            if rank > 0:  # the first process reports it
                raise SystemExit(2)
            raise UserError(
                f"srun has started {per_node} tasks on the machines; start the same number on "
                "every machine with srun's option ntasks-per-node"
            )
        return cls("srun", rank, local_rank, count // int(nodes), int(nodes))

    @property
    def count(self) -> int:
        """The number of processes on all machines."""
        return self.devices * self.nodes
