-- Which books these are: a name that travels with them, into a backup and out of it, and to a standby. Redis notes it,
-- and takes no other.
create table billing.installation (
    name     uuid        primary key default gen_random_uuid(),
    made_at  timestamptz not null default now(),
    only_one boolean     not null default true unique,
    constraint installation_is_one check (only_one)
);

-- billing.installation_name() -> uuid; made now if a program that empties all tables took it away
create function billing.installation_name() returns uuid
language plpgsql
as $$
begin
    if not exists (select from billing.installation) then
        insert into billing.installation default values on conflict do nothing;
    end if;
    return (select name from billing.installation);
end
$$;
select billing.installation_name();

-- billing.server_run() -> text, which run of a server holds these books: <installation>.<the run>
--
-- Another word after a restart, a failover, a restore into new tables: after each, what was read of an account before
-- may be newer than what PostgreSQL has now. What is cached is then loaded again. The run's word means nothing else.
create function billing.server_run() returns text
language sql stable parallel safe
as $$
    select coalesce((select name from billing.installation)::text, '') || '.' || (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint || '.'
        || 'billing.versions'::regclass::oid || '.' || pg_relation_filenode('billing.users') || '.'
        || pg_relation_filenode('billing.tokens')
$$;

-- billing.last_version() -> the highest version that an account was given in this run
create function billing.last_version() returns bigint
language sql volatile parallel safe
as $$
    select coalesce(pg_sequence_last_value('billing.versions'), 0)
$$;

-- billing.meet_redis(looks) -> boolean, true if these books are older than what Redis knows of them
--
--   looks   JSON array of {shard, epoch, settled, version}: of this epoch Redis removed the events up to number
--           `settled`, because they were booked; it has seen accounts up to `version`
--
-- Called when a worker or a gateway notices another run of the server, or accounts whose version lies behind. What
-- these books lost of what Redis saw booked becomes an incident; later versions are above all that Redis has seen, and
-- above all rows. Safe to repeat.
create function billing.meet_redis(p_looks text) returns boolean
language plpgsql
as $$
declare
    v_look    record;
    v_known   bigint := (select max((l ->> 'version')::bigint) from json_array_elements(p_looks::json) as l);
    v_behind  boolean := v_known > billing.last_version();
    v_missing int8multirange;
    v_note    constant text := 'PostgreSQL came back older than Redis knew it';
begin
    perform pg_advisory_xact_lock(hashtext('billing.meet_redis'));
    if v_behind then
        perform setval('billing.versions', greatest(
            v_known, (select max(version) from billing.users), (select max(version) from billing.tokens)) + 1);
    end if;
    for v_look in
        select * from json_to_recordset(p_looks::json) as l (shard integer, epoch bigint, settled bigint, version bigint)
        where epoch > 0 order by shard
    loop
        perform billing.move_cursor(v_look.shard, v_look.epoch, null, null, v_look.settled, 0);
        -- The batch whose answer brought us here may have met the gap first.
        update billing.incidents set kind = 'restored', note = v_note
        where shard = v_look.shard and of_epoch = v_look.epoch and kind = 'gap' and closed_at is null
          and to_seq <= v_look.settled and noticed_at > now() - interval '1 minute';
        v_behind := v_behind or found;
        continue when found;
        v_missing := billing.unaccounted(v_look.shard, v_look.epoch, v_look.settled);
        continue when isempty(v_missing) and not (v_behind and v_look.version = v_known);
        v_behind := true;
        insert into billing.incidents (
            shard, epoch, of_epoch, kind, from_seq, to_seq, lost, events_bound, note)
        select v_look.shard, v_look.epoch, v_look.epoch, 'restored',
               coalesce(lower(v_missing), v_look.settled + 1), coalesce(upper(v_missing) - 1, v_look.settled), v_missing,
               billing.numbers_in(v_missing), v_note
        -- Accounts that lie behind may have lost a top-up and no event: said once.
        where not isempty(v_missing) or not exists (
            select from billing.incidents where kind = 'restored' and noticed_at > now() - interval '1 minute');
    end loop;
    return coalesce(v_behind, false);
end
$$;
