-- The columns of ledger_entries that release 0.1.0 did not have. None of them has a value in its rows, so nothing
-- is rewritten and each statement takes its lock for a moment only.
alter table billing.ledger_entries
    add column used_at       timestamptz,  -- when it was used, refunded or released; null: as created_at
    add column price_version bigint,       -- of the price list it was priced by; null: priced by ratios
    add column cost          bigint,       -- what the upstream charges for it, in quota; null: not known
    add column price         jsonb,        -- what the version does not say: exact rates as text; null: nothing
    add column details       jsonb;        -- fields of ConsumeLog that have no column of their own; null: none

-- Added after the column, so that the rows from before stay as they are: they were booked without a time of use.
alter table billing.ledger_entries alter column used_at set default now();

-- `usage` is from here on the quantities of other meters, by name. Release 0.1.0 kept the upstream's own object there;
-- such a row is a consume whose fingerprint has 16 bytes.
