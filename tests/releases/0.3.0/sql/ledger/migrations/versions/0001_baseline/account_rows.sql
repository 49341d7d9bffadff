-- billing.user_row(users) -> json, billing.token_row(tokens) -> json
--
-- An account as the workers' Python reads it: a JSON array with the columns in the
-- order of events.UserRow and events.TokenRow. Changing one means changing the other.
create or replace function billing.user_row(u billing.users) returns json
language sql stable parallel safe
as $$
    select json_build_array(u.id, u.quota, u.used_quota, u.request_count, u.group_name, u.status, u.version)
$$;

-- billing.milliseconds(timestamptz) -> since 1970, as Redis and Python count time. Other programs
-- may store "infinity" or the year 20000, which neither can: both mean never (null).
create or replace function billing.milliseconds(t timestamptz) returns bigint
language sql immutable parallel safe
as $$
    -- greatest() would take 1970 for a null.
    select case when t is null or t >= timestamptz '9999-12-31 00:00+00' then null
                else (extract(epoch from greatest(t, timestamptz '1970-01-01 00:00+00')) * 1000)::bigint end
$$;

create or replace function billing.token_row(t billing.tokens) returns json
language sql stable parallel safe
as $$
    select json_build_array(
        t.id, t.user_id, t.name, t.remain_quota, t.used_quota, t.unlimited_quota, t.status,
        billing.milliseconds(t.expires_at), t.version)
$$;
