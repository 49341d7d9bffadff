-- pg_temp.entry_id(ms, seed) -> uuid of version 7. From a hash: randomness from the operating system takes a
-- multiple of the time that the row itself does.
create or replace function pg_temp.entry_id(ms bigint, seed text) returns uuid
language sql immutable
as $$
    select (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(seed), 1, 3) || '8' || substr(md5(seed), 4, 15))::uuid
$$
