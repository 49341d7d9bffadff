-- billing.user_row(users) -> json, billing.token_row(tokens) -> json
--
-- An account as the workers' Python reads it: a JSON array with the columns in the
-- order of events.UserRow and events.TokenRow. Changing one means changing the other.
create or replace function billing.user_row(u billing.users) returns json
language sql stable parallel safe
as $$
    select json_build_array(u.id, u.quota, u.used_quota, u.request_count, u.group_name, u.status, u.version)
$$;

create or replace function billing.token_row(t billing.tokens) returns json
language sql stable parallel safe
as $$
    select json_build_array(
        t.id, t.user_id, t.name, t.remain_quota, t.used_quota, t.unlimited_quota, t.status,
        (extract(epoch from t.expires_at) * 1000)::bigint, t.version)
$$;
