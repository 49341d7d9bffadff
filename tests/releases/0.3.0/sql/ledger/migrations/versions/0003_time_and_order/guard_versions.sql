-- A version never goes back. In the baseline a change that left the version as it was came from another program; an ORM
-- that saves whole rows writes back the version it once read, one that locks optimistically adds 1 to it, and a copy of
-- the database may have a sequence that lies behind its rows. Each of them is met here.
--
-- Our own statements draw a version and are let through unless it is not above the row's.

-- billing.drawn_version() -> the version that this session drew last; null if it drew none
create function billing.drawn_version() returns bigint
language plpgsql
as $$
begin
    return currval('billing.versions');
exception when object_not_in_prerequisite_state then
    return null;
end
$$;

-- billing.next_version(old_version) -> a version above the row's, also if the sequence lies behind
create function billing.next_version(p_old bigint) returns bigint
language plpgsql
as $$
begin
    if p_old > billing.last_version() then
        perform setval('billing.versions', p_old);
    end if;
    return nextval('billing.versions');
end
$$;

-- billing.is_drawn(new_version, old_version) -> boolean, true if a statement of ours drew it just now
create function billing.is_drawn(p_new bigint, p_old bigint) returns boolean
language plpgsql
as $$
begin
    -- Only if the sequence lies behind, or the row was the last that was given a version, is a drawn one not well above.
    return p_new is not distinct from billing.drawn_version() and (p_new > p_old or p_old > billing.last_version());
end
$$;

create or replace function billing.on_user_edited_elsewhere() returns trigger
language plpgsql
as $$
declare
    v_drawn boolean := billing.is_drawn(new.version, old.version);
begin
    if (new.quota, new.used_quota, new.group_name, new.status)
        is not distinct from (old.quota, old.used_quota, old.group_name, old.status)
    then
        new.version := case when new.version < old.version then old.version else billing.next_version(old.version) end;
    elsif v_drawn and new.version > old.version then
        null;
    else
        new.version := billing.next_version(old.version);
        if not v_drawn then
            perform billing.book_user_change(
                new.id, new.quota - old.quota, new.used_quota - old.used_quota, new.group_name,
                'edited by ' || session_user);
        end if;
    end if;
    return new;
end
$$;

create or replace function billing.on_token_edited_elsewhere() returns trigger
language plpgsql
as $$
declare
    v_drawn boolean := billing.is_drawn(new.version, old.version);
begin
    if (new.remain_quota, new.used_quota, new.unlimited_quota, new.status, new.expires_at, new.name)
        is not distinct from
        (old.remain_quota, old.used_quota, old.unlimited_quota, old.status, old.expires_at, old.name)
    then
        new.version := case when new.version < old.version then old.version else billing.next_version(old.version) end;
    elsif v_drawn and new.version > old.version then
        null;
    else
        new.version := billing.next_version(old.version);
        if not v_drawn then
            perform billing.book_token_change(
                new.user_id, new.id, new.remain_quota - old.remain_quota, new.used_quota - old.used_quota, new.name,
                'edited by ' || session_user);
        end if;
    end if;
    return new;
end
$$;

create or replace trigger users_edited_elsewhere before update on billing.users
    for each row when (
        new.version < old.version
        or new.version > pg_sequence_last_value('billing.versions')
        or new.version <= old.version + 1
           and (new.quota, new.used_quota, new.group_name, new.status)
               is distinct from (old.quota, old.used_quota, old.group_name, old.status))
    execute function billing.on_user_edited_elsewhere();
create or replace trigger tokens_edited_elsewhere before update on billing.tokens
    for each row when (
        new.version < old.version
        or new.version > pg_sequence_last_value('billing.versions')
        or new.version <= old.version + 1
           and (new.remain_quota, new.used_quota, new.unlimited_quota, new.status, new.expires_at, new.name)
               is distinct from
               (old.remain_quota, old.used_quota, old.unlimited_quota, old.status, old.expires_at, old.name))
    execute function billing.on_token_edited_elsewhere();

-- A row that another program inserts with a version of its own.
create function billing.on_account_inserted_elsewhere() returns trigger
language plpgsql
as $$
begin
    new.version := nextval('billing.versions');
    return new;
end
$$;
create trigger users_get_a_version before insert on billing.users
    for each row when (new.version is null or new.version > pg_sequence_last_value('billing.versions'))
    execute function billing.on_account_inserted_elsewhere();
create trigger tokens_get_a_version before insert on billing.tokens
    for each row when (new.version is null or new.version > pg_sequence_last_value('billing.versions'))
    execute function billing.on_account_inserted_elsewhere();
