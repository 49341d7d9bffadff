-- billing.broken_invariants() -> rows (what, id, expected, actual); no row: the books are right
--
-- Guarantees 1, 3 and 5, checked over the whole ledger in one snapshot, so it may run
-- while requests are posted. It reads every entry: minutes on a large ledger, and meant
-- for a beat task, `billing-tasks verify` and the end of every test.
-- As in revision 0003, and corrections: a charge can be refunded up to what it was corrected to.
create or replace function billing.broken_invariants()
returns table (what text, id text, expected bigint, actual bigint)
language sql stable
as $$
    with user_sums as (
        select user_id,
               sum(user_quota) as quota,
               sum(used_quota) filter (where kind <> 'adjust' or token_id is null) as used_quota,
               count(*) filter (where kind = 'consume') as requests,
               -- Only these take a balance below zero: usage beyond its hold, and corrections.
               sum(greatest(quota - held_quota, 0)) filter (where kind = 'consume') as beyond_holds,
               sum(-user_quota) filter (where kind in ('adjust', 'correction') and user_quota < 0) as taken_away
        from billing.ledger_entries group by user_id
    ), lives as (
        -- An epoch is the moment, in microseconds, at which Redis began a new life.
        select distinct to_timestamp(c.epoch / 1000000.0) as began from billing.outbox_cursors as c
        where exists (select from billing.outbox_cursors as b where b.shard = c.shard and b.epoch < c.epoch)
        -- These books came back older than Redis knew them: what was under way was granted by what they had been.
        union select noticed_at from billing.incidents where kind = 'restored'
    ), token_sums as (
        select token_id, sum(token_quota) as quota, sum(used_quota) as used_quota,
               sum(greatest(quota - held_quota, 0)) filter (where kind = 'consume') as beyond_holds,
               sum(-token_quota) filter (where kind in ('adjust', 'correction') and token_quota < 0) as taken_away
        from billing.ledger_entries where token_id is not null group by token_id
    ), channel_sums as (
        select channel_id, sum(used_quota) as used_quota
        from billing.ledger_entries where channel_id is not null group by channel_id
    ), refund_sums as (
        select request_id, sum(quota) as quota from billing.refunds group by request_id
    ), correction_sums as (
        select request_id, sum(quota) as quota from billing.corrections group by request_id
    )
    select 'users.quota', coalesce(u.id, s.user_id)::text, coalesce(s.quota, 0)::bigint, u.quota
    from billing.users as u full join user_sums as s on s.user_id = u.id
    where u.quota is distinct from coalesce(s.quota, 0)
    union all
    select 'users.used_quota', u.id::text, coalesce(s.used_quota, 0)::bigint, u.used_quota
    from billing.users as u left join user_sums as s on s.user_id = u.id
    where u.used_quota <> coalesce(s.used_quota, 0)
    union all
    select 'users.request_count', u.id::text, u.opening_requests + coalesce(s.requests, 0), u.request_count
    from billing.users as u left join user_sums as s on s.user_id = u.id
    where u.request_count <> u.opening_requests + coalesce(s.requests, 0)
    union all
    select 'users.quota below zero without a reason', u.id::text,
           -(coalesce(s.beyond_holds, 0) + coalesce(s.taken_away, 0) + forgotten.quota)::bigint, u.quota
    from billing.users as u left join user_sums as s on s.user_id = u.id
    -- Requests that were under way when Redis began a new life. If it came back older it has forgotten their
    -- holds and events, and others were granted the same quota; a worker that had read the events books them
    -- all the same. A hold lasts a day at most; the minute is for clocks that differ.
    cross join lateral (
        select coalesce(sum(least(e.quota, e.held_quota)), 0) as quota
        from billing.ledger_entries as e
        where e.user_id = u.id and e.kind = 'consume' and e.held_quota > 0 and exists (
            select from lives
            where e.entry_id >= billing.first_entry_id(lives.began - interval '25 hours')
              and e.entry_id < billing.first_entry_id(lives.began + interval '1 minute')
              and e.created_at >= lives.began - interval '1 minute')) as forgotten
    where u.quota < 0 and -u.quota > coalesce(s.beyond_holds, 0) + coalesce(s.taken_away, 0) + forgotten.quota
    union all
    select 'tokens.remain_quota', coalesce(t.id, s.token_id)::text, coalesce(s.quota, 0)::bigint, t.remain_quota
    from billing.tokens as t full join token_sums as s on s.token_id = t.id
    where t.remain_quota is distinct from coalesce(s.quota, 0)
    union all
    select 'tokens.used_quota', t.id::text, coalesce(s.used_quota, 0)::bigint, t.used_quota
    from billing.tokens as t left join token_sums as s on s.token_id = t.id
    where t.used_quota <> coalesce(s.used_quota, 0)
    union all
    select 'tokens.remain_quota below zero without a reason', t.id::text,
           -(coalesce(s.beyond_holds, 0) + coalesce(s.taken_away, 0) + others.quota)::bigint, t.remain_quota
    from billing.tokens as t left join token_sums as s on s.token_id = t.id
    -- As for users; and what was used or under way while the token had no limit.
    cross join lateral (
        select coalesce(sum(least(e.quota, e.held_quota)), 0) as quota
        from billing.ledger_entries as e
        where e.user_id = t.user_id and e.token_id = t.id and e.kind = 'consume' and e.held_quota > 0 and (
            e.created_at < t.unlimited_until + interval '25 hours' or exists (
                select from lives
                where e.entry_id >= billing.first_entry_id(lives.began - interval '25 hours')
                  and e.entry_id < billing.first_entry_id(lives.began + interval '1 minute')
                  and e.created_at >= lives.began - interval '1 minute'))) as others
    where t.remain_quota < 0 and not t.unlimited_quota
      and -t.remain_quota > coalesce(s.beyond_holds, 0) + coalesce(s.taken_away, 0) + others.quota
    union all
    select 'channel_used_quota', coalesce(c.channel_id, s.channel_id)::text,
           (coalesce(c.opening_quota, 0) + coalesce(s.used_quota, 0))::bigint, coalesce(c.used_quota, 0)::bigint
    from (select channel_id, sum(used_quota) as used_quota, sum(opening_quota) as opening_quota
          from billing.channel_usage group by channel_id) as c
    full join channel_sums as s on s.channel_id = c.channel_id
    where coalesce(c.used_quota, 0) <> coalesce(c.opening_quota, 0) + coalesce(s.used_quota, 0)
    union all
    select 'refunds above their charge', r.request_id::text, (coalesce(e.quota, 0) + coalesce(c.quota, 0))::bigint,
           r.quota::bigint
    from refund_sums as r
    left join correction_sums as c on c.request_id = r.request_id
    left join billing.ledger_entries as e on e.entry_id = r.request_id and e.kind = 'consume'
    where r.quota > coalesce(e.quota, 0) + coalesce(c.quota, 0)
    union all
    select 'a charge corrected below zero', c.request_id::text, coalesce(e.quota, 0), c.quota::bigint
    from correction_sums as c
    left join billing.ledger_entries as e on e.entry_id = c.request_id and e.kind = 'consume'
    where coalesce(e.quota, 0) + c.quota < 0
    union all
    select 'corrections without their entry', c.request_id::text, c.quota, coalesce(e.used_quota, 0)
    from billing.corrections as c
    left join billing.ledger_entries as e on e.entry_id = c.entry_id and e.kind = 'correction'
    where e.used_quota is distinct from c.quota or e.request_id is distinct from c.request_id
    union all
    select 'correction entries that billing.corrections does not know', e.entry_id::text, 1, 0
    from billing.ledger_entries as e
    where e.kind = 'correction' and not exists (select from billing.corrections as c where c.entry_id = e.entry_id)
    union all
    select 'refunds without their entry', r.refund_id, r.quota, coalesce(e.quota, 0)
    from billing.refunds as r
    left join billing.ledger_entries as e on e.entry_id = r.entry_id and e.kind = 'refund'
    where e.quota is distinct from r.quota or e.request_id is distinct from r.request_id
    union all
    select 'top_ups without their entry', p.id, p.quota, coalesce(e.user_quota + e.token_quota, 0)
    from billing.top_ups as p
    left join billing.ledger_entries as e on e.entry_id = p.entry_id and e.kind = p.kind
    where e.user_quota + e.token_quota is distinct from p.quota
    union all
    select 'refund entries that billing.refunds does not know', e.entry_id::text, 1, 0
    from billing.ledger_entries as e
    where e.kind = 'refund' and not exists (select from billing.refunds as r where r.entry_id = e.entry_id)
    union all
    -- Opening balances and edits by other programs have no id from outside, and no client_key.
    select 'entries that billing.top_ups does not know', e.entry_id::text, 1, 0
    from billing.ledger_entries as e
    where e.kind in ('topup', 'adjust') and e.client_key <> ''
      and not exists (select from billing.top_ups as p where p.entry_id = e.entry_id)
    union all
    select 'an entry that contradicts itself', e.entry_id::text, e.quota, e.used_quota
    from billing.ledger_entries as e
    where case e.kind
        when 'consume' then (e.user_quota, e.token_quota, e.used_quota) <> (-e.quota, -e.quota, e.quota)
        when 'refund' then (e.user_quota, e.token_quota, e.used_quota) <> (e.quota, e.quota, -e.quota)
        when 'correction' then abs(e.used_quota) <> e.quota
                               or (e.user_quota, e.token_quota) <> (-e.used_quota, -e.used_quota)
        when 'release' then (e.user_quota, e.token_quota, e.used_quota) <> (0, 0, 0)
        when 'topup' then e.user_quota <> e.quota
        else false end
    union all
    select 'versions above their sequence', 'billing.versions', billing.last_version(), highest.version
    from (select greatest((select max(version) from billing.users), (select max(version) from billing.tokens))
          as version) as highest
    where highest.version > billing.last_version()
    union all
    select 'a hold both consumed and released', c.request_id::text, 0, c.held_quota
    from billing.ledger_entries as r
    join billing.ledger_entries as c on c.entry_id = r.entry_id and c.kind = 'consume'
    where r.kind = 'release' and c.held_quota <> 0
$$;
