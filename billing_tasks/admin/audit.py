"""Audit: the guarantees verified, and what is off in Redis set right. The ledger is never touched."""

from __future__ import annotations

from dataclasses import dataclass

from billing_tasks.flows.audit import reconcile, setup, verify
from billing_tasks.flows.audit.answers import Report, SetupWarning
from billing_tasks.holds.repairs import Repair
from billing_tasks.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was off, what could be done about it, what was done, and what is off still."""

    before: Report
    repairs: list[Repair]  # what may be made without asking an operator
    repaired: list[Repair]  # those that changed something
    after: Report  # the same as `before` if nothing was changed

    def as_dict(self) -> dict[str, object]:
        """For machines: the report after, and the repairs in words."""
        return {
            **self.after.as_dict(),
            "repairs": [str(repair) for repair in self.repairs],
            "repaired": [str(repair) for repair in self.repaired],
        }


class Audit:
    """Looks at both servers. All methods raise Unavailable if one of them is away."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def verify(self, *, sums: bool = True) -> Report:
        """Check the guarantees; the report's `ok` says whether all hold. `sums=False` leaves out what reads the whole
        ledger."""
        r = self._runtime
        report = verify.check(holds=r.holds, ledger=r.ledger, sums=sums)
        report.warnings = self.setup()
        return report

    def setup(self) -> list[SetupWarning]:
        """Settings of the servers under which the guarantees don't hold. Raises nothing."""
        return setup.look(holds=self._runtime.holds, ledger=self._runtime.ledger, settings=self._runtime.settings)

    def reconcile(self, *, repair: bool = True, sums: bool = True) -> Reconciled:
        """Verify, repair what is safe, which is Redis, and verify again if that changed something.

        `repair=False` only lists the repairs. Safe to repeat, and beside running traffic.
        """
        r = self._runtime
        before = self.verify(sums=sums)
        wanted = list(dict.fromkeys(found.repair for found in before.findings if found.repair is not None))
        made = r.run(reconcile.repair(wanted, commands=r.commands, settings=r.settings)) if repair else []
        return Reconciled(before, wanted, made, self.verify(sums=sums) if made else before)
