-- How long answers of each model are, learned from the ledger: what a request that names no maximum sets aside.
create table billing.estimates (
    model_name        text        primary key,
    requests          bigint      not null,  -- that it was learned from
    completion_tokens bigint      not null,  -- 99 of 100 used no more; reasoning is part of them
    median_tokens     bigint      not null,
    learned_at        timestamptz not null default now()
);

-- billing.learn_estimates() -> how many models were learned now
--
-- From the last 1,000 charges of each model among the last 100,000 of all, which one walk along the primary key reads.
-- A model with fewer than 50 of them keeps what was learned before.
create function billing.learn_estimates() returns bigint
language sql
as $$
    with last as (
        select model_name, completion_tokens, entry_id from billing.ledger_entries
        where kind = 'consume' order by entry_id desc limit 100000
    ), ranked as (
        select model_name, completion_tokens, row_number() over (partition by model_name order by entry_id desc) as turn
        from last where completion_tokens > 0
    ), learned as (
        insert into billing.estimates as known (model_name, requests, completion_tokens, median_tokens)
        select model_name, count(*), percentile_disc(0.99) within group (order by completion_tokens),
               percentile_disc(0.5) within group (order by completion_tokens)
        from ranked where turn <= 1000 group by model_name having count(*) >= 50
        order by model_name
        on conflict (model_name) do update
        set requests = excluded.requests, completion_tokens = excluded.completion_tokens,
            median_tokens = excluded.median_tokens, learned_at = now()
        returning 1)
    select count(*) from learned
$$;
