"""refund: give a charge back from the command line, as Bookkeeper.refund_charge does."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from billing_tasks.cli.dead_letter_text import say
from billing_tasks.cli.options import AsJson, UserId, Who, me
from billing_tasks.cli.process import runtime
from billing_tasks.cli.show import command, print_json


def refund(
    user_id: UserId,
    request_id: Annotated[str, typer.Argument(help="The charge's request_id.", show_default=False)],
    refund_id: Annotated[str, typer.Option("--id", help="The refund's own id, a case number say.", show_default=False)],
    comment: Annotated[str, typer.Option(help="Kept with the entry.", show_default=False)],
    quota: Annotated[int | None, typer.Option(help="How much; without it all that is left of the charge.")] = None,
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Give a charge back, whole or in part, once per --id. It is booked with the next settlement.

    What can't be booked, because more is asked for than is left of the charge, say, becomes a dead letter.
    """
    from billing_tasks.client.bookkeeper import Bookkeeper

    receipt = Bookkeeper(runtime()).refund_charge(
        user_id=user_id, request_id=request_id, refund_id=refund_id, quota=quota, reason=f"{comment} ({me(actor)})"
    )
    runtime().doorbell.close()  # a worker is called before this process ends
    if as_json:
        print_json({"request_id": receipt.request_id, "refund_id": refund_id, "quota": quota, "booked": receipt.posted})
        return
    amount = "all that is left" if quota is None else f"{quota:,}"
    state = "Booked" if receipt.posted else "Filed, a worker books it now"
    say(f"{state}: {amount} of request {request_id} goes back to user {user_id}.")
    say(f"  {command()} log --request {shlex.quote(request_id)}  # shows it once it is booked")
