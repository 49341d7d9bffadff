-- What workers of release 0.1.0 call: billing.post_batch and billing.post_refund, as their own headers say, answered by
-- the functions of this revision. So a repetition is known whichever release booked it first, and rows of both releases
-- have one form.
create or replace function billing.post_batch(
    p_shard integer, p_events text, p_epoch bigint, p_first_seq bigint, p_last_seq bigint,
    out outcomes text, out users text, out tokens text)
language plpgsql
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_outboxes text := json_build_array(json_build_object(
        'shard', p_shard, 'epoch', p_epoch,
        'seqs', json_build_array(json_build_array(p_first_seq, p_last_seq))))::text;
    v_events   text := p_events;
begin
    if p_events like '%"usage"%' then
        -- 0.1.0 sent the upstream's own object as `usage`; here it is a detail.
        v_events := (
            select json_agg(case
                when e ? 'usage' then (e - 'usage') || jsonb_build_object('details', jsonb_build_object('usage', e -> 'usage'))
                else e end order by position)
            from jsonb_array_elements(p_events::jsonb) with ordinality as sent (e, position))::text;
    end if;
    select b.outcomes, b.users, b.tokens into outcomes, users, tokens
    from billing.post_batch_v2(v_outboxes, v_events) as b;
end
$$;

create or replace function billing.post_refund(
    p_shard integer, p_event text, out outcome text, out users text, out tokens text)
language sql
as $$
    select r.outcome, r.users, r.tokens from billing.post_refund_v2(p_shard, p_event) as r
$$;
