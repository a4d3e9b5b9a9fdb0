"""The rows of many plans under one another, so that lanes gather theirs with one index array."""

import numpy as np
import numpy.typing as npt

from diffusion.plan import Plan
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class PlanTable:
    """Plans in use, and as many others as fit, laid out once each.

    Row first_row[handle] + position belongs to that position of the plan. Rows move when room is
    made (in acquire only), handles do not, so lanes keep handles. Not thread-safe.

    Attributes:
        first_row: int64 [handles].
        timesteps: int64 [rows]; alpha, sigma: float32 [rows]; coefficients: float32 [rows, 4];
            guided: bool [rows].
    """

    def __init__(self, schedule: Schedule, *, cached_rows: int = 65536) -> None:
        """`cached_rows` (37 bytes each) is kept to unless more are in use at once."""
        self._schedule = schedule
        self._handles: dict[tuple[str, int], int] = {}
        self._users: list[int] = []
        self._plans: list[Plan | None] = []
        self._rows_used = 0
        self.first_row: Int64Array = np.zeros(0, dtype=np.int64)
        self._allocate(cached_rows)

    @property
    def rows_used(self) -> int:
        """Rows laid out at present."""
        return self._rows_used

    def acquire(self, sampler: str, num_steps: int) -> int:
        """A handle to the plan, which stays laid out until the handle is released as often.

        Raises:
            ValueError: from make_plan.
        """
        handle = self._handles.get((sampler, num_steps))
        if handle is None:
            plan = make_plan(sampler, self._schedule, num_steps)
            if self._rows_used + plan.num_steps > len(self.timesteps):
                self._make_room(plan.num_steps)
            handle = self._free_handle()
            self._handles[sampler, num_steps] = handle
            self._plans[handle] = plan
            self._lay_out(handle, plan)
        self._users[handle] += 1
        return handle

    def release(self, handle: int) -> None:
        """One user less. The rows stay until room is needed."""
        self._users[handle] -= 1

    def rows_left(self, handle: int, position: int, guided: bool) -> int:
        """Network rows that a lane still needs from a position on."""
        first = int(self.first_row[handle]) + position
        last = int(self.first_row[handle]) + self._num_steps(handle)
        return last - first + guided * int(np.count_nonzero(self.guided[first:last]))

    def _num_steps(self, handle: int) -> int:
        plan = self._plans[handle]
        assert plan is not None
        return plan.num_steps

    def _free_handle(self) -> int:
        if None in self._plans:
            return self._plans.index(None)
        self._plans.append(None)
        self._users.append(0)
        self.first_row = np.append(self.first_row, 0)
        return len(self._plans) - 1

    def _lay_out(self, handle: int, plan: Plan) -> None:
        rows = slice(self._rows_used, self._rows_used + plan.num_steps)
        self.first_row[handle] = rows.start
        self.timesteps[rows] = plan.timesteps
        self.alpha[rows] = plan.alpha
        self.sigma[rows] = plan.sigma
        self.coefficients[rows] = plan.coefficients
        self.guided[rows] = plan.guided
        self._rows_used = rows.stop

    def _make_room(self, rows: int) -> None:
        """Drops the plans that nobody uses; grows only if that is not enough."""
        unused = {handle for handle, users in enumerate(self._users) if users == 0}
        self._handles = {key: h for key, h in self._handles.items() if h not in unused}
        for handle in unused:
            self._plans[handle] = None
        kept = [(handle, plan) for handle, plan in enumerate(self._plans) if plan is not None]
        needed = rows + sum(plan.num_steps for _, plan in kept)
        if needed > len(self.timesteps):
            self._allocate(2 * needed)
        self._rows_used = 0
        for handle, plan in kept:
            self._lay_out(handle, plan)

    def _allocate(self, rows: int) -> None:
        self.timesteps: Int64Array = np.zeros(rows, dtype=np.int64)
        self.alpha: Float32Array = np.zeros(rows, dtype=np.float32)
        self.sigma: Float32Array = np.zeros(rows, dtype=np.float32)
        self.coefficients: Float32Array = np.zeros((rows, 4), dtype=np.float32)
        self.guided: BoolArray = np.zeros(rows, dtype=np.bool_)
