"""One request from beginning to end, and one whose upstream fails.

Needs servers and a worker: run `make up` in one terminal, paste its two `export`
lines into another, then run this file with .venv/bin/python. What it prints is in
one_request.out; a test compares the two.
"""

import time

from billing_tasks import Accounts, Bookkeeper
from billing_tasks.errors import Refused


def main() -> None:
    with Accounts.from_settings() as accounts, Bookkeeper.from_settings() as bk:
        # What an operator does once; a gateway has no Accounts.
        user = accounts.create_user(quota=20_000, group="default")
        token = accounts.create_token(user.id, name="laptop", quota=20_000)
        print(f"user has {user.quota} quota")

        # Before the upstream call: price it and set quota aside. One round trip to Redis.
        price = bk.price(model="gpt-5", group="default")
        reservation = bk.pre_consume_quota(
            price.estimate(prompt_tokens=374, max_tokens=512), user_id=user.id, token_id=token.id, price=price
        )
        available = accounts.balance(user.id).available
        print(f"request {reservation.request_id} holds {reservation.held_quota}; available {available}")

        # After it: book what was really used. The rest of the hold is free again at once.
        receipt = bk.consume(reservation.log(channel_id=3, prompt_tokens=374, completion_tokens=44))
        print(f"consumed {receipt.quota}; enough for 19546 more? {bk.user_has_enough_quota(user.id, 19_546)}")
        again = bk.consume(reservation.log(channel_id=3, prompt_tokens=374, completion_tokens=44))
        print(f"consumed once more: accepted before? {again.again}")

        # The upstream failed: give the hold back.
        failed = bk.pre_consume_quota(5_000, user_id=user.id, token_id=token.id)
        returned = bk.refund_quota(failed, reason="upstream answered 502")
        print(f"refunded {returned.quota}; enough for 19546 again? {bk.user_has_enough_quota(user.id, 19_546)}")

        # More than there is: refused before anything was sent upstream.
        try:
            bk.pre_consume_quota(1_000_000, user_id=user.id, token_id=token.id)
        except Refused as exc:
            print(f"refused: {exc.http_status} {exc.code}")

        # A worker books it in PostgreSQL, usually within a tenth of a second.
        deadline = time.monotonic() + 20
        while len(entries := accounts.entries(user_id=user.id)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        for entry in sorted(entries, key=lambda entry: (entry.kind, -entry.user_quota)):
            line = f"ledger: {entry.kind:8} user {entry.user_quota:+7} token {entry.token_quota:+7}  {entry.content}"
            print(line.rstrip())
        print(f"user has {accounts.user(user.id).quota} quota")


if __name__ == "__main__":
    main()
