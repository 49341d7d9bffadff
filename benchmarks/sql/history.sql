-- One month's booked consumes into a table of its own: evenly over the month, ids in the order of their time.
insert into {partition} (
    entry_id, kind, request_id, user_id, token_id, channel_id, quota, held_quota, user_quota, token_quota,
    used_quota, prompt_tokens, completion_tokens, model_name, token_name, group_name, model_ratio,
    completion_ratio, group_ratio, elapsed_ms, is_stream, fingerprint)
select id, 'consume', id, account, account, 1 + n %% %(channels)s, %(charge)s, %(charge)s, -%(charge)s, -%(charge)s,
    %(charge)s, 374, 44, 'gpt-4o', 'token of ' || account, 'default', '1.25', '4', '1', 1200, true, uuid_send(id)
from (
    select 1 + (n * 7919) %% %(users)s as account, n,
        pg_temp.entry_id(%(began_ms)s + n * %(span_ms)s / %(entries)s, n::text) as id
    from generate_series(1::bigint, %(entries)s::bigint) as n) as s
