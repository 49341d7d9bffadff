-- What accounts bring with them, so that the books can be checked although no entry explains it; and ids that programs in
-- JavaScript and Lua can read.

-- How many requests a user had made elsewhere; null: the user is older than this column, and nobody counted.
alter table billing.users add column opening_requests bigint;
alter table billing.users alter column opening_requests set default 0;

-- Until when the token had no limit: what was used by then may have taken it below zero.
alter table billing.tokens add column unlimited_until timestamptz;
update billing.tokens set unlimited_until = now() where remain_quota < 0 and not unlimited_quota;

-- What a channel had used elsewhere.
alter table billing.channel_usage add column opening_quota bigint not null default 0;

-- A row that breaks it already must not end the upgrade: then only new ones are checked.
do $$
declare
    v_table text;
begin
    foreach v_table in array array['users', 'tokens', 'channels'] loop
        execute format(
            'alter table billing.%I add constraint %I check (id between 1 and 9007199254740991) not valid',
            v_table, v_table || '_id_is_exact');
        begin
            execute format('alter table billing.%I validate constraint %I', v_table, v_table || '_id_is_exact');
        exception when check_violation then
            raise warning 'billing.% has ids that JavaScript and Lua can not hold', v_table;
        end;
    end loop;
end
$$;

create function billing.on_user_with_requests() returns trigger
language plpgsql
as $$
begin
    new.opening_requests := new.request_count;
    return new;
end
$$;
create trigger users_opening_requests before insert on billing.users
    for each row when (new.request_count <> 0) execute function billing.on_user_with_requests();

create function billing.on_token_limited() returns trigger
language plpgsql
as $$
begin
    new.unlimited_until := clock_timestamp();
    return new;
end
$$;
create trigger tokens_limited before update on billing.tokens
    for each row when (old.unlimited_quota and not new.unlimited_quota) execute function billing.on_token_limited();

-- Posting counts what channels used; a row that another program inserts is what a channel brings with it.
create function billing.on_channel_usage_inserted() returns trigger
language plpgsql
as $$
declare
    v_calls text;
begin
    get diagnostics v_calls = pg_context;
    -- Named without the schema if search_path has it.
    if v_calls !~ 'function (billing\.)?post_(batch|refund)' then
        new.opening_quota := new.used_quota;
    end if;
    return new;
end
$$;
create trigger channel_usage_opening before insert on billing.channel_usage
    for each row when (new.used_quota <> 0) execute function billing.on_channel_usage_inserted();
