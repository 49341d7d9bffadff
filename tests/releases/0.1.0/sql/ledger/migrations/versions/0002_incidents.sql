-- Incidents say between which moments, and at most how many events, may be missing. Revision 0002.

alter table billing.outbox_cursors
    add column looked_at     timestamptz not null default now(),  -- last look, whether or not something had changed
    add column open_holds    bigint,                              -- at the last look; null: never looked
    add column backlog_limit bigint;                              -- likewise: what the outbox could grow to

alter table billing.incidents
    add column events_at_most bigint,       -- everything the shard could have held; null: not known
    add column unseen_from    timestamptz,  -- what was filed between these two moments, nobody had seen
    add column unseen_to      timestamptz;
