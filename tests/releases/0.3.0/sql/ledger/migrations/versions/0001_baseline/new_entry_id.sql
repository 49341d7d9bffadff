-- billing.new_entry_id() -> uuid
--
-- A fresh UUIDv7 by this server's clock, for entries that are not a request:
-- top-ups, adjusts, refunds. Written out because uuidv7() came with PostgreSQL 18.
--
-- A random UUIDv4 whose first 48 bits become the milliseconds since 1970 and
-- whose version digit 4 (0100) becomes 7 (0111) by setting two bits.
create or replace function billing.new_entry_id() returns uuid
language sql volatile parallel safe
as $$
    select encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                    from 1 for 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

-- billing.first_entry_id(moment) -> uuid
--
-- The smallest id dated at that moment: where a monthly partition begins.
create or replace function billing.first_entry_id(p_moment timestamptz) returns uuid
language sql immutable parallel safe
as $$
    select rpad(lpad(to_hex((extract(epoch from p_moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;
