-- Each number that an outbox gave out is accounted for once: by the batch that posted it or set it aside, or by the
-- incident that says it is gone. What Redis remembers of its own numbering explains nothing.
alter table billing.outbox_cursors
    add column accounted    int8multirange not null default '{}',  -- the numbers that were posted or set aside
    add column current_from timestamptz,  -- when this was first known to be the epoch in which Redis numbers; null: never
    add column ended_at     timestamptz,  -- when another epoch had taken its place; null: it has not ended
    add column first_seen   timestamptz not null default clock_timestamp();

alter table billing.incidents
    add column of_epoch  bigint,                               -- whose numbers from_seq to to_seq are; null: of `epoch`
    add column lost      int8multirange not null default '{}', -- numbers that nothing else accounts for
    add column closed_at timestamptz,                          -- a person has seen to it; null: open
    add column closed_by text not null default '',
    add column comment   text not null default '',             -- in that person's words
    drop constraint incidents_kind_is_known,
    add constraint incidents_kind_is_known check (kind in ('gap', 'rewind', 'new_epoch', 'restored'));
create index incidents_with_loss on billing.incidents (shard, coalesce(of_epoch, epoch)) where lost <> '{}';

-- What the releases before knew: all up to `posted` was accounted for, and what their incidents named was not.
update billing.outbox_cursors as c
set accounted = case when posted > 0 then int8multirange(int8range(1, posted, '[]')) else '{}' end,
    current_from = updated_at,
    ended_at = case when exists (
        select from billing.outbox_cursors as o where o.shard = c.shard and o.epoch > c.epoch) then now() end;
update billing.incidents as i
set of_epoch = coalesce(substring(note from 'the epoch before was (\d+)')::bigint, epoch),
    lost = case when kind = 'gap' or events_bound > 0 and note like '%the epoch before was%'
                then int8multirange(int8range(greatest(from_seq, to_seq - events_bound + 1), to_seq, '[]'))
                else '{}' end;

-- billing.numbers(first, last) -> the numbers from first to last; none if last lies before first
create function billing.numbers(p_first bigint, p_last bigint) returns int8multirange
language sql immutable parallel safe
as $$
    select case when p_first <= p_last then int8multirange(int8range(p_first, p_last, '[]')) else '{}' end
$$;

-- billing.numbers_in(int8multirange) -> how many numbers it holds
create function billing.numbers_in(p_numbers int8multirange) returns bigint
language sql immutable parallel safe
as $$
    select coalesce(sum(upper(part) - lower(part)), 0)::bigint from unnest(p_numbers) as part
$$;

-- billing.unaccounted(shard, epoch, up_to) -> the numbers from 1 to up_to that neither a posting nor an incident accounts for
create function billing.unaccounted(p_shard integer, p_epoch bigint, p_up_to bigint) returns int8multirange
language sql stable
as $$
    select billing.numbers(1, p_up_to)
        - coalesce((select accounted from billing.outbox_cursors where shard = p_shard and epoch = p_epoch), '{}')
        - coalesce((select range_agg(lost) from billing.incidents
                    where shard = p_shard and coalesce(of_epoch, epoch) = p_epoch and lost <> '{}'), '{}')
$$;

-- billing.note_gap(shard, epoch, missing) -> void: one incident for these numbers; nothing if there are none
create function billing.note_gap(p_shard integer, p_epoch bigint, p_missing int8multirange, p_note text default '')
returns void
language sql
as $$
    insert into billing.incidents (
        shard, epoch, of_epoch, kind, from_seq, to_seq, lost, events_bound, events_at_most, note)
    select p_shard, p_epoch, p_epoch, 'gap', lower(p_missing), upper(p_missing) - 1, p_missing,
           billing.numbers_in(p_missing), billing.numbers_in(p_missing), p_note
    where not isempty(p_missing)
$$;

-- billing.begin_epoch(shard, epoch) -> void: Redis numbers in this epoch from now on
--
-- The epoch before ends, with an incident that says so. How much of it is gone only a look at the outbox tells:
-- observe_outboxes sets the incident right.
create function billing.begin_epoch(p_shard integer, p_epoch bigint) returns void
language plpgsql
as $$
declare
    v_previous billing.outbox_cursors;
    v_missing  int8multirange;
begin
    select * into v_previous from billing.outbox_cursors
    where shard = p_shard and epoch <> p_epoch and current_from is not null and ended_at is null;
    update billing.outbox_cursors set ended_at = clock_timestamp()
    where shard = p_shard and epoch <> p_epoch and ended_at is null;
    update billing.outbox_cursors set current_from = clock_timestamp(), ended_at = null
    where shard = p_shard and epoch = p_epoch;
    -- Until then all of it that is not accounted for may be gone.
    v_missing := billing.unaccounted(p_shard, v_previous.epoch, v_previous.seen);
    insert into billing.incidents (
        shard, epoch, of_epoch, kind, from_seq, to_seq, lost, events_bound, events_at_most, unseen_from, unseen_to, note)
    select p_shard, p_epoch, v_previous.epoch, 'new_epoch', v_previous.posted + 1, v_previous.seen,
           v_missing, billing.numbers_in(v_missing), v_previous.backlog_limit + v_previous.open_holds,
           greatest(v_previous.updated_at, v_previous.looked_at),
           -- An epoch is the server's clock in microseconds, or one more than the last.
           greatest(to_timestamp(p_epoch / 1000000.0), v_previous.updated_at, v_previous.looked_at),
           'the epoch before was ' || v_previous.epoch
    where v_previous.epoch is not null;
end
$$;

-- billing.note_rewind(shard, epoch, first_seq, last_seq, newly_posted) -> void
--
-- An incident if events were new at numbers that are all accounted for. Called in the transaction that books them: a
-- drainer behind it meets duplicates, and accounts for the numbers only then.
create function billing.note_rewind(
    p_shard integer, p_epoch bigint, p_first_seq bigint, p_last_seq bigint, p_newly_posted bigint)
returns void
language sql
as $$
    insert into billing.incidents (shard, epoch, of_epoch, kind, from_seq, to_seq, events_bound)
    select p_shard, p_epoch, p_epoch, 'rewind', p_first_seq, p_last_seq, p_newly_posted
    where p_newly_posted > 0 and exists (
        select from billing.outbox_cursors
        where shard = p_shard and epoch = p_epoch and billing.numbers(p_first_seq, p_last_seq) <@ accounted)
$$;

-- billing.is_current(cursor) -> whether Redis numbers in this epoch, which a look has just told for the first time
--
-- Numbers of epochs grow. A lower one than today's is of a look that is told late, unless today's came from a clock that
-- had run ahead: it lies in the future, or no look has told of it since this one was first seen, for longer than a living
-- epoch stays without a note (a minute).
create function billing.is_current(p_cursor billing.outbox_cursors) returns boolean
language sql stable
as $$
    select not exists (
        select from billing.outbox_cursors as c
        where c.shard = p_cursor.shard and c.epoch > p_cursor.epoch and c.current_from is not null and c.ended_at is null
          and c.epoch < extract(epoch from clock_timestamp() + interval '1 hour') * 1000000
          and not (p_cursor.first_seen < clock_timestamp() - interval '90 seconds'
                   and coalesce(c.looked_at, c.current_from) < p_cursor.first_seen))
$$;

-- billing.move_cursor(shard, epoch, first_seq, last_seq, seen, newly_posted) -> void
--
-- Notes which numbers of a shard's outbox were posted. Called by post_batch in its transaction, range by range, and
-- alone for what a watcher sees (first_seq and last_seq null) or for events set aside as dead letters (newly_posted 0).
--
-- Detects, never decides: nothing is ever skipped because of it, and what looks like loss becomes an incident:
--   new_epoch  the outbox began anew: events of the last epoch may be lost. observe_outboxes, which
--              sees what the server still has of the old outbox, corrects it.
--   gap        numbers below first_seq that nothing accounts for: an outbox is read from its oldest event on, so they
--              never came
--   rewind     events came that were new, at numbers that had been posted before; or
--              (by observe_outboxes) the server came back with an older outbox
create or replace function billing.move_cursor(
    p_shard integer, p_epoch bigint, p_first_seq bigint, p_last_seq bigint, p_seen bigint, p_newly_posted bigint)
returns void
language plpgsql
as $$
declare
    v_cursor  billing.outbox_cursors;
    v_seen    bigint := greatest(p_last_seq, p_seen, 0);
    v_numbers int8multirange := billing.numbers(p_first_seq, p_last_seq);
begin
    insert into billing.outbox_cursors (shard, epoch, seen, posted)
    values (p_shard, p_epoch, v_seen, 0) on conflict do nothing;
    -- Leftovers of an old epoch that are first read now are no news: a younger epoch is known. One that is not younger
    -- only by its number (the clock had run ahead) is begun by the next look.
    if found and not exists (select from billing.outbox_cursors where shard = p_shard and epoch > p_epoch) then
        perform billing.begin_epoch(p_shard, p_epoch);
    end if;

    select * into v_cursor from billing.outbox_cursors
    where shard = p_shard and epoch = p_epoch for no key update;
    if not isempty(v_numbers) and v_numbers <@ v_cursor.accounted then
        perform billing.note_rewind(p_shard, p_epoch, p_first_seq, p_last_seq, p_newly_posted);
    elsif not billing.numbers(1, p_first_seq - 1) <@ v_cursor.accounted then
        perform billing.note_gap(p_shard, p_epoch, billing.unaccounted(p_shard, p_epoch, p_first_seq - 1));
    end if;

    update billing.outbox_cursors
    set seen = greatest(seen, v_seen), posted = greatest(posted, p_last_seq), updated_at = clock_timestamp(),
        accounted = accounted + v_numbers
    where shard = p_shard and epoch = p_epoch
      and (v_seen > seen or p_last_seq > posted or not v_numbers <@ accounted);
end
$$;

-- billing.cover(shard, epoch, first_seq, last_seq, newly_posted, later) -> void
--
-- What post_batch_v2 says of the numbers of its events. later: they are accounted for by another call.
create function billing.cover(
    p_shard integer, p_epoch bigint, p_first_seq bigint, p_last_seq bigint, p_newly_posted bigint, p_later boolean)
returns void
language plpgsql
as $$
begin
    if p_later then
        perform billing.note_rewind(p_shard, p_epoch, p_first_seq, p_last_seq, p_newly_posted);
    else
        perform billing.move_cursor(p_shard, p_epoch, p_first_seq, p_last_seq, null, p_newly_posted);
    end if;
end
$$;

-- billing.observe_outboxes(looks, backlog_limit) -> void
--
-- What a watcher saw of the outboxes in Redis: how far each has come, where it begins, and what the server still
-- had of the outbox before, if it was restarted, restored or promoted since.
--
--   looks          JSON array of {shard, epoch, seq, before_epoch, before_seq, open_holds, oldest}:
--                  the outbox has reached seq in epoch; when the epoch began, the server
--                  remembered before_epoch up to before_seq (null: it was empty). oldest: [epoch, seq] of the first
--                  event in the outbox, looked at after seq; [] if there is none; left out by release 0.2.0
--   backlog_limit  events that an outbox may hold, for the upper bound of a loss
--
-- An event is posted before it leaves the outbox. So a number below the oldest event that nothing accounts for is gone,
-- whatever took it: a file restored, a key deleted, an epoch that began meanwhile.
--
-- The sooner before a loss the last look was, the tighter its bounds: that is why beat calls it every
-- few seconds. Safe to repeat; writes nothing if nothing has changed within a minute.
create or replace function billing.observe_outboxes(p_looks text, p_backlog_limit bigint) returns void
language plpgsql
as $$
declare
    v_look   record;
    v_cursor billing.outbox_cursors;
begin
    for v_look in
        select * from json_to_recordset(p_looks::json) as l (
            shard integer, epoch bigint, seq bigint, before_epoch bigint, before_seq bigint, open_holds bigint,
            oldest bigint[])
        where epoch > 0 order by shard
    loop
        perform billing.move_cursor(v_look.shard, v_look.epoch, null, null, v_look.seq, 0);
        select * into v_cursor from billing.outbox_cursors where shard = v_look.shard and epoch = v_look.epoch;
        if v_cursor.current_from is null then
            continue when not billing.is_current(v_cursor);
            perform billing.begin_epoch(v_look.shard, v_look.epoch);
        end if;
        continue when v_cursor.ended_at is not null and v_cursor.current_from is not null;  -- an old look that came late
        update billing.outbox_cursors
        set looked_at = clock_timestamp(), open_holds = v_look.open_holds, backlog_limit = p_backlog_limit
        where shard = v_look.shard and epoch = v_look.epoch
          and (open_holds is distinct from v_look.open_holds or backlog_limit is distinct from p_backlog_limit
               or looked_at < clock_timestamp() - interval '1 minute');
        perform billing.judge_restart(
            v_look.shard, v_look.epoch, v_look.before_epoch, v_look.before_seq, v_look.oldest);
        -- What was posted after all: a worker had read it before it was gone.
        update billing.incidents as i
        set lost = i.lost - c.accounted, events_bound = billing.numbers_in(i.lost - c.accounted)
        from billing.outbox_cursors as c
        where i.shard = v_look.shard and i.lost <> '{}'
          and c.shard = i.shard and c.epoch = coalesce(i.of_epoch, i.epoch) and i.lost && c.accounted;
        -- A look knows of no number above its own: one that is told late saw an outbox that has grown since.
        perform billing.note_gap(c.shard, c.epoch, billing.unaccounted(c.shard, c.epoch, c.seen)
            * billing.gone(
                c.epoch, case when c.epoch = v_look.epoch then least(c.seen, v_look.seq) else c.seen end,
                v_look.epoch, v_look.oldest))
        from billing.outbox_cursors as c
        where c.shard = v_look.shard and v_look.oldest is not null and not billing.numbers(1, c.seen) <@ c.accounted;
    end loop;
end
$$;

-- billing.gone(epoch, seen, current_epoch, oldest) -> the numbers of an epoch that are not in the outbox any more
--
--   oldest   [epoch, seq] of its first event; [] if it is empty
create function billing.gone(p_epoch bigint, p_seen bigint, p_current_epoch bigint, p_oldest bigint[])
returns int8multirange
language sql immutable parallel safe
as $$
    select case
        -- Ids of a stream only grow: an epoch that ended and has a higher number than today's was of a stream that is gone.
        when cardinality(p_oldest) = 0 or p_epoch < p_oldest[1] or p_epoch > p_current_epoch
            then billing.numbers(1, p_seen)
        when p_epoch = p_oldest[1] then billing.numbers(1, p_oldest[2] - 1)
        else '{}' end
$$;

-- billing.judge_restart(shard, epoch, before_epoch, before_seq, oldest) -> void
--
-- Sets the incident right with which this epoch began; the arguments are those of a look.
create function billing.judge_restart(
    p_shard integer, p_epoch bigint, p_before_epoch bigint, p_before_seq bigint, p_oldest bigint[]) returns void
language plpgsql
as $$
declare
    v_incident billing.incidents;
    v_previous billing.outbox_cursors;
    v_kept     bigint;
    v_lost     int8multirange;
    v_kind     text;
begin
    select * into v_incident from billing.incidents
    where shard = p_shard and epoch = p_epoch and kind in ('new_epoch', 'rewind')
      and note like '%the epoch before was%' and closed_at is null
    order by id desc limit 1;
    if not found then
        return;
    end if;
    select * into v_previous from billing.outbox_cursors where shard = p_shard and epoch = v_incident.of_epoch;
    v_kept := case
        when p_before_epoch = v_previous.epoch then coalesce(p_before_seq, 0)
        -- A life in between that nobody looked at: it began with all of the one before, or said otherwise itself.
        when p_before_epoch > v_previous.epoch then v_previous.seen
        else 0 end;
    v_lost := (v_incident.lost + billing.unaccounted(p_shard, v_previous.epoch, v_previous.seen))
              * billing.numbers(v_kept + 1, v_previous.seen) - v_previous.accounted;
    v_kind := case when v_kept < v_previous.seen then 'rewind' else 'new_epoch' end;
    update billing.incidents
    set kind = v_kind,
        from_seq = v_kept + 1, to_seq = v_previous.seen, lost = v_lost, events_bound = billing.numbers_in(v_lost),
        note = case
            when v_kept >= v_previous.seen then 'Redis came back with all that was known of it'
            when v_kept = 0 and coalesce(nullif(p_before_epoch, 0), v_previous.epoch) = v_previous.epoch
                then 'Redis came back empty'
            else 'Redis came back with an older outbox' end || '; the epoch before was ' || v_previous.epoch
    where id = v_incident.id
      and (kind, from_seq, to_seq, lost, events_bound)
          is distinct from (v_kind, v_kept + 1, v_previous.seen, v_lost, billing.numbers_in(v_lost));
end
$$;
