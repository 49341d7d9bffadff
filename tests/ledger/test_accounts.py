"""Administration, and what other programs do to accounts with plain SQL."""

from __future__ import annotations

import psycopg
import pytest

from billing_tasks.errors import IdempotencyConflict, InvalidRequest, TokenRefused, UserNotFound
from billing_tasks.model.ids import new_request_id

NO_ACCOUNT = 10**15


def test_an_opening_balance_is_an_entry(ledger):
    user = ledger.create_user(quota=700, group_name="vip")
    token = ledger.create_token(user.id, name="ci", remain_quota=300)

    of_token, of_user = ledger.entries(user_id=user.id)
    assert (of_user.kind, of_user.user_quota, of_user.content) == ("adjust", 700, "opening balance")
    assert (of_token.token_id, of_token.token_quota, of_token.user_quota) == (token.id, 300, 0)


def test_an_account_is_read_as_it_was_made(ledger):
    user = ledger.create_user(quota=700, group_name="vip")
    token = ledger.create_token(user.id, name="ci", unlimited_quota=True, expires_at_ms=1_800_000_000_123)

    assert ledger.accounts(user.id, token.id)[:2] == (user, token)
    assert (ledger.get_user(user.id), ledger.get_token(token.id)) == (user, token)
    assert token.expires_at_ms == 1_800_000_000_123
    assert ledger.list_tokens(user.id) == [token]
    assert user in ledger.list_users(after_id=user.id - 1)


def test_an_account_that_does_not_exist_is_none(ledger, payer):
    assert ledger.accounts(NO_ACCOUNT, payer.token.id)[:2] == (None, payer.token)
    assert ledger.accounts(payer.user.id, None)[:2] == (payer.user, None)


def test_ids_may_be_chosen_and_are_never_handed_out_again(ledger):
    selected = ledger.create_user().id + 3
    ledger.create_user(selected)

    ids = [ledger.create_user().id for _ in range(4)]

    assert min(ids) > selected
    with pytest.raises(IdempotencyConflict):
        ledger.create_user(selected, quota=5)


@pytest.mark.parametrize(
    "call",
    [
        lambda ledger: ledger.get_user(NO_ACCOUNT),
        lambda ledger: ledger.set_user(NO_ACCOUNT, status="disabled"),
        lambda ledger: ledger.top_up(NO_ACCOUNT, 1, "x"),
        lambda ledger: ledger.adjust_user(NO_ACCOUNT, 1, "x"),
        lambda ledger: ledger.create_token(NO_ACCOUNT),
    ],
)
def test_an_unknown_user_is_said_to_be_unknown(ledger, call):
    with pytest.raises(UserNotFound):
        call(ledger)


@pytest.mark.parametrize(
    "call",
    [
        lambda ledger: ledger.get_token(NO_ACCOUNT),
        lambda ledger: ledger.set_token(NO_ACCOUNT, status="deleted"),
        lambda ledger: ledger.adjust_token(NO_ACCOUNT, 1, "x"),
        lambda ledger: ledger.set_token_quota(NO_ACCOUNT, 1),
    ],
)
def test_an_unknown_token_is_said_to_be_unknown(ledger, call):
    with pytest.raises(TokenRefused) as refused:
        call(ledger)
    assert refused.value.reason == "unknown"


def test_settings_change_one_by_one_and_each_time_with_a_newer_version(ledger, payer):
    user = ledger.set_user(payer.user.id, status="disabled")
    token = ledger.set_token(payer.token.id, expires_at_ms=1_800_000_000_000)
    later = ledger.set_token(payer.token.id, unlimited_quota=True, name="renamed")
    never = ledger.set_token(payer.token.id, expires_at_ms=None, status="deleted")

    assert (user.status, user.group_name, user.quota) == ("disabled", "default", 1_000_000)
    assert (later.unlimited_quota, later.name, later.expires_at_ms) == (True, "renamed", 1_800_000_000_000)
    assert (never.status, never.expires_at_ms, never.name) == ("deleted", None, "renamed")
    assert payer.user.version < user.version
    assert payer.token.version < token.version < later.version < never.version


def test_a_top_up_repeated_is_added_once_and_another_body_is_refused(ledger, new_payer):
    payer, other = new_payer(), new_payer()
    top_up_id = new_request_id()

    user, new = ledger.top_up(payer.user.id, 500, top_up_id, note="invoice 7")
    again, new_again = ledger.top_up(payer.user.id, 500, top_up_id, note="said otherwise")

    assert (new, new_again) == (True, False)
    assert again == user
    for user_id, quota in ((payer.user.id, 501), (other.user.id, 500)):
        with pytest.raises(IdempotencyConflict):
            ledger.top_up(user_id, quota, top_up_id)
    with pytest.raises(IdempotencyConflict):
        ledger.adjust_user(payer.user.id, 500, top_up_id)
    assert ledger.get_user(payer.user.id).quota == 1_000_500
    [entry] = ledger.entries(client_key=top_up_id)
    assert (entry.kind, entry.user_quota, entry.content) == ("topup", 500, "invoice 7")


def test_corrections_are_signed_and_may_go_below_zero(ledger, new_payer):
    payer = new_payer(quota=100)

    user, _ = ledger.adjust_user(payer.user.id, -150, new_request_id())
    token, _ = ledger.adjust_token(payer.token.id, -30, new_request_id())

    assert (user.quota, token.remain_quota) == (-50, 70)
    assert ledger.get_user(payer.user.id).quota == -50


def test_a_tokens_quota_is_set_by_booking_the_difference(ledger, payer):
    token = ledger.set_token_quota(payer.token.id, 250)

    assert token.remain_quota == 250
    assert ledger.set_token_quota(payer.token.id, 250) == token
    assert ledger.entries(user_id=payer.user.id)[0].token_quota == 250 - 1_000_000


@pytest.mark.parametrize("quota", [0, -1, 2**53 + 1, 1.5, True, "7"])
def test_amounts_that_are_none_are_refused(ledger, payer, quota):
    with pytest.raises(InvalidRequest):
        ledger.top_up(payer.user.id, quota, "x")


@pytest.mark.parametrize("top_up_id", ["", "x" * 201, "nul \x00"])
def test_ids_that_are_none_are_refused(ledger, payer, top_up_id):
    with pytest.raises(InvalidRequest):
        ledger.top_up(payer.user.id, 1, top_up_id)


def test_an_edit_by_another_program_becomes_an_entry_and_a_newer_version(ledger, payer, sql):
    sql.execute("update billing.users set quota = quota - 300, status = 'disabled' where id = %s", [payer.user.id])
    sql.execute("update billing.tokens set remain_quota = 5 where id = %s", [payer.token.id])

    user, token, _ = ledger.accounts(payer.user.id, payer.token.id)
    assert (user.quota, user.status, token.remain_quota) == (999_700, "disabled", 5)
    assert user.version > payer.user.version
    assert token.version > payer.token.version
    # Two ids of one millisecond come in any order.
    newest = ledger.entries(user_id=payer.user.id, limit=2)
    of_user, of_token = sorted(newest, key=lambda entry: entry.token_id is not None)
    assert (of_user.kind, of_user.user_quota, of_user.quota) == ("adjust", -300, 300)
    assert (of_token.token_quota, of_token.content[:10]) == (5 - 1_000_000, "edited by ")


@pytest.mark.parametrize(
    "edit",
    [
        "update billing.users set group_name = 'vip' where id = %(user)s",
        "update billing.users set used_quota = used_quota + 1 where id = %(user)s",
        "update billing.tokens set unlimited_quota = true where id = %(token)s",
        "update billing.tokens set expires_at = now() where id = %(token)s",
        "update billing.tokens set name = 'other' where id = %(token)s",
        "update billing.tokens set status = 'deleted' where id = %(token)s",
        "insert into billing.users (id) values (%(user)s) on conflict (id) do update set status = 'disabled'",
    ],
)
def test_every_cached_column_edited_elsewhere_gives_a_newer_version(ledger, payer, sql, edit):
    sql.execute(edit, {"user": payer.user.id, "token": payer.token.id})

    user, token, _ = ledger.accounts(payer.user.id, payer.token.id)
    assert (user.version > payer.user.version) == ("users" in edit)
    assert (token.version > payer.token.version) == ("tokens" in edit)


def test_an_edit_that_changes_nothing_leaves_version_and_ledger_alone(ledger, payer, sql):
    sql.execute("update billing.users set quota = quota, status = status where id = %s", [payer.user.id])

    assert ledger.get_user(payer.user.id) == payer.user


def test_accounts_inserted_by_another_program_open_with_an_entry(ledger, sql):
    [user_id] = sql.execute("insert into billing.users (quota, used_quota) values (900, 40) returning id").fetchone()
    sql.execute("insert into billing.tokens (user_id, remain_quota) values (%s, 50)", [user_id])

    assert [e.content for e in ledger.entries(user_id=user_id)] == ["opening balance"] * 2


@pytest.mark.parametrize(
    ("statement", "advice"),
    [
        ("delete from billing.users where id = %(user)s", "set status = 'disabled'"),
        ("delete from billing.tokens where id = %(token)s", "set status = 'deleted'"),
        ("update billing.tokens set user_id = %(other)s where id = %(token)s", "create another token"),
        ("update billing.users set id = id + 1000000 where id = %(user)s", "never changes"),
        ("truncate billing.users cascade", "entries refer to it"),
        ("update billing.ledger_entries set quota = 0 where user_id = %(user)s", "never changed"),
        ("delete from billing.ledger_entries where user_id = %(user)s", "never changed"),
        ("truncate billing.ledger_entries", "never changed"),
    ],
)
def test_what_would_falsify_the_books_is_refused_with_advice(ledger, new_payer, sql, statement, advice):
    payer, other = new_payer(), new_payer()

    with pytest.raises(psycopg.errors.RestrictViolation, match=advice):
        sql.execute(statement, {"user": payer.user.id, "token": payer.token.id, "other": other.user.id})


def test_a_month_of_entries_cant_be_edited_or_emptied_behind_the_ledgers_back(ledger, payer, sql):
    [month] = sql.execute("select to_char(now() at time zone 'UTC', 'YYYY_MM')").fetchone()
    for statement in ("truncate", "delete from"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            sql.execute(f"{statement} billing.ledger_entries_{month}")


def test_a_new_account_finds_an_id_after_ids_were_given(ledger) -> None:
    owner = ledger.create_user()
    ledger.create_user(owner.id + 1)
    given = ledger.create_token(owner.id)
    ledger.create_token(owner.id, given.id + 1)
    channel = ledger.create_channel()
    ledger.create_channel(channel.id + 1)
    assert ledger.create_user().id == owner.id + 2
    assert ledger.create_token(owner.id).id == given.id + 2
    assert ledger.create_channel().id == channel.id + 2


def test_an_account_is_created_again_only_as_it_was(ledger) -> None:
    """A call whose answer was lost is repeated; what is another account's is refused, whatever was used meanwhile."""
    user = ledger.create_user(quota=1000, group_name="vip").id
    token = {"name": "laptop", "remain_quota": 500, "expires_at_ms": 4_000_000_000_000}
    first, second = ledger.create_token(user, **token).id, ledger.create_token(user, unlimited_quota=True).id
    channel = ledger.create_channel(name="azure").id
    ledger.top_up(user, 250, f"payment of {user}")
    ledger.adjust_token(first, -100, f"fix of {first}")

    assert ledger.create_user(user, quota=1000, group_name="vip").quota == 1250
    assert ledger.create_token(user, first, **token).remain_quota == 400
    assert ledger.create_token(user, second, unlimited_quota=True).unlimited_quota
    assert ledger.create_channel(channel, name="azure").id == channel
    for again in (
        lambda: ledger.create_user(user, quota=1250, group_name="vip"),
        lambda: ledger.create_user(user, group_name="vip"),
        lambda: ledger.create_user(user, quota=1000),
        lambda: ledger.create_token(user, first, **token | {"remain_quota": 400}),
        lambda: ledger.create_token(user, first, **token | {"remain_quota": 0}),
        lambda: ledger.create_token(user, first, **token | {"name": "phone"}),
        lambda: ledger.create_token(user, first, **token | {"expires_at_ms": None}),
        lambda: ledger.create_token(user, second, remain_quota=5, unlimited_quota=True),
        lambda: ledger.create_channel(channel, name="openai"),
    ):
        with pytest.raises(IdempotencyConflict):
            again()
    other = ledger.create_user().id
    with pytest.raises(IdempotencyConflict):
        ledger.create_token(other, first, **token)
