-- billing.post_batch_v2(outboxes, events) -> one row
--
-- Books many consumes and releases in one transaction, each at most once.
--
--   outboxes   JSON array of {shard, epoch, seqs}: which outboxes the events come from. `seqs` are the sequence
--              numbers that this call covers, as ranges [[first, last], ...]; epoch null: from no outbox, and no
--              cursor moves. The shard is also the row of channel_usage that counts its events.
--              when_booked true (release 0.2.0 says nothing): if one of the events is refused, no cursor moves; with
--              later true none does in any case. The caller keeps what was refused and then covers these numbers by a
--              call without events, so a number is never accounted for before its event is booked or kept. `server`
--              says then which run of the server (billing.server_run) booked them: another one, which may have been
--              restored to an earlier time since, moves no cursor
--   events     JSON array of events (billing_tasks/model/events.py), kinds consume and release only
--
-- Returns
--   outcomes   null if all were posted, else a JSON array with one word per event, in order:
--     posted         booked now
--     duplicate      booked before, or earlier in this batch, with the same body; also a release
--                    of a hold that a booked consume closed
--     conflict       booked before, or earlier in this batch, with another body
--     unknown_user   no such user
--     unknown_token  no such token, or another user's
--   users, tokens   JSON arrays of arrays: every account named, as it is now
--                   (columns in the order of model.account.UserRow and TokenRow)
--
-- A hold ends once in the books, even if it ended twice in Redis: an older file that was restored
-- brings holds back that were closed since. The end that was booked first stands; a consume whose
-- hold was released is booked as one without a hold (held_quota 0), which charges all the same.
--
-- Safe to repeat: what was booked answers `duplicate` and changes nothing. One event
-- that can't be stored (NUL, overflow, no partition, unknown kind) fails the whole
-- call with SQLSTATE 22xxx or 23514, and nothing is booked; the caller halves the batch.
--
-- Planned anew at every call (1 ms), because a session would keep its plans: one made while
-- a table or a new month was nearly empty reads it whole for every event once it is full.
-- Pinning a generic plan by switching off scans and joins was tried and is not enough: to the
-- planner all indexes of a tiny table cost the same, and it takes one that fits badly.
create or replace function billing.post_batch_v2(
    p_outboxes text, p_events text, out outcomes text, out users text, out tokens text)
language plpgsql
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_outboxes    json := p_outboxes::json;
    v_shards      integer[];
    v_outbox_of   jsonb;  -- by request id, of consumes; null if all are of one outbox
    v_events      billing.posting_event_v2[];
    v_kinds_known boolean;
    v_releases    boolean;
    v_user_ids    bigint[];
    v_token_ids   bigint[];
    v_consumed    uuid[];
    v_released    uuid[];
    v_used        uuid[];  -- holds that a booked consume closed
    v_unused      uuid[];  -- holds that a release closed, booked or in this batch
    v_booked      bigint;
    v_later       boolean;
    v_users       integer;
    v_tokens      integer;
begin
    -- The cache forgets what it was told is booked, so the commit must be on disk.
    -- Not a SET clause above: that would end with the function, before the commit.
    perform set_config('synchronous_commit', 'on', true);

    -- Nothing beside array_agg may sort here (a "distinct" would): the order of the events is their meaning.
    select array_agg(e), coalesce(bool_and((e).kind is not null and (e).kind in ('consume', 'release')), true),
           bool_or((e).kind = 'release')
    into v_events, v_kinds_known, v_releases
    from json_populate_recordset(null::billing.posting_event_v2, p_events::json) as e;
    -- Said without a query for the usual case: in a small batch planning costs more than running.
    if json_array_length(v_outboxes) = 1 then
        v_shards := array[(v_outboxes #>> '{0,shard}')::integer];
    else
        v_shards := array(select (o ->> 'shard')::integer from json_array_elements(v_outboxes) as o);
        -- Of one key the last value stays: the first event of the batch is the one that is booked.
        v_outbox_of := (
            select jsonb_object_agg(e.request_id, e.outbox order by e.ordinality desc)
            from unnest(v_events) with ordinality as e where e.kind = 'consume');
    end if;
    select coalesce(array_agg(distinct e.user_id), '{}'), coalesce(array_agg(distinct e.token_id), '{}')
    into v_user_ids, v_token_ids
    from unnest(v_events) as e;
    if not v_kinds_known then
        raise exception 'post_batch_v2 books consume and release only' using errcode = 'invalid_parameter_value';
    end if;

    -- In id order, users first, so that two batches never wait for each other in a circle. In
    -- statements of their own: the next statement's snapshot is newer than what these waited for.
    perform from billing.users where id = any (v_user_ids) order by id for no key update;
    perform from billing.tokens where id = any (v_token_ids) order by id for no key update;

    -- One statement for both: in a small batch planning costs more than running.
    select coalesce(array_agg(entry_id) filter (where kind = 'consume' and held_quota <> 0), '{}'),
           coalesce(array_agg(entry_id) filter (where kind = 'release'), '{}')
    into v_used, v_unused
    from billing.ledger_entries
    where entry_id = any (array(
        select e.request_id from unnest(v_events) as e where e.kind = 'release' or e.held_quota > 0));
    if v_releases then
        v_unused := v_unused || array(select e.request_id from unnest(v_events) as e where e.kind = 'release');
    end if;

    with entry as (
        insert into billing.ledger_entries (
            entry_id, kind, request_id, user_id, token_id, channel_id, quota, held_quota,
            user_quota, token_quota, used_quota, prompt_tokens, completion_tokens,
            model_name, token_name, group_name, content, client_key,
            model_ratio, completion_ratio, group_ratio, price_version, cost,
            pre_consumed_quota, elapsed_ms, is_stream, expired, used_at, usage, price, details, fingerprint)
        select e.request_id, e.kind, e.request_id, e.user_id, e.token_id, nullif(e.channel_id, 0),
               coalesce(e.quota, 0),
               case when e.request_id = any (v_unused) then 0 else coalesce(e.held_quota, 0) end,
               -charge.quota, -charge.quota, charge.quota,
               coalesce(e.prompt_tokens, 0), coalesce(e.completion_tokens, 0),
               coalesce(e.model_name, ''), coalesce(e.token_name, ''), coalesce(e."group", ''),
               coalesce(e.content, ''), coalesce(e.client_key, ''),
               coalesce(e.model_ratio, ''), coalesce(e.completion_ratio, ''), coalesce(e.group_ratio, ''),
               e.price_version, e.cost,
               coalesce(e.pre_consumed_quota, 0), coalesce(e.elapsed_ms, 0),
               coalesce(e.is_stream, false), coalesce(e.expired, false), billing.moment(e.used_at_ms),
               e.usage, e.price, e.details, decode(e.fingerprint, 'hex')
        from unnest(v_events) with ordinality as e
        cross join lateral (select case e.kind when 'consume' then coalesce(e.quota, 0) else 0 end) as charge (quota)
        -- A token refers to its user, so a token of this user proves the user, too.
        where e.user_id = (select t.user_id from billing.tokens as t where t.id = e.token_id)
          and (e.kind = 'consume' or e.request_id <> all (v_used))
        -- Ids in order keep the index warm; among equal ids the first event of the batch wins.
        order by e.request_id, e.ordinality
        on conflict do nothing
        returning entry_id, kind, user_id, token_id, channel_id, used_quota
    ), user_change as (
        -- Sums come from `entry` only: the rows this call inserted.
        update billing.users as u
        set quota = u.quota - change.quota, used_quota = u.used_quota + change.quota,
            request_count = u.request_count + change.requests, version = nextval('billing.versions')
        from (select user_id, sum(used_quota)::bigint as quota, count(*) as requests
              from entry where kind = 'consume' group by user_id) as change
        where u.id = change.user_id
        returning u.*
    ), token_change as (
        update billing.tokens as t
        set remain_quota = t.remain_quota - change.quota, used_quota = t.used_quota + change.quota,
            version = nextval('billing.versions')
        from (select token_id, sum(used_quota)::bigint as quota
              from entry where kind = 'consume' group by token_id) as change
        where t.id = change.token_id
        returning t.*
    ), channel_change as (
        insert into billing.channel_usage as c (channel_id, shard, used_quota)
        select channel_id, coalesce(v_shards[1 + (v_outbox_of ->> entry_id::text)::integer], v_shards[1]) as shard,
               sum(used_quota)::bigint
        from entry where kind = 'consume' and channel_id is not null group by 1, 2 order by 1, 2
        on conflict (channel_id, shard) do update set used_quota = c.used_quota + excluded.used_quota
    )
    select booked.*, changed_users.*, changed_tokens.*
    into v_booked, v_consumed, v_released, v_users, users, v_tokens, tokens
    from (select count(*), array_agg(entry_id) filter (where kind = 'consume'),
                 array_agg(entry_id) filter (where kind = 'release') from entry) as booked,
         (select count(*), json_agg(billing.user_row(u)) from user_change as u) as changed_users,
         (select count(*), json_agg(billing.token_row(t)) from token_change as t) as changed_tokens;

    if v_booked <> cardinality(v_events) then
        -- A statement of its own: it sees what other batches committed while we waited for their locks.
        outcomes := (
            select json_agg(case
                when not event.user_known then 'unknown_user'
                when not event.token_known then 'unknown_token'
                when event.turn = 1 and event.request_id = any (
                    case event.kind when 'consume' then v_consumed else v_released end) then 'posted'
                when (select billing.is_same_body(entry, v_events[event.ordinality])
                      from billing.ledger_entries as entry
                      where entry.entry_id = event.request_id and entry.kind = event.kind) then 'duplicate'
                when event.kind = 'release' and event.request_id = any (v_used) then 'duplicate'
                else 'conflict' end order by event.ordinality)
            from (
                select known.*, row_number() over (
                           partition by request_id, kind, token_known order by ordinality) as turn
                from (
                    select e.request_id, e.kind, e.ordinality,
                           (select u.id from billing.users as u where u.id = e.user_id) is not null as user_known,
                           coalesce(e.user_id = (select t.user_id from billing.tokens as t where t.id = e.token_id),
                                    false) as token_known
                    from unnest(v_events) with ordinality as e) as known) as event);
    end if;

    -- Duplicates and releases change no account, but their callers need the rows, too.
    if v_users is distinct from cardinality(v_user_ids) then
        users := (select json_agg(billing.user_row(u)) from billing.users as u where u.id = any (v_user_ids));
    end if;
    if v_tokens is distinct from cardinality(v_token_ids) then
        tokens := (select json_agg(billing.token_row(t)) from billing.tokens as t where t.id = any (v_token_ids));
    end if;

    v_later := case
        when v_outboxes #>> '{0,server}' is not null then v_outboxes #>> '{0,server}' <> billing.server_run()
        when outcomes ~ '"(conflict|unknown_user|unknown_token)"' then (v_outboxes #>> '{0,when_booked}')::boolean
        else (v_outboxes #>> '{0,later}')::boolean end;
    -- Said without a query for the usual case, likewise.
    if cardinality(v_shards) = 1 and json_array_length(v_outboxes #> '{0,seqs}') <= 1 then
        if v_outboxes #>> '{0,epoch}' is not null and json_array_length(v_outboxes #> '{0,seqs}') = 1 then
            perform billing.cover(
                v_shards[1], (v_outboxes #>> '{0,epoch}')::bigint, (v_outboxes #>> '{0,seqs,0,0}')::bigint,
                (v_outboxes #>> '{0,seqs,0,1}')::bigint, v_booked, v_later);
        end if;
        return;
    end if;
    -- Range by range: what lies between two of them never came, which is a gap. What was booked now counts for the last
    -- ranges: after a crash the first may be of a batch that was booked and half removed, which is no rewind.
    perform billing.cover(
        part.shard, part.epoch, part.first, part.last,
        greatest(least(part.booked - part.behind, part.last - part.first + 1), 0), v_later)
    from (
        select (o.value ->> 'shard')::integer as shard, (o.value ->> 'epoch')::bigint as epoch, seqs.ordinality as number,
               (seqs.value ->> 0)::bigint as first, (seqs.value ->> 1)::bigint as last,
               coalesce(booked.events, 0) as booked,
               coalesce(sum((seqs.value ->> 1)::bigint - (seqs.value ->> 0)::bigint + 1) over (
                   partition by o.ordinality order by seqs.ordinality
                   rows between 1 following and unbounded following), 0)::bigint as behind
        from json_array_elements(v_outboxes) with ordinality as o
        cross join lateral json_array_elements(o.value -> 'seqs') with ordinality as seqs
        left join (
            select origin.outbox, count(*) as events
            from (
                select distinct on (e.kind, e.request_id) e.kind, e.request_id, coalesce(e.outbox, 0) as outbox
                from unnest(v_events) with ordinality as e
                order by e.kind, e.request_id, e.ordinality) as origin
            where origin.request_id = any (case origin.kind when 'consume' then v_consumed else v_released end)
            group by origin.outbox) as booked on booked.outbox = o.ordinality - 1
        where o.value ->> 'epoch' is not null) as part
    order by part.shard, part.number;
end
$$;
