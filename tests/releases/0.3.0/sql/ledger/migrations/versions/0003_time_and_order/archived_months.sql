-- Months of the ledger that were archived: their partition is detached, and nothing is booked in them any more, or a
-- request that was charged there could be charged again.
create table billing.archived_months (
    month       date        primary key,  -- its first day, UTC
    archived_at timestamptz not null default now(),
    note        text        not null default ''
);

-- billing.is_archived(request_id) -> boolean, true if the month of this id takes no entries any more
--
-- It was noted as archived; or it is over and its partition is detached; or it has none, and is older than what maintain_partitions
-- would make: then it is of before this ledger began.
create function billing.is_archived(p_request_id uuid) returns boolean
language plpgsql stable
as $$
declare
    v_hex   text := replace(p_request_id::text, '-', '');
    v_month timestamp := date_trunc('month', timestamp 'epoch'
                                    + ('x' || lpad(left(v_hex, 12), 16, '0'))::bit(64)::bigint * interval '1 millisecond');
    v_table regclass;
begin
    if exists (select from billing.archived_months where month = v_month::date) then
        return true;
    end if;
    v_table := to_regclass('billing.ledger_entries_' || to_char(v_month, 'YYYY_MM'));
    if v_table is null then
        return v_month + interval '1 month' <= (now() - interval '31 days') at time zone 'UTC';
    end if;
    return v_month < date_trunc('month', now() at time zone 'UTC') and not exists (
        select from pg_inherits where inhrelid = v_table and inhparent = 'billing.ledger_entries'::regclass);
end
$$;

-- billing.maintain_partitions() -> int, how many partitions it made
--
-- Makes sure that every month from 31 days back (the oldest request_id that quota is reserved for) to
-- three months ahead has its partition of ledger_entries, but for those that are archived. Months are UTC's.
--
-- Safe to repeat and to run from several workers at once: they queue for an
-- advisory lock. A partition is made as a table of its own and then attached,
-- because PARTITION OF would stop all posting while it waits for its lock; the
-- check constraint spares the attaching a scan and is dropped after it.
create or replace function billing.maintain_partitions() returns integer
language plpgsql
set lock_timeout = '3s'
as $$
declare
    v_made  integer := 0;
    v_month timestamptz;
    v_name  text;
    v_from  uuid;
    v_to    uuid;
begin
    perform pg_advisory_xact_lock(hashtext('billing.maintain_partitions'));
    for v_month in
        select m at time zone 'UTC'
        from generate_series(
            date_trunc('month', (now() - interval '31 days') at time zone 'UTC'),
            date_trunc('month', now() at time zone 'UTC') + interval '3 months',
            interval '1 month') as m
        where not exists (select from billing.archived_months where month = m::date)
    loop
        v_name := 'ledger_entries_' || to_char(v_month at time zone 'UTC', 'YYYY_MM');
        continue when to_regclass('billing.' || v_name) is not null;
        v_from := billing.first_entry_id(v_month);
        v_to := billing.first_entry_id((v_month at time zone 'UTC' + interval '1 month') at time zone 'UTC');
        execute format(
            'create table billing.%1$I (like billing.ledger_entries including all,
                 constraint attach_without_scan check (entry_id >= %2$L and entry_id < %3$L))',
            v_name, v_from, v_to);
        execute format(
            'alter table billing.ledger_entries attach partition billing.%I for values from (%L) to (%L)',
            v_name, v_from, v_to);
        execute format('alter table billing.%I drop constraint attach_without_scan', v_name);
        execute format(
            'create trigger entries_are_never_truncated before truncate on billing.%I
                 for each statement execute function billing.refuse(''entries are never changed; book another one'')',
            v_name);
        v_made := v_made + 1;
    end loop;
    return v_made;
end
$$;
