-- What happened to each dead letter, in order: attempts and decisions, who made them and why.
-- Rows are only added; dead_letters itself keeps the last of them.
create table billing.dead_letter_history (
    id        bigint generated always as identity primary key,
    letter_id bigint      not null references billing.dead_letters (id),
    at        timestamptz not null default clock_timestamp(),
    what      text        not null,
    who       text        not null default '',  -- '': nobody asked
    why       text        not null default '',  -- in the words of who asked
    reason    text        not null default '',  -- kept, refused: a code
    error     text        not null default '',  -- kept, refused: a sentence
    attempt   integer,                          -- the how-manieth attempt; null: none was made
    constraint dead_letter_history_what_is_known check (
        what in ('kept', 'attempted', 'posted', 'duplicate', 'refused', 'discarded', 'reopened'))
);
create index dead_letter_history_by_letter on billing.dead_letter_history (letter_id, id);

-- Letters from before this table: what is known of them.
insert into billing.dead_letter_history (letter_id, at, what, reason, error)
select id, first_seen, 'kept', reason, error from billing.dead_letters order by id;
insert into billing.dead_letter_history (letter_id, at, what, who, why)
select id, updated_at, case state when 'discarded' then 'discarded' else 'posted' end, handled_by, handled_why
from billing.dead_letters where state in ('resolved', 'discarded') order by id;
