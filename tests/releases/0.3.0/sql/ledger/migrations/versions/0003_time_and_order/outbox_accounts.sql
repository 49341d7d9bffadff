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
