-- billing.move_cursor(shard, epoch, first_seq, last_seq, seen, newly_posted) -> void
--
-- Notes how far a shard's outbox was read. Called by post_batch in its transaction,
-- and alone for what a watcher sees (first_seq and last_seq null) or for events set
-- aside as dead letters (newly_posted 0).
--
-- Detects, never decides: the numbers only grow (GREATEST), nothing is ever skipped
-- because of them, and what looks like loss becomes one row in incidents:
--   new_epoch  the outbox began anew: events of the last epoch between posted and
--              seen may be lost; events_bound is their number. observe_outboxes, which
--              knows how much of the old outbox the server still had, corrects it.
--   gap        first_seq is above the next one expected: from_seq..to_seq never came
--   rewind     events came that were new, at numbers that had been posted before; or
--              (by observe_outboxes) the server came back with an older outbox
create or replace function billing.move_cursor(
    p_shard integer, p_epoch bigint, p_first_seq bigint, p_last_seq bigint, p_seen bigint, p_newly_posted bigint)
returns void
language plpgsql
as $$
declare
    v_cursor   billing.outbox_cursors;
    v_previous billing.outbox_cursors;
    v_seen     bigint := greatest(p_last_seq, p_seen, 0);
begin
    insert into billing.outbox_cursors (shard, epoch, seen, posted)
    values (p_shard, p_epoch, v_seen, 0) on conflict do nothing;
    if found then
        select * into v_previous from billing.outbox_cursors
        where shard = p_shard and epoch < p_epoch order by epoch desc limit 1;
        -- Leftovers of an old epoch that are first read now are no news: a younger cursor exists.
        if found and not exists (
            select from billing.outbox_cursors where shard = p_shard and epoch > p_epoch)
        then
            insert into billing.incidents (
                shard, epoch, kind, from_seq, to_seq, events_bound, events_at_most, unseen_from, unseen_to, note)
            values (p_shard, p_epoch, 'new_epoch', v_previous.posted + 1, v_previous.seen,
                    v_previous.seen - v_previous.posted, v_previous.backlog_limit + v_previous.open_holds,
                    greatest(v_previous.updated_at, v_previous.looked_at),
                    -- An epoch is the server's clock in microseconds, or one more than the last.
                    greatest(to_timestamp(p_epoch / 1000000.0), v_previous.updated_at, v_previous.looked_at),
                    'the epoch before was ' || v_previous.epoch);
        end if;
    end if;

    select * into v_cursor from billing.outbox_cursors
    where shard = p_shard and epoch = p_epoch for no key update;
    if p_first_seq > v_cursor.posted + 1 then
        insert into billing.incidents (shard, epoch, kind, from_seq, to_seq, events_bound, events_at_most)
        values (p_shard, p_epoch, 'gap', v_cursor.posted + 1, p_first_seq - 1, p_first_seq - 1 - v_cursor.posted,
                p_first_seq - 1 - v_cursor.posted);
    elsif p_last_seq <= v_cursor.posted and p_newly_posted > 0 then
        insert into billing.incidents (shard, epoch, kind, from_seq, to_seq, events_bound)
        values (p_shard, p_epoch, 'rewind', p_first_seq, p_last_seq, p_newly_posted);
    end if;

    update billing.outbox_cursors
    set seen = greatest(seen, v_seen), posted = greatest(posted, p_last_seq), updated_at = clock_timestamp()
    where shard = p_shard and epoch = p_epoch
      and (v_seen > seen or p_last_seq > posted);
end
$$;
