-- Lists of prices that requests were priced by, whole, so that any charge can be explained for ever. A list's number is
-- made of its content (billing_tasks/pricing/price_list.py), so every process calls the same list by the same number,
-- also after this database was restored to an earlier time.
create table billing.price_parts (
    digest  text primary key,  -- of the content, in hex
    content text not null      -- a catalogue, a ratios file, the changes that counted ...
);

create table billing.price_lists (
    version   bigint      primary key,
    parts     jsonb       not null,  -- name of the part -> its digest
    stored_at timestamptz not null default now()
);

create trigger price_parts_are_kept before update or delete on billing.price_parts
    for each row execute function billing.refuse('charges are explained by it');
create trigger price_parts_are_never_truncated before truncate on billing.price_parts
    execute function billing.refuse('charges are explained by it');
create trigger price_lists_are_kept before update or delete on billing.price_lists
    for each row execute function billing.refuse('charges are explained by it');
create trigger price_lists_are_never_truncated before truncate on billing.price_lists
    execute function billing.refuse('charges are explained by it');

-- billing.store_price_list(version, parts, contents) -> missing
--
--   parts      name of each part -> its digest
--   contents   digest -> content, of those that an earlier call said are missing; else null
--
-- missing null: the list is stored, by this call or an earlier one. Else nothing is stored, and these digests have to be
-- sent with their content. Another list under this version is an error (SQLSTATE 23505).
create function billing.store_price_list(p_version bigint, p_parts jsonb, p_contents jsonb, out missing jsonb)
language plpgsql
as $$
declare
    v_parts jsonb := (select parts from billing.price_lists where version = p_version);
begin
    if v_parts is not null then
        if v_parts <> p_parts then
            raise exception 'price list % is another one', p_version using errcode = 'unique_violation';
        end if;
        return;
    end if;
    insert into billing.price_parts (digest, content)
    select key, value from jsonb_each_text(p_contents) order by key
    on conflict do nothing;
    missing := (select jsonb_agg(value) from jsonb_each_text(p_parts)
                where value not in (select digest from billing.price_parts));
    if missing is null then
        insert into billing.price_lists (version, parts) values (p_version, p_parts) on conflict do nothing;
    end if;
end
$$;
