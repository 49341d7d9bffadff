-- What history charged, on the accounts that it charged: balances equal the sums of their entries again.
update billing.users as u
    set quota = u.quota - s.used, used_quota = s.used, request_count = s.requests,
        version = nextval('billing.versions')
    from (
        select user_id, sum(used_quota)::bigint as used, count(*) as requests
        from billing.ledger_entries where kind = 'consume' group by user_id) as s
    where s.user_id = u.id;
update billing.tokens as t
    set remain_quota = t.remain_quota - s.used, used_quota = s.used, version = nextval('billing.versions')
    from (
        select token_id, sum(used_quota)::bigint as used
        from billing.ledger_entries where kind = 'consume' group by token_id) as s
    where s.token_id = t.id;
insert into billing.channel_usage (channel_id, shard, used_quota)
    select channel_id, 0, sum(used_quota)::bigint
    from billing.ledger_entries where kind = 'consume' group by channel_id;
