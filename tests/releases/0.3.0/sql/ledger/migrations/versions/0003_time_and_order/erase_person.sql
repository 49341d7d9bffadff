-- What a person's data may be erased from, and that nothing else of an entry changes by it.

-- Who had whose data erased, and how much of it there was.
create table billing.erasures (
    id            bigint generated always as identity primary key,
    user_id       bigint      not null,
    actor         text        not null,
    comment       text        not null default '',
    entries       bigint      not null,
    tokens        bigint      not null,
    top_ups       bigint      not null,
    dead_letters  bigint      not null,
    erased_at     timestamptz not null default now()
);

-- Entries are never changed, but for their texts, and only by billing.erase_person.
create function billing.on_entry_changed() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'UPDATE' and current_setting('billing.erasing', true) = 'on'
       and to_jsonb(new) - array['content', 'client_key', 'token_name', 'details']
           = to_jsonb(old) - array['content', 'client_key', 'token_name', 'details']
    then
        return new;
    end if;
    raise exception '% on billing.%: entries are never changed; book another one', tg_op, tg_table_name
        using errcode = 'restrict_violation';
end
$$;
create or replace trigger entries_are_append_only before update or delete on billing.ledger_entries
    for each row execute function billing.on_entry_changed();

-- billing.erase_person(user_id, actor, comment) -> one row; user_known false: there is no such user
--
-- Empties what may name a person: remarks, the app's own keys, token names, details, the notes of top-ups, and the
-- payloads, errors and comments of dead letters that are settled. Sums, ids, amounts, models, counts, times and
-- fingerprints stay, so balances, `verify` and repeated requests are as before. The id of a top-up stays as well: it
-- tells a repetition. Dead letters that are open keep what is to be booked; `open_dead_letters` counts them.
-- Safe to repeat: what is empty stays so.
create function billing.erase_person(
    p_user_id bigint, p_actor text, p_comment text,
    out user_known boolean, out entries bigint, out tokens bigint, out top_ups bigint, out dead_letters bigint,
    out open_dead_letters bigint)
language plpgsql
as $$
declare
    v_letters bigint[];
begin
    perform from billing.users where id = p_user_id for no key update;
    user_known := found;
    if not user_known then
        return;
    end if;
    perform set_config('billing.erasing', 'on', true);
    update billing.ledger_entries as e
    set content = '', client_key = '', token_name = '', details = null
    where e.user_id = p_user_id and (e.content, e.client_key, e.token_name, e.details) is distinct from ('', '', '', null);
    get diagnostics entries = row_count;
    perform set_config('billing.erasing', 'off', true);
    update billing.tokens as t set name = '', version = nextval('billing.versions')
    where t.user_id = p_user_id and t.name <> '';
    get diagnostics tokens = row_count;
    update billing.top_ups as p set note = '' where p.user_id = p_user_id and p.note <> '';
    get diagnostics top_ups = row_count;
    v_letters := array(
        select d.id from billing.dead_letters as d
        where d.user_id = p_user_id and d.state in ('resolved', 'discarded'));
    update billing.dead_letters as d set payload = '', error = '', handled_why = ''
    where d.id = any (v_letters) and (d.payload, d.error, d.handled_why) is distinct from ('', '', '');
    get diagnostics dead_letters = row_count;
    update billing.dead_letter_history as h set why = '', error = ''
    where h.letter_id = any (v_letters) and (h.why, h.error) is distinct from ('', '');
    open_dead_letters := (
        select count(*) from billing.dead_letters as d
        where d.user_id = p_user_id and d.state in ('retrying', 'failed'));
    insert into billing.erasures (user_id, actor, comment, entries, tokens, top_ups, dead_letters)
    values (p_user_id, p_actor, p_comment, entries, tokens, top_ups, dead_letters);
end
$$;
