-- billing.posting_event_v2: one event as post_batch_v2 and post_refund_v2 read it from JSON.
--
-- The names are those of billing_tasks/model/events.py; a field that is left out is null. What has no column of its
-- own comes in the three objects usage, price and details, so a new field needs no new revision.
create type billing.posting_event_v2 as (
    kind               text,
    request_id         uuid,
    user_id            bigint,
    token_id           bigint,
    fingerprint        text,    -- hex; 16 bytes by formula 1, else the first byte is the formula's number
    quota              bigint,
    held_quota         bigint,
    used_at_ms         bigint,  -- since 1970; null: now
    outbox             integer, -- which element of post_batch_v2's `outboxes` it comes from; null: the first
    channel_id         bigint,
    prompt_tokens      bigint,
    completion_tokens  bigint,
    model_name         text,
    token_name         text,
    "group"            text,
    content            text,
    client_key         text,
    pre_consumed_quota bigint,
    model_ratio        text,
    completion_ratio   text,
    group_ratio        text,
    price_version      bigint,
    cost               bigint,
    elapsed_ms         bigint,
    is_stream          boolean,
    usage              jsonb,
    price              jsonb,
    details            jsonb,
    expired            boolean,
    refund_id          text,
    whole              boolean
);

-- billing.moment(ms) -> timestamptz: that many milliseconds after 1970; now if null.
create function billing.moment(p_ms bigint) returns timestamptz
language sql stable parallel safe
as $$
    select case when p_ms is null then now() else timestamptz 'epoch' + p_ms * interval '1 millisecond' end
$$;

-- billing.is_same_body(entry, event) -> boolean
--
-- True if the event repeats what the entry booked. Fingerprints by one formula are compared; by two formulas, what
-- the older of them covers is: formula 1 covers who, where, what and how much.
create function billing.is_same_body(p_entry billing.ledger_entries, p_event billing.posting_event_v2)
returns boolean
language sql stable parallel safe
as $$
    select case
        -- In front of the last 16 bytes is the formula's number.
        when left(encode(p_entry.fingerprint, 'hex'), -32) = lower(left(p_event.fingerprint, -32))
            then p_entry.fingerprint = decode(p_event.fingerprint, 'hex')
        else (p_entry.user_id, p_entry.token_id, coalesce(p_entry.channel_id, 0), p_entry.model_name,
              p_entry.prompt_tokens, p_entry.completion_tokens, p_entry.quota)
             = (p_event.user_id, p_event.token_id, coalesce(p_event.channel_id, 0), coalesce(p_event.model_name, ''),
                coalesce(p_event.prompt_tokens, 0), coalesce(p_event.completion_tokens, 0), coalesce(p_event.quota, 0))
        end
$$;
