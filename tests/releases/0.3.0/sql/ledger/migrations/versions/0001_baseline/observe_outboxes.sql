-- billing.observe_outboxes(looks, backlog_limit) -> void
--
-- What a watcher saw of the outboxes in Redis: how far each has come, and what the server still
-- had of the outbox before, if it was restarted, restored or promoted since.
--
--   looks          JSON array of {shard, epoch, seq, before_epoch, before_seq, open_holds}:
--                  the outbox has reached seq in epoch; when the epoch began, the server
--                  remembered before_epoch up to before_seq (null: it was empty)
--   backlog_limit  events that an outbox may hold, for the upper bound of a loss
--
-- The sooner before a loss the last look was, the tighter its bounds: that is why beat calls it every
-- few seconds. Safe to repeat; writes nothing if nothing has changed within a minute.
create or replace function billing.observe_outboxes(p_looks text, p_backlog_limit bigint) returns void
language plpgsql
as $$
declare
    v_look     record;
    v_previous billing.outbox_cursors;
    v_kind     text;
    v_kept     bigint;
    v_lost     bigint;
begin
    for v_look in
        select * from json_to_recordset(p_looks::json) as l (
            shard integer, epoch bigint, seq bigint, before_epoch bigint, before_seq bigint, open_holds bigint)
        where epoch > 0 order by shard
    loop
        perform billing.move_cursor(v_look.shard, v_look.epoch, null, null, v_look.seq, 0);
        update billing.outbox_cursors
        set looked_at = clock_timestamp(), open_holds = v_look.open_holds, backlog_limit = p_backlog_limit
        where shard = v_look.shard and epoch = v_look.epoch
          and (open_holds is distinct from v_look.open_holds or backlog_limit is distinct from p_backlog_limit
               or looked_at < clock_timestamp() - interval '1 minute');

        select * into v_previous from billing.outbox_cursors
        where shard = v_look.shard and epoch < v_look.epoch order by epoch desc limit 1;
        continue when not found;
        v_kept := case
            when v_look.before_epoch = v_previous.epoch then coalesce(v_look.before_seq, 0)
            -- A life in between that nobody looked at: it began with all of the one before, or said otherwise itself.
            when v_look.before_epoch > v_previous.epoch then v_previous.seen
            else 0 end;
        v_lost := greatest(v_previous.seen - greatest(v_previous.posted, v_kept), 0);
        v_kind := case when v_kept < v_previous.seen then 'rewind' else 'new_epoch' end;
        update billing.incidents
        set kind = v_kind,
            from_seq = v_kept + 1, to_seq = v_previous.seen, events_bound = v_lost,
            note = case
                when v_kept >= v_previous.seen then 'Redis came back with all that was known of it'
                when v_kept = 0 then 'Redis came back empty'
                else 'Redis came back with an older outbox' end || '; the epoch before was ' || v_previous.epoch
        where shard = v_look.shard and epoch = v_look.epoch
          and kind in ('new_epoch', 'rewind') and note like '%the epoch before was%'
          and (kind, from_seq, to_seq, events_bound)
              is distinct from (v_kind, v_kept + 1, v_previous.seen, v_lost);
    end loop;
end
$$;
