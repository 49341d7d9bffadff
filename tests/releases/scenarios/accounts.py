"""What operators and sign-up pages do: users, tokens, channels, top-ups, corrections; and other programs by SQL."""

from __future__ import annotations

import time

from billing_tasks import Bookkeeper
from tests.releases.play import TOKEN, USER, Play
from tests.releases.scenarios.requests import IN_THE_FAR, SECOND_TOKEN, SECOND_USER, open_accounts


def accounts(play: Play) -> None:
    """Made, changed, read page by page, refused."""
    open_accounts(play)
    play.ask("create_user")
    play.ask("create_user", quota=77, group="vip")
    play.ask("create_user", user_id=USER)
    play.ask("create_token", user_id=USER, name="a second one: ü")
    play.ask("create_token", user_id=USER, token_id=TOKEN)
    play.ask("create_token", user_id=999)
    play.ask("create_token", user_id=SECOND_USER, token_id=30, quota=5, unlimited=True, expires_at=IN_THE_FAR)
    play.ask("create_channel")
    play.ask("create_channel", name="azure")
    play.ask("create_channel", channel_id=3)
    play.ask("set_user", user_id=USER, group="svip")
    play.ask("set_user", user_id=USER)
    play.ask("set_user", user_id=999, group="vip")
    play.ask("set_token", token_id=30, name="renamed", unlimited=False)
    play.ask("set_token", token_id=30)
    play.ask("set_token", token_id=999, status="disabled")
    play.ask("set_token_quota", token_id=30, quota=500)
    play.ask("set_token_quota", token_id=30, quota=100, note="cut")
    play.ask("set_token_quota", token_id=30, quota=100)
    play.ask("set_token_quota", token_id=999, quota=100)
    play.ask("user", user_id=USER)
    play.ask("user", user_id=999)
    play.ask("token", token_id=TOKEN)
    play.ask("token", token_id=999)
    play.ask("users")
    play.ask("users", after_id=42, limit=1)
    play.ask("tokens")
    play.ask("tokens", user_id=USER)
    play.ask("tokens", after_id=8, limit=2)
    play.consume(40, "through azure", channel_id=4)
    play.consume(60, "through an unlisted one", channel_id=50)
    play.settle()
    play.ask("channels")
    play.ask("channels", after_id=3, limit=1)
    play.ask("balance", user_id=USER)
    play.ask("balance", user_id=999)
    play.entries()
    play.entries(user_id=USER, limit=1)
    play.end()


def top_ups(play: Play) -> None:
    """Once per id, however often it is repeated; an id with another body is refused."""
    open_accounts(play, quota=1_000)
    play.reserve(900, "before")
    for _ in range(2):
        play.ask("top_up", user_id=USER, quota=5_000, top_up_id="pay-1", note="invoice 17")
    play.ask("top_up", user_id=USER, quota=5_001, top_up_id="pay-1")
    play.ask("top_up", user_id=SECOND_USER, quota=5_000, top_up_id="pay-1")
    play.ask("top_up", user_id=999, quota=5_000, top_up_id="pay-2")
    play.ask("top_up", user_id=USER, quota=1, top_up_id="pay-2")
    play.reserve(5_000, "after")
    for _ in range(2):
        play.ask("adjust_user", user_id=USER, quota=-200, adjust_id="fix-1", note="counted twice")
    play.ask("adjust_user", user_id=USER, quota=200, adjust_id="fix-1")
    play.ask("adjust_user", user_id=USER, quota=200, adjust_id="pay-1")
    play.ask("adjust_user", user_id=SECOND_USER, quota=-3_000, adjust_id="fix-2")
    play.reserve(1, "below zero", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.ask("adjust_user", user_id=999, quota=1, adjust_id="fix-3")
    for _ in range(2):
        play.ask("adjust_token", token_id=TOKEN, quota=7_000, adjust_id="fix-4", note="more")
    play.ask("adjust_token", token_id=TOKEN, quota=7_001, adjust_id="fix-4")
    play.ask("adjust_token", token_id=SECOND_TOKEN, quota=7_000, adjust_id="fix-4")
    play.ask("adjust_token", token_id=999, quota=1, adjust_id="fix-5")
    play.reserve(5_000, "after both")
    play.consume(4_000, "after both")
    play.settle()
    play.entries(client_key="pay-1")
    play.end()


def edited_by_sql(play: Play) -> None:
    """Another program edits rows: a cached row that refuses is read again, an old one too; the change is an entry."""
    open_accounts(play, quota=1_000)
    play.reserve(900, "before")
    play.sql("update billing.users set quota = quota + 5000 where id = %s", USER)
    play.sql("update billing.tokens set remain_quota = remain_quota + 5000, name = 'edited' where id = %s", TOKEN)
    play.reserve(4_000, "after")
    play.sql("update billing.users set status = 'disabled', group_name = 'banned' where id = %s", SECOND_USER)
    play.reserve(1, "disabled", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.sql("update billing.users set status = 'enabled' where id = %s", SECOND_USER)
    play.reserve(1, "enabled", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.sql("update billing.users set quota = 10 where id = %s", SECOND_USER)
    soon = play.another(Bookkeeper, fresh_seconds=1)
    time.sleep(1.1)
    play.reserve(500, "lowered", user_id=SECOND_USER, token_id=SECOND_TOKEN, door=soon)
    play.sql("update billing.tokens set status = 'deleted' where id = %s", SECOND_TOKEN)
    play.consume(5, "enabled", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.settle(SECOND_USER)
    play.reserve(1, "deleted", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.sql("insert into billing.users (id, quota) values (60, 123)")
    play.sql("insert into billing.tokens (id, user_id, remain_quota) values (61, 60, 50)")
    play.reserve(50, "inserted", user_id=60, token_id=61)
    play.sql("delete from billing.users where id = 60")
    play.sql("delete from billing.tokens where id = 61")
    play.sql("update billing.tokens set user_id = 42 where id = 61")
    play.sql("update billing.users set id = 62 where id = 60")
    play.sql("update billing.users set status = 'banned' where id = 60")
    play.sql("update billing.users set created_at = created_at where id = 60")
    play.ask("user", user_id=60)
    play.entries()
    play.end()
