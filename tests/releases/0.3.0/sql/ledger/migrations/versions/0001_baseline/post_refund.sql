-- billing.post_refund(shard, event) -> one row
--
-- Gives back a booked charge, whole or in part, by a reversing entry.
--
--   shard   the row of channel_usage that counts it
--   event   one event of kind refund as JSON: request_id is the charge's, quota the amount
--           (ignored if `whole`: all that is left), refund_id the identity of this refund
--
-- Returns
--   outcome   in order of precedence
--     unknown_user   no such user
--     no_charge      nothing was consumed under this request_id (yet)
--     conflict       the charge is another user's, or refund_id came before with another body
--     duplicate      this refund was booked before
--     above_charge   the refunds of this charge would exceed it, or nothing is left of it
--     posted         booked now
--   users, tokens   JSON arrays of arrays, the accounts concerned as they are now
--
-- Safe to repeat. Two refunds of one charge queue for its user's row, so the second one
-- sees the first. The token that paid gets the quota back, whatever the event names.
create or replace function billing.post_refund(
    p_shard integer, p_event text, out outcome text, out users text, out tokens text)
language plpgsql
set plan_cache_mode = force_custom_plan  -- for the reason given in post_batch
as $$
declare
    v_event    billing.posting_event := json_populate_record(null::billing.posting_event, p_event::json);
    v_charge   billing.ledger_entries;
begin
    perform set_config('synchronous_commit', 'on', true);
    if v_event.kind is distinct from 'refund' or coalesce(v_event.refund_id, '') = ''
        or (coalesce(v_event.quota, 0) <= 0 and v_event.whole is not true)
    then
        raise exception 'a refund needs a refund_id and a quota above zero, or whole'
            using errcode = 'invalid_parameter_value';
    end if;

    -- The same order as post_batch: user, token, then the rest.
    perform from billing.users where id = v_event.user_id for no key update;
    if not found then
        outcome := 'unknown_user';
        return;
    end if;
    select * into v_charge from billing.ledger_entries where entry_id = v_event.request_id and kind = 'consume';
    if not found then
        outcome := 'no_charge';
    elsif v_event.refund_id = 'refund:' || v_event.request_id and exists (
        select from billing.ledger_entries
        where entry_id = v_event.request_id and kind = 'release' and not expired
            and created_at <= v_charge.created_at)
    then
        -- The request's one default refund released its hold before the usage came late. The same
        -- message delivered again must not give back the charge as well; a refund_id of its own does.
        outcome := 'duplicate';
    elsif v_charge.user_id <> v_event.user_id then
        outcome := 'conflict';
    else
        perform from billing.tokens where id = v_charge.token_id for no key update;
        outcome := billing.book_refund(p_shard, v_event, v_charge);
    end if;

    users := (select json_agg(billing.user_row(u)) from billing.users as u where u.id = v_event.user_id);
    tokens := (select json_agg(billing.token_row(t)) from billing.tokens as t
               where t.id = v_charge.token_id and outcome in ('posted', 'duplicate', 'above_charge'));
end
$$;

-- The second half of post_refund: user and token are locked, the charge is theirs.
create or replace function billing.book_refund(
    p_shard integer, p_event billing.posting_event, p_charge billing.ledger_entries) returns text
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
        select p_charge.quota - coalesce(sum(quota), 0) into v_left
        from billing.refunds where request_id = p_event.request_id;
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
        model_name, token_name, group_name, content, client_key, fingerprint)
    values (
        v_entry_id, 'refund', p_event.request_id, p_charge.user_id, p_charge.token_id, p_charge.channel_id,
        v_quota, v_quota, v_quota, -v_quota, p_charge.model_name, p_charge.token_name, p_charge.group_name,
        coalesce(p_event.content, ''), coalesce(p_event.client_key, ''), v_fingerprint);
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
