-- Users 1 to users, each with one token of the same number, and the entries of their opening balances.
insert into billing.channels (id) select n from generate_series(1, %(channels)s) as n;
insert into billing.users (id, quota) select n, %(quota)s from generate_series(1, %(users)s) as n;
insert into billing.tokens (id, user_id, name, remain_quota)
    select id, id, 'token of ' || id, quota from billing.users order by id;
insert into billing.ledger_entries (entry_id, kind, user_id, quota, user_quota, group_name, content)
    select pg_temp.entry_id(%(now_ms)s, 'user ' || id), 'adjust', id, quota, quota, group_name, 'opening balance'
    from billing.users order by id;
insert into billing.ledger_entries (
        entry_id, kind, user_id, token_id, quota, token_quota, token_name, content)
    select pg_temp.entry_id(%(now_ms)s, 'token ' || id), 'adjust', user_id, id, remain_quota, remain_quota, name,
           'opening balance'
    from billing.tokens order by id;
