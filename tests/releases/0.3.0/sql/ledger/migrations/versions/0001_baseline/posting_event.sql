-- billing.posting_event: one event as post_batch and post_refund read it from JSON.
--
-- The names are those of billing_tasks/events.py; a field that is left out is null. A new
-- field of the event must be added here by a migration (ALTER TYPE) and to post_batch.
create type billing.posting_event as (
    kind               text,
    request_id         uuid,
    user_id            bigint,
    token_id           bigint,
    fingerprint        text,
    quota              bigint,
    held_quota         bigint,
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
    elapsed_ms         bigint,
    is_stream          boolean,
    usage              jsonb,
    expired            boolean,
    refund_id          text,
    whole              boolean
);
