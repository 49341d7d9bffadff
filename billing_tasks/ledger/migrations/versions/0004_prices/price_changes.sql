-- Prices that operators set. Each row counts from valid_from on, until the next one of its kind and name does.
create table billing.price_changes (
    id         bigint      generated always as identity primary key,
    kind       text        not null,
    name       text        not null,                -- the model's, the group's, the factor's ...
    body       jsonb,                               -- as the ratios file has it; null: taken back
    valid_from timestamptz not null,
    actor      text        not null,
    comment    text        not null default '',
    made_at    timestamptz not null default now(),
    constraint price_changes_kind_is_known check (kind in ('model', 'group', 'group_for', 'alias', 'factor', 'cost')),
    constraint price_changes_begin_when_made_or_later check (valid_from >= made_at)
);
create index price_changes_by_name on billing.price_changes (kind, name, valid_from, id);

create trigger price_changes_are_append_only before update or delete on billing.price_changes
    for each row execute function billing.refuse('a change of prices stays; set the price anew');
create trigger price_changes_are_never_truncated before truncate on billing.price_changes
    execute function billing.refuse('a change of prices stays; set the price anew');

-- billing.change_price(kind, name, body, valid_from, actor, comment) -> id, made
--
--   valid_from   null: at once; not in the past
--
-- made is false if that is how it is, or will be at that time, already: nothing is added then. One after the other,
-- so that two operators who set the same price at once make one change.
create function billing.change_price(
    p_kind text, p_name text, p_body jsonb, p_valid_from timestamptz, p_actor text, p_comment text,
    out id bigint, out made boolean)
language plpgsql
as $$
declare
    v_last billing.price_changes;
    v_from timestamptz := coalesce(p_valid_from, now());
begin
    lock table billing.price_changes in share row exclusive mode;
    if v_from < now() then
        raise exception 'valid_from lies in the past' using errcode = 'invalid_parameter_value';
    end if;
    select * into v_last from billing.price_changes as c
    where c.kind = p_kind and c.name = p_name and c.valid_from <= v_from
    order by c.valid_from desc, c.id desc limit 1;
    made := v_last.body is distinct from p_body;
    if made then
        insert into billing.price_changes (kind, name, body, valid_from, actor, comment)
        values (p_kind, p_name, p_body, v_from, p_actor, p_comment)
        returning price_changes.id into id;
    else
        id := v_last.id;
    end if;
end
$$;
