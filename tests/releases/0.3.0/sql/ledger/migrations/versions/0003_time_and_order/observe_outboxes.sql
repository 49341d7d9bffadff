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
