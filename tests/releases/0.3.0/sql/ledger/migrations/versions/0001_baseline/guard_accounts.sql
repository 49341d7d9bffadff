-- Triggers that keep users, tokens and entries honest, whoever writes.
--
-- Our own statements set `version` themselves. A change that leaves it as it was
-- comes from another program (psql, an ORM of the app): it gets a new version, so
-- that caches reload, and its quota change becomes an `adjust` entry, so that the
-- balance still equals the sum of the entries. Opening balances are entries, too.

create or replace function billing.book_user_change(
    p_user_id bigint, p_quota bigint, p_used_quota bigint, p_group_name text, p_content text) returns void
language sql
as $$
    insert into billing.ledger_entries (entry_id, kind, user_id, quota, user_quota, used_quota, group_name, content)
    select billing.new_entry_id(), 'adjust', p_user_id, abs(p_quota), p_quota, p_used_quota, p_group_name, p_content
    where p_quota <> 0 or p_used_quota <> 0
$$;

create or replace function billing.book_token_change(
    p_user_id bigint, p_token_id bigint, p_quota bigint, p_used_quota bigint, p_name text, p_content text) returns void
language sql
as $$
    insert into billing.ledger_entries (
        entry_id, kind, user_id, token_id, quota, token_quota, used_quota, token_name, content)
    select billing.new_entry_id(), 'adjust', p_user_id, p_token_id, abs(p_quota), p_quota, p_used_quota, p_name,
           p_content
    where p_quota <> 0 or p_used_quota <> 0
$$;

create or replace function billing.on_user_inserted() returns trigger
language plpgsql
as $$
begin
    perform billing.book_user_change(new.id, new.quota, new.used_quota, new.group_name, 'opening balance');
    -- An id somebody chose must not be handed out again.
    perform setval(pg_get_serial_sequence('billing.users', 'id'), new.id)
    where new.id > (select last_value from billing.users_id_seq);
    return null;
end
$$;

create or replace function billing.on_token_inserted() returns trigger
language plpgsql
as $$
begin
    perform billing.book_token_change(
        new.user_id, new.id, new.remain_quota, new.used_quota, new.name, 'opening balance');
    perform setval(pg_get_serial_sequence('billing.tokens', 'id'), new.id)
    where new.id > (select last_value from billing.tokens_id_seq);
    return null;
end
$$;

create or replace function billing.on_channel_inserted() returns trigger
language plpgsql
as $$
begin
    perform setval(pg_get_serial_sequence('billing.channels', 'id'), new.id)
    where new.id > (select last_value from billing.channels_id_seq);
    return null;
end
$$;

create or replace function billing.on_user_edited_elsewhere() returns trigger
language plpgsql
as $$
begin
    new.version := nextval('billing.versions');
    perform billing.book_user_change(
        new.id, new.quota - old.quota, new.used_quota - old.used_quota, new.group_name,
        'edited by ' || session_user);
    return new;
end
$$;

create or replace function billing.on_token_edited_elsewhere() returns trigger
language plpgsql
as $$
begin
    new.version := nextval('billing.versions');
    perform billing.book_token_change(
        new.user_id, new.id, new.remain_quota - old.remain_quota, new.used_quota - old.used_quota, new.name,
        'edited by ' || session_user);
    return new;
end
$$;

create or replace function billing.refuse() returns trigger
language plpgsql
as $$
begin
    raise exception '% on billing.%: %', tg_op, tg_table_name, tg_argv[0] using errcode = 'restrict_violation';
end
$$;

create or replace trigger users_opening after insert on billing.users
    for each row execute function billing.on_user_inserted();
create or replace trigger tokens_opening after insert on billing.tokens
    for each row execute function billing.on_token_inserted();
create or replace trigger channels_opening after insert on billing.channels
    for each row execute function billing.on_channel_inserted();

-- A new cached column must be named here (and in the tokens' trigger below).
create or replace trigger users_edited_elsewhere before update on billing.users
    for each row when (
        new.version = old.version
        and (new.quota, new.used_quota, new.group_name, new.status)
            is distinct from (old.quota, old.used_quota, old.group_name, old.status))
    execute function billing.on_user_edited_elsewhere();
create or replace trigger tokens_edited_elsewhere before update on billing.tokens
    for each row when (
        new.version = old.version
        and (new.remain_quota, new.used_quota, new.unlimited_quota, new.status, new.expires_at, new.name)
            is distinct from
            (old.remain_quota, old.used_quota, old.unlimited_quota, old.status, old.expires_at, old.name))
    execute function billing.on_token_edited_elsewhere();

create or replace trigger users_keep_their_id before update on billing.users
    for each row when (new.id <> old.id) execute function billing.refuse('the id of a user never changes');
create or replace trigger tokens_keep_their_user before update on billing.tokens
    for each row when (new.id <> old.id or new.user_id <> old.user_id)
    execute function billing.refuse('id and user_id of a token never change; create another token');

create or replace trigger users_are_kept before delete on billing.users
    for each row execute function billing.refuse('entries refer to it; set status = ''disabled'' instead');
create or replace trigger tokens_are_kept before delete on billing.tokens
    for each row execute function billing.refuse('entries refer to it; set status = ''deleted'' instead');
create or replace trigger users_are_never_truncated before truncate on billing.users
    for each statement execute function billing.refuse('entries refer to it; set status = ''disabled'' instead');
create or replace trigger tokens_are_never_truncated before truncate on billing.tokens
    for each statement execute function billing.refuse('entries refer to it; set status = ''deleted'' instead');

-- Row triggers reach every partition; truncate triggers don't, so maintain_partitions() repeats that one.
create or replace trigger entries_are_append_only before update or delete on billing.ledger_entries
    for each row execute function billing.refuse('entries are never changed; book another one');
create or replace trigger entries_are_never_truncated before truncate on billing.ledger_entries
    for each statement execute function billing.refuse('entries are never changed; book another one');
