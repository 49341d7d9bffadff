-- Corrections: what a charge should have cost by another price list, booked beside it. The charge stays as it was.
create table billing.corrections (
    request_id    uuid        not null,  -- of the charge
    price_version bigint      not null,  -- the list that it was priced by again
    user_id       bigint      not null,
    quota         bigint      not null,  -- signed: above zero was charged, below zero given back
    entry_id      uuid        not null,
    actor         text        not null,
    comment       text        not null default '',
    created_at    timestamptz not null default now(),
    primary key (request_id, price_version),
    constraint corrections_change_something check (quota <> 0)
);

alter table billing.ledger_entries
    drop constraint ledger_entries_kind_is_known,
    add constraint ledger_entries_kind_is_known
        check (kind in ('consume', 'release', 'refund', 'topup', 'adjust', 'correction'));

-- billing.left_of(charge) -> quota that can still be refunded: the charge, its corrections, less its refunds
create function billing.left_of(p_charge billing.ledger_entries) returns bigint
language sql stable
as $$
    select p_charge.quota
           + coalesce((select sum(quota) from billing.corrections where request_id = p_charge.entry_id), 0)::bigint
           - coalesce((select sum(quota) from billing.refunds where request_id = p_charge.entry_id), 0)::bigint
$$;

-- billing.correct_charges(shard, corrections) -> one row per correction, in their order, and the accounts
--
-- Books what charges should have cost, each once per price list, in one transaction.
--
--   shard         the row of channel_usage that counts them
--   corrections   JSON array of {request_id, user_id, quota, price_version, actor, comment}: quota is what the whole
--                 charge should have come to, whatever was corrected before
--
-- Returns outcomes, a JSON array of [outcome, change]; change is what was booked, signed
--     no_charge    nothing was consumed under this request_id, or by another user
--     duplicate    corrected by this list before
--     refunded     refunded whole: there is nothing to correct
--     unchanged    it comes to what was charged
--     posted       booked now; no more is given back than refunds have left of it
--   users, tokens   JSON arrays of arrays, the accounts concerned as they are now
--
-- Safe to repeat. Locks as post_batch_v2 does, users first and in id order, so a refund of the same charge waits.
create function billing.correct_charges(
    p_shard integer, p_corrections text, out outcomes text, out users text, out tokens text)
language plpgsql
set plan_cache_mode = force_custom_plan
as $$
declare
    v_asked   record;
    v_charge  billing.ledger_entries;
    v_answers jsonb := '[]';
    v_tokens  bigint[] := '{}';
    v_outcome text;
    v_change  bigint;
begin
    perform set_config('synchronous_commit', 'on', true);
    perform from billing.users where id in (
        select (one ->> 'user_id')::bigint from json_array_elements(p_corrections::json) as one)
    order by id for no key update;
    for v_asked in
        select * from json_to_recordset(p_corrections::json) as one (
            request_id uuid, user_id bigint, quota bigint, price_version bigint, actor text, comment text)
    loop
        v_change := 0;
        select * into v_charge from billing.ledger_entries
        where entry_id = v_asked.request_id and kind = 'consume' and user_id = v_asked.user_id;
        if not found then
            v_outcome := 'no_charge';
        elsif exists (select from billing.corrections as c
                      where c.request_id = v_asked.request_id and c.price_version = v_asked.price_version) then
            v_outcome := 'duplicate';
        else
            perform from billing.tokens where id = v_charge.token_id for no key update;
            v_tokens := v_tokens || v_charge.token_id;
            select answer.outcome, answer.change into v_outcome, v_change
            from billing.book_correction(
                p_shard, v_charge, v_asked.quota, v_asked.price_version, v_asked.actor, v_asked.comment) as answer;
        end if;
        v_answers := v_answers || jsonb_build_array(jsonb_build_array(v_outcome, v_change));
    end loop;
    outcomes := v_answers::text;
    users := (select json_agg(billing.user_row(u)) from billing.users as u where u.id in (
        select (one ->> 'user_id')::bigint from json_array_elements(p_corrections::json) as one));
    tokens := (select json_agg(billing.token_row(t)) from billing.tokens as t where t.id = any (v_tokens));
end
$$;

-- The second half of correct_charges: user and token are locked, and the charge is that user's.
create function billing.book_correction(
    p_shard integer, p_charge billing.ledger_entries, p_quota bigint, p_version bigint, p_actor text, p_comment text,
    out outcome text, out change bigint)
language plpgsql
as $$
declare
    v_left     bigint := billing.left_of(p_charge);
    v_before   bigint := p_charge.quota + coalesce(
        (select sum(quota) from billing.corrections where request_id = p_charge.entry_id), 0)::bigint;
    v_entry_id uuid := billing.new_entry_id();
begin
    change := 0;
    if v_left = 0 and v_before > 0 then
        outcome := 'refunded';
        return;
    end if;
    change := greatest(p_quota - v_before, -v_left);
    if change = 0 then
        outcome := 'unchanged';
        return;
    end if;
    insert into billing.corrections (request_id, price_version, user_id, quota, entry_id, actor, comment)
    values (p_charge.entry_id, p_version, p_charge.user_id, change, v_entry_id, p_actor, p_comment);
    insert into billing.ledger_entries (
        entry_id, kind, request_id, user_id, token_id, channel_id, quota, user_quota, token_quota, used_quota,
        model_name, token_name, group_name, content, used_at, price_version, fingerprint)
    values (
        v_entry_id, 'correction', p_charge.entry_id, p_charge.user_id, p_charge.token_id, p_charge.channel_id,
        abs(change), -change, -change, change, p_charge.model_name, p_charge.token_name, p_charge.group_name,
        p_comment, p_charge.used_at, p_version, '');
    update billing.users
    set quota = quota - change, used_quota = used_quota + change, version = nextval('billing.versions')
    where id = p_charge.user_id;
    update billing.tokens
    set remain_quota = remain_quota - change, used_quota = used_quota + change,
        version = nextval('billing.versions')
    where id = p_charge.token_id;
    insert into billing.channel_usage as c (channel_id, shard, used_quota)
    select p_charge.channel_id, p_shard, change where p_charge.channel_id is not null
    on conflict (channel_id, shard) do update set used_quota = c.used_quota + excluded.used_quota;
    outcome := 'posted';
end
$$;

-- As in revision 0002, and: what is left of a charge knows its corrections.
create or replace function billing.book_refund_v2(
    p_shard integer, p_event billing.posting_event_v2, p_charge billing.ledger_entries) returns text
language plpgsql
as $$
declare
    v_fingerprint bytea := decode(p_event.fingerprint, 'hex');
    v_left        bigint;
    v_quota       bigint;
    v_entry_id    uuid := billing.new_entry_id();
    v_booked      billing.refunds;
begin
    select * into v_booked from billing.refunds where refund_id = p_event.refund_id;
    if not found then
        v_left := billing.left_of(p_charge);
        v_quota := case when p_event.whole then v_left else p_event.quota end;
        if v_quota > v_left or v_left = 0 then
            return 'above_charge';
        end if;
        insert into billing.refunds (refund_id, request_id, user_id, quota, fingerprint, entry_id)
        values (p_event.refund_id, p_event.request_id, p_event.user_id, v_quota, v_fingerprint, v_entry_id)
        on conflict do nothing;
        if not found then
            -- Another user's refund took the same refund_id while we waited.
            select * into v_booked from billing.refunds where refund_id = p_event.refund_id;
        end if;
    end if;
    if v_booked.refund_id is not null then
        return case when v_booked.fingerprint = v_fingerprint and v_booked.request_id = p_event.request_id
                    then 'duplicate' else 'conflict' end;
    end if;

    insert into billing.ledger_entries (
        entry_id, kind, request_id, user_id, token_id, channel_id, quota, user_quota, token_quota, used_quota,
        model_name, token_name, group_name, content, client_key, used_at, details, fingerprint)
    values (
        v_entry_id, 'refund', p_event.request_id, p_charge.user_id, p_charge.token_id, p_charge.channel_id,
        v_quota, v_quota, v_quota, -v_quota, p_charge.model_name, p_charge.token_name, p_charge.group_name,
        coalesce(p_event.content, ''), coalesce(p_event.client_key, ''), billing.moment(p_event.used_at_ms),
        p_event.details, v_fingerprint);
    update billing.users
    set quota = quota + v_quota, used_quota = used_quota - v_quota, version = nextval('billing.versions')
    where id = p_charge.user_id;
    update billing.tokens
    set remain_quota = remain_quota + v_quota, used_quota = used_quota - v_quota,
        version = nextval('billing.versions')
    where id = p_charge.token_id;
    insert into billing.channel_usage as c (channel_id, shard, used_quota)
    select p_charge.channel_id, p_shard, -v_quota where p_charge.channel_id is not null
    on conflict (channel_id, shard) do update set used_quota = c.used_quota + excluded.used_quota;
    return 'posted';
end
$$;
