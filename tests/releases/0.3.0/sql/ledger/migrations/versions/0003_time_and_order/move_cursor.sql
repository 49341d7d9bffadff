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
