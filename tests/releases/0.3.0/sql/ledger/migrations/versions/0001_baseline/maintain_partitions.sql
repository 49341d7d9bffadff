-- billing.maintain_partitions() -> int, how many partitions it made
--
-- Makes sure that every month from 31 days back (the oldest request_id taken) to
-- three months ahead has its partition of ledger_entries. Months are UTC's.
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
